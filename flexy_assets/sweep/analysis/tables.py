"""All tables of an analysis of one table of scores."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import polars as pl

from flexy_assets.sweep.analysis.comparison import compare_groups
from flexy_assets.sweep.analysis.correlations import correlate_metrics, principal_components
from flexy_assets.sweep.analysis.response import (
    diminishing_returns_table,
    effects_table,
    regression_table,
    response_table,
)
from flexy_assets.sweep.analysis.response_model import fit_responses
from flexy_assets.sweep.analysis.sweet_spots import find_pareto_front, find_sweet_spots
from flexy_assets.sweep.analysis.times import times_table


@dataclass(frozen=True)
class AnalysisTables:
    """One table of each kind; `returns` is `diminishing_returns`, `front` `pareto_front`, `spots` `sweet_spots`."""

    correlations: pl.DataFrame
    components: pl.DataFrame
    times: pl.DataFrame
    regression: pl.DataFrame
    response: pl.DataFrame
    effects: pl.DataFrame
    returns: pl.DataFrame
    front: pl.DataFrame
    spots: pl.DataFrame
    comparison: pl.DataFrame

    @classmethod
    def of(
        cls,
        scores: pl.DataFrame,
        weights: Mapping[str, float] | None = None,
        least_gain: Mapping[str, float] | None = None,
        suspect: Mapping[str, str] | None = None,
    ) -> Self:
        """Compute every table from the scores."""
        responses = fit_responses(scores, weights, suspect)
        return cls(
            correlations=correlate_metrics(scores),
            components=principal_components(scores),
            times=times_table(scores),
            regression=regression_table(responses),
            response=response_table(responses),
            effects=effects_table(responses),
            returns=diminishing_returns_table(responses, least_gain),
            front=find_pareto_front(responses),
            spots=find_sweet_spots(responses),
            comparison=compare_groups(scores, responses),
        )

    def of_engine(self, engine: str) -> Self:
        """Return the rows of one engine."""
        rows = pl.col("engine") == engine
        return replace(self, **{field.name: getattr(self, field.name).filter(rows) for field in fields(self)})
