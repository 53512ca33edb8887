"""CLIP between the edited image, its instruction, its source and its parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resources.errors import FlexyError
from resources.metrics import Metric
from resources.metrics.scoring import (
    PAIRS_PER_CALL,
    BatchScores,
    CandidateBatch,
    cosine_similarities,
    map_in_batches,
)

_SCORER = f"{__name__}:score"

METRICS = (
    Metric(
        name="pf",
        label="PF",
        description="follows the instruction: 100 × the cosine of image and instruction (CLIP)",
        low=-100,
        high=100,
        role="selecting",
        scorer=_SCORER,
        order=11,
    ),
    Metric(
        name="pf_gain",
        label="PF gain",
        description="how much closer it is to the instruction than the source, 100 × a difference of cosines",
        low=-200,
        high=200,
        scorer=_SCORER,
        order=12,
    ),
    Metric(
        name="cons",
        label="CONS",
        description="consistent with the source: the cosine of the two images (CLIP)",
        low=-1,
        high=1,
        role="selecting",
        scorer=_SCORER,
        order=13,
    ),
    Metric(
        name="parent_cons",
        label="CONS to parent",
        description="the cosine of the image and its parent's (CLIP)",
        low=-1,
        high=1,
        scorer=_SCORER,
        order=16,
    ),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return PF, its gain over the source, CONS and CONS to the parent."""
    edited, sources = batch.image_vectors("edited"), batch.image_vectors("source")
    instructions = batch.instruction_vectors()
    pf = _cosines(edited, instructions)
    return [
        BatchScores(
            {
                "pf": [_scale(value) for value in pf],
                "pf_gain": [
                    next((value for value in pair if isinstance(value, FlexyError)), None) or _scale(pair[0] - pair[1])
                    for pair in zip(pf, _cosines(sources, instructions), strict=True)
                ],
                "cons": _cosines(edited, sources),
                "parent_cons": _cosines(edited, batch.image_vectors("parent")),
            },
            batch.fingerprint("clip"),
        )
    ]


def _cosines(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    return map_in_batches(PAIRS_PER_CALL, cosine_similarities, left, right)


def _scale(value: Any) -> Any:
    return value if isinstance(value, FlexyError) else 100 * value
