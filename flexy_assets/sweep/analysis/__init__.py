"""The statistics of a sweep: correlations, responses to settings, recommended settings, and their uncertainty.

Every function takes one row an image (`SCORES_TABLE_SCHEMA`) and returns a frame with a declared schema. None raises
for sparse data: too few images, a constant column or a missing score become a null and a `note`. Intervals are 95 %;
they resample prompts where six or more repeat, else images. scikit-learn and scipy are imported where they are used,
so that the report and Dagster start without them.
"""

from flexy_assets.sweep.analysis.comparison import compare_groups
from flexy_assets.sweep.analysis.correlations import correlate_metrics, principal_components
from flexy_assets.sweep.analysis.model_selection import MODELS, fit_models, predict_score
from flexy_assets.sweep.analysis.response import diminishing_returns_table, effects_table, response_table
from flexy_assets.sweep.analysis.rows import (
    COLUMN_LABELS,
    METRIC_LABELS,
    MIN_IMAGES,
    NO_GUIDANCE,
    SCORES_TABLE_SCHEMA,
    SETTING_LABELS,
    TARGET_LABELS,
    add_overall,
    effective_guidance,
    measured_images,
    select_images,
    setting_names,
)
from flexy_assets.sweep.analysis.schemas import (
    COMPONENTS_SCHEMA,
    CORRELATIONS_SCHEMA,
    EFFECTS_SCHEMA,
    PARETO_SCHEMA,
    REGRESSION_SCHEMA,
    RESPONSE_SCHEMA,
    RETURNS_SCHEMA,
    SWEEP_COMPARISON_SCHEMA,
    SWEET_SPOTS_SCHEMA,
    TIMES_SCHEMA,
)
from flexy_assets.sweep.analysis.sweet_spots import VALUE_TOLERANCE, find_pareto_front, find_sweet_spots
from flexy_assets.sweep.analysis.tables import AnalysisTables
from flexy_assets.sweep.analysis.times import times_table

__all__ = [
    "COLUMN_LABELS",
    "COMPONENTS_SCHEMA",
    "CORRELATIONS_SCHEMA",
    "EFFECTS_SCHEMA",
    "METRIC_LABELS",
    "MIN_IMAGES",
    "MODELS",
    "NO_GUIDANCE",
    "PARETO_SCHEMA",
    "REGRESSION_SCHEMA",
    "RESPONSE_SCHEMA",
    "RETURNS_SCHEMA",
    "SCORES_TABLE_SCHEMA",
    "SETTING_LABELS",
    "SWEEP_COMPARISON_SCHEMA",
    "SWEET_SPOTS_SCHEMA",
    "TARGET_LABELS",
    "TIMES_SCHEMA",
    "VALUE_TOLERANCE",
    "AnalysisTables",
    "add_overall",
    "compare_groups",
    "correlate_metrics",
    "diminishing_returns_table",
    "effective_guidance",
    "effects_table",
    "find_pareto_front",
    "find_sweet_spots",
    "fit_models",
    "measured_images",
    "predict_score",
    "principal_components",
    "response_table",
    "select_images",
    "setting_names",
    "times_table",
]
