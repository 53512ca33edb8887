"""Whether the scores in a column are those of a scorer, from a sample that was computed again: plain arithmetic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resources.metrics import Metric

ENCODERS = {"clip": ("clip", "clip_gelu")}
"""The encoders that a score of this one may be of: open_clip computes plain GELU where OpenAI's CLIP has QuickGELU."""

AESTHETIC_HEADS = ("aesthetic_v1", "aesthetic_linear")
"""The heads that an aesthetic score may be of, beside its own."""

SAMPLE_SIZE = 64
"""Existing scores of a column that are computed again, at most."""

SPREAD_TOLERANCE = 0.05
"""The median difference allowed, as a share of the scores' standard deviation.

Half precision moves a score by less (in bf16 CLIP's by up to .03, in fp16 by .006 of FlexyFace's spread), another
activation, head or prompt by more (.2 and up).
"""

RANGE_TOLERANCE = 5e-4
"""The same as a share of the metric's valid range: for scores that hardly differ from each other."""

EXACT_SHARE = 0.02
"""The share of the tolerance up to which scores are equal but for rounding."""

TAIL = 3.0
"""By how many tolerances a value may differ that agrees."""

AGREEING_SHARE = 0.95
"""The share of the values that must agree: single files may have been replaced since they were scored."""

MIN_COMPARED = 8
"""Values that must be compared, if there are as many: fewer may agree by chance."""


@dataclass(frozen=True)
class Agreement:
    """Existing scores compared with those that one variant of the scorer computes for the same images.

    `compared` of the `sampled` scores could be computed, and `agreeing` of those are within the tolerance. The mean
    and median of the absolute differences and the standard deviation `spread` of the existing scores are in the
    metric's unit; `correlation` is Pearson's, None where either side is constant.
    """

    variant: str
    sampled: int
    compared: int
    agreeing: int
    mean_difference: float
    median_difference: float
    spread: float
    correlation: float | None
    equal: bool
    exact: bool
    """Whether they are equal but for rounding: no other variant needs to be tried."""


def scorer_variants(metric: Metric, prompt_columns: Sequence[str]) -> Iterator[Metric]:
    """Yield the metric as each variant of its scorer computes it, the metric itself first.

    `prompt_columns` are the columns that may hold the prompts, "" first.
    """
    heads = [metric.scorer]
    if metric.scorer and metric.scorer.startswith("aesthetic"):
        heads = list(dict.fromkeys((metric.scorer, *AESTHETIC_HEADS)))
    for encoder in ENCODERS.get(metric.reads or "", (metric.reads,)):
        for head in heads:
            for prompts in prompt_columns if metric.uses_prompt else ("",):
                scorer = encoder if metric.reads == metric.scorer else head
                yield replace(metric, reads=encoder, scorer=scorer, prompts=prompts)


def describe_variant(metric: Metric) -> str:
    """Return what computes the metric, in a few words."""
    parts = dict.fromkeys(filter(None, (metric.reads, metric.scorer)))
    return " + ".join(parts) + (f" with the prompts of {metric.prompts}" if metric.prompts else "")


def compare_scores(
    variant: str, existing: NDArray[np.float64], computed: NDArray[np.float64], low: float, high: float
) -> Agreement:
    """Return the agreement of (n,) existing scores with (n,) computed ones, NaN where one could not be computed.

    `low` and `high` are the metric's valid range. They are equal if the median difference is within the tolerance, and
    `AGREEING_SHARE` of the differences within `TAIL` tolerances.
    """
    known = np.isfinite(computed)
    theirs, ours = existing[known], computed[known]
    if not len(theirs):
        return Agreement(variant, len(existing), 0, 0, 0.0, 0.0, 0.0, None, equal=False, exact=False)
    differences = np.abs(theirs - ours)
    spreads = float(theirs.std()), float(ours.std())
    # The smaller spread: values that are all over the place agree with nothing.
    tolerance = max(SPREAD_TOLERANCE * min(spreads), RANGE_TOLERANCE * (high - low))
    agreeing, median = int((differences <= TAIL * tolerance).sum()), float(np.median(differences))
    enough = len(theirs) >= min(MIN_COMPARED, len(existing)) and agreeing >= AGREEING_SHARE * len(theirs)
    return Agreement(
        variant,
        sampled=len(existing),
        compared=len(theirs),
        agreeing=agreeing,
        mean_difference=float(differences.mean()),
        median_difference=median,
        spread=spreads[0],
        correlation=float(np.corrcoef(theirs, ours)[0, 1]) if min(spreads) > 0 else None,
        equal=enough and median <= tolerance,
        exact=enough and median <= EXACT_SHARE * tolerance,
    )


def rank_agreements(agreements: Sequence[Agreement]) -> list[Agreement]:
    """Return the agreements, the best first: equal ones by their difference, then the others by how many agree."""
    return sorted(agreements, key=lambda a: (not a.equal, 0 if a.equal else -a.agreeing, a.median_difference))


def describe_agreement(agreement: Agreement) -> str:
    """Return the figures of one variant in a few words."""
    if not agreement.compared:
        return f"{agreement.variant}: no score could be computed"
    correlation = "none" if agreement.correlation is None else f"{agreement.correlation:.3f}"
    return (
        f"{agreement.variant}: {agreement.agreeing} of {agreement.compared} agree, mean difference"
        f" {agreement.mean_difference:.4g} at a spread of {agreement.spread:.4g}, correlation {correlation}"
    )
