"""Agreement of the edges of the edited image and its source."""

from resources.metrics import SelectingMetric
from resources.metrics.scoring import PAIRS_PER_CALL, BatchScores, CandidateBatch, map_in_batches

METRICS = (
    SelectingMetric("layout", "layout", "how well its edges agree with the source's: a correlation", -1, 1, order=15),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the mean correlation of the edges."""
    from resources.scorers import layout

    edges = (batch.images(kind, layout.edge_maps) for kind in ("edited", "source"))
    values = map_in_batches(PAIRS_PER_CALL, layout.layout_agreements, *edges)
    return [BatchScores({"layout": values}, layout.LAYOUT_FINGERPRINT)]
