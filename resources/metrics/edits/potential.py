"""The potential, which is computed from other metrics of an edit."""

import math

from resources.metrics import Metric

METRICS = (
    Metric(
        name="potential",
        label="potential",
        description="the weighted sum of pf, cons and lpips",
        low=-math.inf,
        high=math.inf,
        role="selecting",
        order=10,
    ),
)
