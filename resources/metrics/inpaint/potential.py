"""The potential, which is computed from other metrics of an inpainted face."""

import math

from resources.metrics import SelectingMetric

METRICS = (
    SelectingMetric(
        "potential", "potential", "the weighted sum of consistency, quality and identity", -math.inf, math.inf
    ),
)
