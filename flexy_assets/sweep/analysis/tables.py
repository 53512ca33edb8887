"""All that is said of one table of scores, in one hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import polars as pl

from flexy_assets.sweep.analysis.comparison import comparison
from flexy_assets.sweep.analysis.correlations import components, correlations
from flexy_assets.sweep.analysis.model_selection import regression
from flexy_assets.sweep.analysis.response import diminishing_returns, effects, response
from flexy_assets.sweep.analysis.sweet_spots import pareto_front, sweet_spots
from flexy_assets.sweep.analysis.times import times


@dataclass(frozen=True)
class Tables:
    """One of each; `returns` is of `diminishing_returns`, `front` of `pareto_front`, `spots` of `sweet_spots`."""

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
    ) -> Tables:
        """Every table, made anew from the scores."""
        models = regression(scores)
        return cls(
            correlations=correlations(scores),
            components=components(scores),
            times=times(scores),
            regression=models,
            response=response(scores, models, weights),
            effects=effects(scores, models, weights),
            returns=diminishing_returns(scores, models, weights, least_gain),
            front=pareto_front(scores, models, weights),
            spots=sweet_spots(scores, models, weights),
            comparison=comparison(scores, models, weights),
        )

    def of_engine(self, engine: str) -> Tables:
        """The rows of one engine."""
        rows = pl.col("engine") == engine
        return replace(self, **{field.name: getattr(self, field.name).filter(rows) for field in fields(self)})
