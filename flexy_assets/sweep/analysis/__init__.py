"""The statistics of a sweep: correlations, responses to settings, recommended settings, and their uncertainty.

Every function takes one row an image (`SCORES_TABLE_SCHEMA`) and returns a frame with a declared schema. None raises
for sparse data: too few images, a constant column or a missing score become a null and a `note`. Intervals are 95 %;
they resample prompts where six or more repeat, else images. scikit-learn and scipy are imported where they are used,
so that the report and Dagster start without them.
"""

from flexy_assets.sweep.analysis.comparison import compare_groups as compare_groups
from flexy_assets.sweep.analysis.correlations import correlate_metrics as correlate_metrics
from flexy_assets.sweep.analysis.correlations import principal_components as principal_components
from flexy_assets.sweep.analysis.importance import explain_variance as explain_variance
from flexy_assets.sweep.analysis.response import diminishing_returns_table as diminishing_returns_table
from flexy_assets.sweep.analysis.response import effects_table as effects_table
from flexy_assets.sweep.analysis.response import regression_table as regression_table
from flexy_assets.sweep.analysis.response import response_table as response_table
from flexy_assets.sweep.analysis.response_model import MODELS as MODELS
from flexy_assets.sweep.analysis.response_model import FittedResponse as FittedResponse
from flexy_assets.sweep.analysis.response_model import fit_responses as fit_responses
from flexy_assets.sweep.analysis.response_model import make_grid as make_grid
from flexy_assets.sweep.analysis.rows import COLUMN_LABELS as COLUMN_LABELS
from flexy_assets.sweep.analysis.rows import METRIC_LABELS as METRIC_LABELS
from flexy_assets.sweep.analysis.rows import MIN_IMAGES as MIN_IMAGES
from flexy_assets.sweep.analysis.rows import NO_GUIDANCE as NO_GUIDANCE
from flexy_assets.sweep.analysis.rows import SCORES_TABLE_SCHEMA as SCORES_TABLE_SCHEMA
from flexy_assets.sweep.analysis.rows import SETTING_LABELS as SETTING_LABELS
from flexy_assets.sweep.analysis.rows import TARGET_LABELS as TARGET_LABELS
from flexy_assets.sweep.analysis.rows import add_overall as add_overall
from flexy_assets.sweep.analysis.rows import add_weighted_overall as add_weighted_overall
from flexy_assets.sweep.analysis.rows import effective_guidance as effective_guidance
from flexy_assets.sweep.analysis.rows import measured_images as measured_images
from flexy_assets.sweep.analysis.rows import select_images as select_images
from flexy_assets.sweep.analysis.rows import setting_names as setting_names
from flexy_assets.sweep.analysis.rows import split_by_engine as split_by_engine
from flexy_assets.sweep.analysis.rows import weigh_metrics as weigh_metrics
from flexy_assets.sweep.analysis.schemas import COMPONENTS_SCHEMA as COMPONENTS_SCHEMA
from flexy_assets.sweep.analysis.schemas import CORRELATIONS_SCHEMA as CORRELATIONS_SCHEMA
from flexy_assets.sweep.analysis.schemas import EFFECTS_SCHEMA as EFFECTS_SCHEMA
from flexy_assets.sweep.analysis.schemas import PARETO_SCHEMA as PARETO_SCHEMA
from flexy_assets.sweep.analysis.schemas import REGRESSION_SCHEMA as REGRESSION_SCHEMA
from flexy_assets.sweep.analysis.schemas import RESPONSE_SCHEMA as RESPONSE_SCHEMA
from flexy_assets.sweep.analysis.schemas import RETURNS_SCHEMA as RETURNS_SCHEMA
from flexy_assets.sweep.analysis.schemas import SWEEP_COMPARISON_SCHEMA as SWEEP_COMPARISON_SCHEMA
from flexy_assets.sweep.analysis.schemas import SWEET_SPOTS_SCHEMA as SWEET_SPOTS_SCHEMA
from flexy_assets.sweep.analysis.schemas import TIMES_SCHEMA as TIMES_SCHEMA
from flexy_assets.sweep.analysis.sweet_spots import VALUE_TOLERANCE as VALUE_TOLERANCE
from flexy_assets.sweep.analysis.sweet_spots import describe_advice as describe_advice
from flexy_assets.sweep.analysis.sweet_spots import find_pareto_front as find_pareto_front
from flexy_assets.sweep.analysis.sweet_spots import find_sweet_spots as find_sweet_spots
from flexy_assets.sweep.analysis.tables import AnalysisTables as AnalysisTables
from flexy_assets.sweep.analysis.times import TimeHeaps as TimeHeaps
from flexy_assets.sweep.analysis.times import find_time_heaps as find_time_heaps
from flexy_assets.sweep.analysis.times import times_table as times_table
