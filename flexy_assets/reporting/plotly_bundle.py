"""Plotly's JavaScript, made to start quickly.

The Python package brings the bundle of all fifty kinds of traces only, and nearly half of the processor's time at a
page's opening went into starting those that it never draws. What is not found here as it is in the
version that is locked is left alone: the page then opens later, and works.
"""

from __future__ import annotations

import re
from typing import Final

DRAWN_WITH: Final = frozenset({"heatmap", "contour"})
"""The kinds of traces that the report draws, beside `scatter`, which is always there."""

_REGISTERED: Final = re.compile(r"\.register\(\[((?:[\w$]+\(\),?)+)\]\)")
_MODULE: Final = re.compile(r"([\w$]+)=[\w$]+\(\([\w$,]*\)=>\{")
_NEAR: Final = 6000
"""Characters from a module's beginning in which its kind stands."""


def plotly_js() -> str:
    """The bundle, of which only the kinds of `DRAWN_WITH` are registered, compiled at once."""
    from plotly.offline import get_plotlyjs

    return eager(registering(get_plotlyjs(), DRAWN_WITH))


def registering(bundle: str, kinds: frozenset[str]) -> str:
    """The bundle with these kinds of traces registered and no others: a module that nobody asks for is not run."""
    found = _REGISTERED.search(bundle)
    if not found:
        return bundle
    # A kind's own module is handed on by one of Plotly's `lib`, and that one is registered.
    wanted = []
    for kind in sorted(kinds):
        own = _module_before(bundle, f'moduleType:"trace",name:"{kind}"')
        wanted.append(f"{_module_before(bundle, f'.exports={own}()}})')}()")
    if not set(wanted) <= set(found[1].split(",")):
        return bundle
    return bundle[: found.start(1)] + ",".join(wanted) + bundle[found.end(1) :]


def _module_before(bundle: str, text: str) -> str | None:
    """The module in which a text stands, its name; None where it does not."""
    at = bundle.find(text)
    modules = _MODULE.findall(bundle, max(at - _NEAR, 0), max(at, 0))
    return modules[-1] if modules else None


def eager(bundle: str) -> str:
    """The bundle with the one function that holds it in brackets.

    A browser compiles such a function at once; without them it reads the megabytes twice, first to see where they end.
    """
    before, function, rest = bundle.partition("this, () => {")
    body, end, after = rest.rpartition("}));")
    return f"{before}this, (() => {{{body}}})));{after}" if function and end else bundle
