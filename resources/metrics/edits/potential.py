"""The potential, which is computed from other metrics of an edit."""

import math

from resources.metrics import SelectingMetric

METRICS = (
    SelectingMetric("potential", "potential", "the weighted sum of pf, cons and lpips", -math.inf, math.inf, order=10),
)
