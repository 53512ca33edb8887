"""Tables as pictures: each is drawn, small and without a background; one with nothing to draw gives none."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import polars as pl
import pytest
from PIL import Image

from flexy_assets.edits import comparison
from flexy_assets.edits.plots import plot_edit_comparison
from flexy_assets.reporting import columns
from flexy_assets.sweep import analysis, plots

pytestmark = pytest.mark.usefixtures("drawn_figures")

ENGINES = ("one", "another")
TABLES: dict[str, Callable[[pl.DataFrame, list[analysis.FittedResponse]], pl.DataFrame]] = {
    "metric_correlations": lambda scores, _: analysis.correlate_metrics(scores),
    "sweep_response": lambda _, responses: analysis.response_table(responses),
    "sweep_effects": lambda _, responses: analysis.effects_table(responses),
    "diminishing_returns": lambda _, responses: analysis.diminishing_returns_table(responses),
    "pareto_front": lambda _, responses: analysis.find_pareto_front(responses),
    "sweet_spots": lambda _, responses: analysis.find_sweet_spots(responses),
    "sweep_comparison": analysis.compare_groups,
}


def made_up(images: int, engines: tuple[str, ...], guided: bool = True) -> pl.DataFrame:
    """Scores that rise with steps and fall with guidance."""
    rng = np.random.default_rng(4)
    rows = []
    for engine in engines:
        for number in range(images):
            steps, guidance = int(rng.integers(2, 40)), float(rng.uniform(1, 12))
            score = np.log2(steps) - 0.2 * guidance + rng.normal(0, 0.3)
            row = {"image_id": f"{engine}{number}", "run_id": engine, "engine": engine, "prompt": f"{number % 8}"}
            row |= {"steps": steps, "guidance": guidance if guided else None, "elapsed_ms": 20 * steps}
            rows.append(row | dict.fromkeys(analysis.METRIC_LABELS, score))
    return pl.DataFrame(rows, schema=analysis.SCORES_TABLE_SCHEMA)


def drawn(name: str, scores: pl.DataFrame, table: pl.DataFrame) -> bytes | None:
    return plots.plot_sweet_spots(table, scores) if name == "sweet_spots" else getattr(plots, f"plot_{name}")(table)


@pytest.fixture(scope="module")
def two() -> tuple[pl.DataFrame, list[analysis.FittedResponse]]:
    """Two engines' scores and their fitted responses."""
    scores = made_up(60, ENGINES)
    return scores, analysis.fit_responses(scores)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_becomes_a_small_picture_without_a_background(
    name: str, two: tuple[pl.DataFrame, list[analysis.FittedResponse]]
) -> None:
    webp = drawn(name, two[0], TABLES[name](*two))
    assert webp is not None and len(webp) <= 80_000
    picture = Image.open(BytesIO(webp))
    assert (picture.format, picture.mode) == ("WEBP", "RGBA")
    assert picture.getpixel((0, 0))[3] == 0 and picture.getchannel("A").getextrema()[1] == 255
    assert "data:image/webp;base64," in columns.plot_metadata(name, webp)["plot"].value


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_nothing_to_draw_gives_no_picture(name: str) -> None:
    for scores in (made_up(0, ENGINES), made_up(3, ("one",))):
        table = TABLES[name](scores, analysis.fit_responses(scores))
        assert drawn(name, scores, table) is None
    assert columns.plot_metadata(name, None) == {}


def test_an_engine_without_guidance_has_the_plots_that_need_none() -> None:
    scores = made_up(30, ("one",), guided=False)
    responses = analysis.fit_responses(scores)
    assert plots.plot_sweep_response(analysis.response_table(responses))
    assert plots.plot_sweet_spots(analysis.find_sweet_spots(responses), scores) is None


def test_one_engine_is_not_compared_with_itself() -> None:
    scores = made_up(30, ("one",))
    assert plots.plot_sweep_comparison(analysis.compare_groups(scores, analysis.fit_responses(scores))) is None


def test_each_searchs_means_are_drawn_by_metric() -> None:
    rows = [
        {"metric": metric, "role": "ground truth", "method": method, "budget": budget, "n": 4}
        | {"mean": budget / 10, "low": budget / 11, "high": budget / 9}
        for metric in ("truth", "pf", "cons", "lpips", "layout")
        for method in ("eacps", "ttflux")
        for budget in (4, 8)
    ]
    webp = plot_edit_comparison(pl.DataFrame(rows, schema=comparison.MEAN_SCORES_SCHEMA))
    assert webp and len(webp) <= 80_000
    assert plot_edit_comparison(pl.DataFrame(schema=comparison.MEAN_SCORES_SCHEMA)) is None
