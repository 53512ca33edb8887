"""What the scores say: how metrics move together and with settings, which settings to use, and how sure that is.

Every function takes one row an image (`SCORES`) and returns a frame with a declared schema. None raises for thin
data: too few images, a column that never varies or a missing score become a null and a `note`. Intervals are 95 %;
they resample prompts where six or more repeat, else images. scikit-learn and scipy are loaded where they are used,
so that the report and Dagster need not wait for them.
"""

from __future__ import annotations

from flexy_assets.sweep.analysis.comparison import COMPARISON, comparison, described
from flexy_assets.sweep.analysis.correlations import COMPONENTS, CORRELATIONS, components, correlations
from flexy_assets.sweep.analysis.model_selection import MODELS, REGRESSION, predict, regression
from flexy_assets.sweep.analysis.response import (
    EFFECTS,
    LEAST_GAIN,
    RESPONSE,
    RETURNS,
    diminishing_returns,
    effects,
    response,
)
from flexy_assets.sweep.analysis.rows import (
    LABELS,
    LEAST_IMAGES,
    METRICS,
    NO_GUIDANCE,
    SCORES,
    SETTINGS,
    TARGETS,
    effective_guidance,
    measured,
    selected,
    tried,
    weight_shares,
    with_overall,
)
from flexy_assets.sweep.analysis.sweet_spots import PARETO, SPOTS, VALUE_TOLERANCE, pareto_front, sweet_spots
from flexy_assets.sweep.analysis.tables import Tables
from flexy_assets.sweep.analysis.times import TIMES, times

__all__ = [
    "COMPARISON",
    "COMPONENTS",
    "CORRELATIONS",
    "EFFECTS",
    "LABELS",
    "LEAST_GAIN",
    "LEAST_IMAGES",
    "METRICS",
    "MODELS",
    "NO_GUIDANCE",
    "PARETO",
    "REGRESSION",
    "RESPONSE",
    "RETURNS",
    "SCORES",
    "SETTINGS",
    "SPOTS",
    "TARGETS",
    "TIMES",
    "VALUE_TOLERANCE",
    "Tables",
    "comparison",
    "components",
    "correlations",
    "described",
    "diminishing_returns",
    "effective_guidance",
    "effects",
    "measured",
    "pareto_front",
    "predict",
    "regression",
    "response",
    "selected",
    "sweet_spots",
    "times",
    "tried",
    "weight_shares",
    "with_overall",
]
