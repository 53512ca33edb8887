"""How good an image looks, by two linear heads on CLIP's embedding."""

from functools import partial

from resources.metrics import Metric

# A linear head is not bounded; the ratings it was trained on go from 1 to 10.
_metric = partial(Metric, low=-5, high=15, reads="clip", column=True)

METRICS = (
    _metric(
        "aesthetic_score", "Aesthetic V1", "LAION's aesthetic predictor, about 1 to 10", scorer="aesthetic_v1", order=1
    ),
    _metric(
        "aes_v2_score",
        "Aesthetic V2",
        "aesthetic predictor V2 (sac+logos+ava1), about 1 to 10",
        scorer="aesthetic_v2",
        order=2,
    ),
)
