"""CLIP between the edited image, its instruction, its source and its parent."""

from resources.metrics import Metric, SelectingMetric
from resources.metrics.scoring import BatchScores, CandidateBatch, cosine_similarities, map_rows

METRICS = (
    SelectingMetric(
        "pf", "PF", "follows the instruction: 100 × the cosine of image and instruction (CLIP)", -100, 100, order=11
    ),
    Metric(
        name="pf_gain",
        label="PF gain",
        description="how much closer it is to the instruction than the source, 100 × a difference of cosines",
        low=-200,
        high=200,
        order=12,
    ),
    SelectingMetric("cons", "CONS", "consistent with the source: the cosine of the two images (CLIP)", -1, 1, order=13),
    Metric("parent_cons", "CONS to parent", "the cosine of the image and its parent's (CLIP)", -1, 1, order=16),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return PF, its gain over the source, CONS and CONS to the parent."""
    edited, sources = batch.image_vectors("edited"), batch.image_vectors("source")
    instructions = batch.instruction_vectors()
    pf, source_pf = cosine_similarities(edited, instructions), cosine_similarities(sources, instructions)
    values = {
        "pf": map_rows(lambda cosine: 100 * cosine, pf),
        "pf_gain": map_rows(lambda cosine, source_cosine: 100 * (cosine - source_cosine), pf, source_pf),
        "cons": cosine_similarities(edited, sources),
        "parent_cons": cosine_similarities(edited, batch.image_vectors("parent")),
    }
    return [BatchScores(values, batch.fingerprint("clip"))]
