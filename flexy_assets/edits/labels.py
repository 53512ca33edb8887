"""Labels of methods, metrics and budgets."""

from typing import Final

from flexy_assets.reporting.formatting import format_count
from resources.metrics.edits import METRICS

METHOD_NAMES: Final = {"eacps": "EACPS", "ttflux": "TTFLUX"}


def method_name(method: str) -> str:
    """Return a method's label; an unknown method's is its name."""
    return METHOD_NAMES.get(method, method)


def metric_label(metric: str) -> str:
    """Return a metric's label, as within a sentence."""
    return METRICS[metric].label if metric in METRICS else metric


def metric_title(metric: str) -> str:
    """Return a metric's label with a capital."""
    return metric_label(metric)[:1].upper() + metric_label(metric)[1:]


def format_denoises(nfe: int, steps: int | None) -> str:
    """Return a budget as in `8 denoises`, or as in `60 NFE` where it is not a multiple of `steps`, a full denoise."""
    return f"{nfe:,} NFE" if not steps or nfe % steps else format_count(nfe // steps, "denoise")
