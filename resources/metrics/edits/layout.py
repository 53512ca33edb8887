"""Agreement of the edges of the edited image and its source."""

from __future__ import annotations

from resources.metrics import Metric
from resources.metrics.scoring import PAIRS_PER_CALL, BatchScores, CandidateBatch, map_in_batches

METRICS = (
    Metric(
        name="layout",
        label="layout",
        description="how well its edges agree with the source's: a correlation",
        low=-1,
        high=1,
        role="selecting",
        scorer=f"{__name__}:score",
        order=15,
    ),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the mean correlation of the edges."""
    from resources.scorers import layout

    edges = (batch.images(kind, layout.edge_maps) for kind in ("edited", "source"))
    values = map_in_batches(PAIRS_PER_CALL, layout.layout_agreements, *edges)
    return [BatchScores({"layout": values}, layout.LAYOUT_FINGERPRINT)]
