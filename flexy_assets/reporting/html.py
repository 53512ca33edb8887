"""Pages that are one inert file.

A page extends `page.html.j2`. Jinja escapes its values, and the page's content security policy runs only
the page's own scripts and fetches nothing.
"""

import base64
import gzip
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from flexy_assets.reporting.formatting import format_number


def load_template(name: str, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """Return the template at `name`, below `flexy_assets`, with `filters` and `number`, `percent` and `script_hash`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Metrics keep their order.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.globals |= {"static": static_text, "plotly_script": plotly_script}
    environment.filters |= {
        "number": format_number,
        "percent": "{:.0%}".format,
        "script_hash": _script_hash,
        "packed": gzip_base64,
        **filters,
    }
    return environment.get_template(name)


@cache
def static_text(name: str) -> Markup:
    """Return the text of a file below `static/`."""
    return Markup((Path(__file__).parent / "static" / name).read_text("utf-8"))


@cache
def plotly_script() -> Markup:
    """Return Plotly's published bundle, with the hint that makes browsers compile it at once."""
    return Markup("//# allFunctionsCalledOnLoad\n") + static_text("vendor/plotly-cartesian.min.js")


def gzip_base64(script: str) -> str:
    """Return a script as gzip in base64, for a page that unpacks it; equal scripts give equal texts."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _script_hash(script: str) -> Markup:
    """Return the script's entry in a content security policy, quoted."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")
