"""How good an image looks, by LAION's aesthetic heads on CLIP's embedding: as FlexyFace has them."""

from functools import partial

from resources.metrics import Metric

# A linear head is not bounded; the ratings it was trained on go from 1 to 10.
_metric = partial(Metric, low=-5, high=15, reads="clip", column=True)

METRICS = (
    _metric(
        "aesthetic_score",
        "Aesthetic V1",
        "LAION's aesthetic predictor (MLP), about 1 to 10",
        scorer="aesthetic_v1",
        order=1,
    ),
    _metric(
        "aes_v2_score",
        "Aesthetic V2",
        "aesthetic predictor V2 (sac+logos+ava1), about 1 to 10",
        scorer="aesthetic_v2",
        order=2,
    ),
)
