"""The sweep's metrics: each is a cosine with the prompt, or a head, on one encoder's embedding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One score of one image.

    `column` is its column in `bench_run_results`, `label` what people call it; `encoder` and `head`
    are names in the registry's `SCORERS`; without a head the score is the cosine of image and prompt.
    `low` and `high` bound what can be true.
    """

    column: str
    label: str
    encoder: str
    head: str | None
    low: float
    high: float


METRICS = {
    metric.column: metric
    for metric in (
        Metric("clip_score", "CLIP score", "clip", None, -1, 1),
        # Linear heads are not bounded; the marks they learnt from go from 1 to 10.
        Metric("aesthetic_score", "Aesthetic V1", "clip", "aesthetic_v1", -5, 15),
        Metric("aes_v2_score", "Aesthetic V2", "clip", "aesthetic_v2", -5, 15),
        Metric("hps_v2_score", "HPS v2.1", "hps", None, -1, 1),
    )
}
