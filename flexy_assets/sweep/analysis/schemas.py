"""The columns of the analysis's tables."""

from typing import Final

import polars as pl

Schema = dict[str, pl.DataType]


def _strings(*names: str) -> Schema:
    return dict.fromkeys(names, pl.String())


def _integers(*names: str) -> Schema:
    return dict.fromkeys(names, pl.Int64())


def _floats(*names: str) -> Schema:
    return dict.fromkeys(names, pl.Float64())


CORRELATIONS_SCHEMA: Final[Schema] = {
    **_strings("engine", "left", "right"),
    **_integers("n"),
    **_floats("pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high"),
    **_floats("within", "within_low", "within_high"),
    **_integers("within_n", "clusters"),
    **_strings("clusters_by", "note"),
}
COMPONENTS_SCHEMA: Final[Schema] = {
    **_strings("engine"),
    **_integers("component", "n"),
    **_floats("share", "share_low", "share_high"),
    "loadings": pl.List(pl.Struct(_strings("metric") | _floats("loading", "low", "high"))),
    **_strings("note"),
}
TIMES_SCHEMA: Final[Schema] = {
    **_strings("engine"),
    **_integers("n"),
    **_floats("base", "base_low", "base_high", "a_step", "a_step_low", "a_step_high"),
    **_floats("guided_step", "guided_step_low", "guided_step_high", "r2"),
    **_integers("outliers"),
    **_strings("note"),
}
REGRESSION_SCHEMA: Final[Schema] = {
    **_strings("engine", "target", "model"),
    **_integers("n"),
    **_floats("weight", "r2", "rmse", "flat_p", "prompt_share", "overall_weight"),
    **_integers("clusters"),
    **_strings("clusters_by", "note"),
}
RESPONSE_SCHEMA: Final[Schema] = {
    **_strings("engine", "target", "curve"),
    **_integers("steps"),
    **_floats("guidance", "predicted", "low", "high", "slope", "slope_low", "slope_high"),
    **_integers("images"),
    **_strings("note"),
}
EFFECTS_SCHEMA: Final[Schema] = {
    **_strings("engine", "target", "effect"),
    **_integers("n", "steps_from", "steps_to"),
    **_floats("guidance_from", "guidance_to", "change", "low", "high", "p"),
    **_strings("note"),
}
RETURNS_SCHEMA: Final[Schema] = {
    **_strings("engine", "target"),
    **_integers("n"),
    **_floats("least_gain"),
    **_integers("steps_from", "steps_to", "beyond", "low", "high"),
    **_strings("summary", "note"),
}
SWEET_SPOTS_SCHEMA: Final[Schema] = {
    **_strings("engine", "target"),
    **_integers("n", "steps"),
    **_floats("guidance", "predicted", "low", "high", "optimism", "seconds"),
    **_integers("steps_low", "steps_high"),
    **_floats("guidance_low", "guidance_high", "region_share"),
    "region": pl.List(pl.Struct({"steps": pl.Int64(), "guidance": pl.Float64()})),
    **_floats("flat_p", "seconds_share", "loss", "loss_high"),
    **_strings("reason", "summary", "note"),
}
PARETO_SCHEMA: Final[Schema] = {
    **_strings("engine", "target"),
    **_integers("steps"),
    **_floats("guidance", "seconds", "predicted", "low", "high"),
    "on_front": pl.Boolean(),
    **_floats("front_probability"),
    **_strings("note"),
}
SWEEP_COMPARISON_SCHEMA: Final[Schema] = {
    **_strings("by", "engine", "name", "target"),
    **_integers("n"),
    **_floats("mean", "low", "high", "adjusted", "adjusted_low", "adjusted_high", "seconds"),
    **_integers("steps_from", "steps_to"),
    **_floats("guidance_from", "guidance_to"),
    **_strings("note"),
}
