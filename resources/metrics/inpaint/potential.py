"""The potential, which is computed from other metrics of an inpainted face."""

import math

from resources.metrics import Metric

METRICS = (
    Metric(
        name="potential",
        label="potential",
        description="the weighted sum of consistency, quality and identity",
        low=-math.inf,
        high=math.inf,
        role="selecting",
    ),
)
