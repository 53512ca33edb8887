"""Which image people would prefer."""

from resources.metrics import Metric

METRICS = (
    Metric(
        name="hps_v2_score",
        label="HPS v2.1",
        description="which image people would prefer for the prompt; comparable within one prompt",
        low=-1,
        high=1,
        column=True,
        scorer="hps",
        lowest_mean=0.2,
        order=3,
    ),
)
