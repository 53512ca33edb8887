"""How the report says methods, metrics, budgets and counts."""

from __future__ import annotations

from typing import Final

from flexy_assets.sweep.analysis import METRICS

NAMES: Final = {"eacps": "EACPS", "ttflux": "TTFLUX"}
LABELS: Final = METRICS | {
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


def named(method: str) -> str:
    """What people call a method; one that is not known here is called by its name."""
    return NAMES.get(method, method)


def label(metric: str) -> str:
    """What people call a metric, within a sentence."""
    return LABELS.get(metric, metric)


def titled(metric: str) -> str:
    """The same at the beginning of a line."""
    return label(metric)[:1].upper() + label(metric)[1:]


def denoises(nfe: int, steps: int | None) -> str:
    """A budget as in `8 denoises`, or as in `60 NFE` where it is no whole number of `steps`, a full denoise's."""
    return f"{nfe:,} NFE" if not steps or nfe % steps else counted(nfe // steps, "denoise")


def counted(count: int, noun: str) -> str:
    """As in `1 task` and `1,200 tasks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
