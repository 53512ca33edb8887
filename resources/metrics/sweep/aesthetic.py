"""How good an image looks, by two linear heads on CLIP's embedding."""

from resources.metrics import Metric

# A linear head is not bounded; the ratings it was trained on go from 1 to 10.
_LOW, _HIGH = -5, 15

METRICS = (
    Metric(
        name="aesthetic_score",
        label="Aesthetic V1",
        description="LAION's aesthetic predictor, about 1 to 10",
        low=_LOW,
        high=_HIGH,
        reads="clip",
        column=True,
        scorer="aesthetic_v1",
        order=1,
    ),
    Metric(
        name="aes_v2_score",
        label="Aesthetic V2",
        description="aesthetic predictor V2 (sac+logos+ava1), about 1 to 10",
        low=_LOW,
        high=_HIGH,
        reads="clip",
        column=True,
        scorer="aesthetic_v2",
        order=2,
    ),
)
