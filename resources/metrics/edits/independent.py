"""The sweep's HPS v2.1 and aesthetic V2, which have no part in the selection of an edit."""

from dataclasses import replace

from resources.metrics import Metric, sweep
from resources.metrics.scoring import BatchScores, CandidateBatch, map_in_batches, score_with_head


def _independent(name: str, scorer: str, order: int) -> Metric:
    return replace(sweep.METRICS[name], role="independent", scorer=f"{__name__}:{scorer}", column=False, order=order)


METRICS = (_independent("hps_v2_score", "score_hps", 21), _independent("aes_v2_score", "score_aesthetic", 22))


def score_hps(batch: CandidateBatch) -> list[BatchScores]:
    """Return HPS v2.1 of the edited image and its instruction."""
    model = batch.model("hps")
    values = map_in_batches(model.batch_size, model.scores, batch.images("edited", model.prepare), batch.instructions)
    return [BatchScores({"hps_v2_score": values}, batch.fingerprint("hps"))]


def score_aesthetic(batch: CandidateBatch) -> list[BatchScores]:
    """Return aesthetic V2 of the edited image."""
    vectors = batch.image_vectors("edited")
    values = score_with_head(batch.model("aesthetic_v2"), vectors)
    return [BatchScores({"aes_v2_score": values}, batch.fingerprint("aesthetic_v2"))]
