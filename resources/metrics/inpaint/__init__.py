"""The metrics of inpainted faces, one file each or a small family."""

from typing import Final

from resources.metrics import Metric, discover_metrics

METRICS: Final[dict[str, Metric]] = discover_metrics(__name__, __path__)
