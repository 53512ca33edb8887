"""How the report says methods, metrics, budgets and counts."""

from __future__ import annotations

from typing import Final

from flexy_assets.reporting.formatting import format_count
from flexy_assets.sweep.analysis import METRIC_LABELS

METHOD_NAMES: Final = {"eacps": "EACPS", "ttflux": "TTFLUX"}
EDIT_METRIC_LABELS: Final = METRIC_LABELS | {
    "truth": "truth",
    "carried_out": "carried out",
    "preserved": "rest preserved",
    "potential": "potential",
    "pf": "PF",
    "pf_gain": "PF gain",
    "cons": "CONS",
    "lpips": "LPIPS",
    "layout": "layout",
    "parent_cons": "CONS to parent",
    "parent_lpips": "LPIPS to parent",
}


def method_name(method: str) -> str:
    """What people call a method; one that is not known here is called by its name."""
    return METHOD_NAMES.get(method, method)


def metric_label(metric: str) -> str:
    """What people call a metric, within a sentence."""
    return EDIT_METRIC_LABELS.get(metric, metric)


def metric_title(metric: str) -> str:
    """The same at the beginning of a line."""
    return metric_label(metric)[:1].upper() + metric_label(metric)[1:]


def format_denoises(nfe: int, steps: int | None) -> str:
    """A budget as in `8 denoises`, or as in `60 NFE` where it is no whole number of `steps`, a full denoise's."""
    return f"{nfe:,} NFE" if not steps or nfe % steps else format_count(nfe // steps, "denoise")
