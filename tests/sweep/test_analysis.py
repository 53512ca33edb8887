"""The analysis finds what was planted, calls noise noise, and survives thin data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flexy_assets.sweep.analysis import (
    CORRELATIONS,
    LEAST_IMAGES,
    METRICS,
    MODELS,
    NO_GUIDANCE,
    REGRESSION,
    SCORES,
    SPOTS,
    VALUE_TOLERANCE,
    correlations,
    predict,
    regression,
    sweet_spots,
    with_overall,
)

BEST_STEPS, BEST_GUIDANCE = 24, 6.0


def planted(images: int = 600, seed: int = 1, engine: str = "realvis_xl", prompts: int = 12) -> pl.DataFrame:
    """A sweep whose truth is known.

    CLIP and HPS peak at 24 steps and guidance 6 with R² 0.5; V1 follows CLIP's noise with correlation 0.6;
    V2 is noise; an image takes 0.2 s and 0.05 s a step.
    """
    rng = np.random.default_rng(seed)
    steps = rng.integers(4, 61, images)
    guidance = rng.uniform(0.5, 12, images)
    surface = -((np.log2(steps / BEST_STEPS)) ** 2) - ((np.maximum(guidance, 1) - BEST_GUIDANCE) / 4) ** 2
    noise = rng.standard_normal((4, images)) * surface.std()
    return pl.DataFrame(
        {
            "image_id": [f"{engine}-{index:05d}" for index in range(images)],
            "run_id": ["4b7193fd"] * images,
            "batch": ["4b7193fd_0000"] * images,
            "engine": [engine] * images,
            "prompt": [f"prompt {index}" for index in rng.integers(0, prompts, images)],
            "steps": steps,
            "guidance": guidance,
            "seed": np.arange(images),
            "elapsed_ms": (200 + 50 * steps + rng.normal(0, 10, images)).astype(int),
            "image_path": [f"{index}.webp" for index in range(images)],
            "clip_score": 0.25 + 0.01 * (surface + noise[0]),
            "aesthetic_score": 5.0 + 0.6 * noise[0] + 0.8 * noise[1],
            "aes_v2_score": 5.0 + noise[2],
            "hps_v2_score": 0.28 + 0.01 * (surface + noise[3]),
        },
        schema_overrides=SCORES,
    )


@pytest.fixture(scope="module")
def sweep() -> pl.DataFrame:
    return planted()


@pytest.fixture(scope="module")
def models(sweep: pl.DataFrame) -> pl.DataFrame:
    return regression(sweep)


@pytest.fixture(scope="module")
def spots(sweep: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    return sweet_spots(sweep, models)


def of(table: pl.DataFrame, **values: object) -> dict[str, Any]:
    """The one row with these values."""
    return table.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in values.items()), named=True)


def test_a_planted_surface_is_chosen_with_its_planted_r2(models: pl.DataFrame) -> None:
    for metric in ("clip_score", "hps_v2_score"):
        row = of(models.filter("chosen"), metric=metric)
        assert row["model"] == "quadratic"
        assert row["r2"] == pytest.approx(0.5, abs=0.06)
        assert row["folds_by"] == "prompt"


def test_a_metric_of_noise_is_called_flat(models: pl.DataFrame, spots: pl.DataFrame) -> None:
    assert of(models.filter("chosen"), metric="aes_v2_score")["model"] == "mean"
    spot = of(spots, target="aes_v2_score")
    assert (spot["steps"], spot["guidance"], spot["predicted"]) == (None, None, None)
    assert spot["note"] == "does not move with steps or guidance"


def test_noise_is_seldom_called_a_trend() -> None:
    called = []
    for seed in range(10):
        noise = np.random.default_rng(seed).standard_normal((len(METRICS), 60))
        scores = planted(60).with_columns(pl.Series(m, values) for m, values in zip(METRICS, noise, strict=True))
        called += regression(scores).filter("chosen")["model"].to_list()
    assert len(called) == 40
    assert sum(model != "mean" for model in called) <= 4


def test_r2_is_out_of_fold_so_a_model_of_noise_falls_below_zero() -> None:
    assert of(regression(planted(60)), metric="aes_v2_score", model="quadratic")["r2"] < 0


def test_prompts_are_left_out_whole() -> None:
    """A prompt's own slope, with a mean of 0 over prompts, must not be learnt from that prompt's images."""
    sweep = planted(400, prompts=5)
    own = {f"prompt {index}": slope for index, slope in enumerate((4.0, -4.0, 3.0, -3.0, 0.0))}
    slopes = pl.col("prompt").replace_strict(own, return_dtype=pl.Float64)
    sweep = sweep.with_columns(clip_score=slopes * (pl.col("steps").log(2) - 4.7))
    linear = of(regression(sweep), metric="clip_score", model="linear")
    assert linear["folds_by"] == "prompt"
    assert linear["r2"] < -0.05
    assert of(regression(planted(400, prompts=4)), metric="clip_score", model="linear")["folds_by"] == "image"


def test_the_optimum_is_near_the_planted_one_and_inside_its_interval(spots: pl.DataFrame) -> None:
    for target in ("clip_score", "hps_v2_score", "overall"):
        spot = of(spots, target=target)
        assert spot["steps"] == pytest.approx(BEST_STEPS, abs=4)
        assert spot["guidance"] == pytest.approx(BEST_GUIDANCE, abs=0.6)
        assert spot["steps_low"] <= spot["steps"] <= spot["steps_high"]
        assert spot["guidance_low"] <= spot["guidance"] <= spot["guidance_high"]
        assert spot["seconds"] == pytest.approx(0.2 + 0.05 * spot["steps"], rel=0.02)


def test_the_value_spot_is_quicker_and_hardly_worse(spots: pl.DataFrame) -> None:
    best, value = of(spots, target="overall"), of(spots, target="value")
    assert value["seconds"] < 0.9 * best["seconds"]
    assert best["predicted"] - VALUE_TOLERANCE <= value["predicted"] <= best["predicted"]


def test_without_times_the_value_spot_is_that_with_the_fewest_steps(
    sweep: pl.DataFrame, models: pl.DataFrame, spots: pl.DataFrame
) -> None:
    untimed = sweet_spots(sweep.with_columns(elapsed_ms=pl.lit(None)), models)
    assert of(untimed, target="value")["steps"] == of(spots, target="value")["steps"]
    assert untimed["seconds"].null_count() == untimed.height


def test_unguided_images_are_timed_by_themselves() -> None:
    """Guidance runs the model twice; a sweep with enough unguided images sees that they are quicker."""
    sweep = planted(600)
    twice = pl.when(pl.col("guidance") > 1).then(2).otherwise(1)
    downhill = -0.01 * pl.col("guidance").clip(1) + 0.0001 * pl.col("clip_score")
    sweep = sweep.with_columns(elapsed_ms=100 + 30 * pl.col("steps") * twice, clip_score=downhill)
    sweep = sweep.with_columns(pl.lit(None, pl.Float64).alias(m) for m in METRICS if m != "clip_score")
    best = of(sweet_spots(sweep, regression(sweep)), target="clip_score")
    assert best["guidance"] == 1
    assert best["seconds"] == pytest.approx(0.1 + 0.03 * best["steps"], rel=0.02)
    assert "edge of the guidance" in best["note"]


def test_predictions_can_be_made_from_the_stored_table_alone(
    sweep: pl.DataFrame, models: pl.DataFrame, tmp_path: Path
) -> None:
    models.write_parquet(tmp_path / "models.parquet")
    row = of(pl.read_parquet(tmp_path / "models.parquet").filter("chosen"), metric="clip_score")
    assert predict(row, [BEST_STEPS], [BEST_GUIDANCE]) == pytest.approx(0.25, abs=0.003)
    assert predict(row, np.arange(4, 61)[:, None], np.arange(1, 9)).shape == (57, 8)
    misses = sweep["clip_score"] - predict(row, sweep["steps"], sweep["guidance"])
    assert misses.std() == pytest.approx(row["rmse"], rel=0.05)


def test_the_intercept_is_the_middle_of_the_surface_even_where_guidance_makes_no_parabola() -> None:
    model = of(regression(THIN["two guidances"](planted())), metric="clip_score", model="quadratic")
    intercept = {c["term"]: c["value"] for c in model["coefficients"]}["intercept"]
    assert intercept == pytest.approx(predict(model, 2 ** model["steps_mean"], model["guidance_mean"]))
    assert intercept == pytest.approx(0.24, abs=0.01)


def test_guidance_at_or_below_one_is_the_same_setting(models: pl.DataFrame) -> None:
    row = of(models.filter("chosen"), metric="clip_score")
    assert predict(row, 20, 0.5) == predict(row, 20, 1.0) != predict(row, 20, 1.5)


def test_intervals_hold_a_planted_correlation_and_agree_with_scipy(sweep: pl.DataFrame) -> None:
    from scipy.stats import spearmanr

    noise = np.random.default_rng(5).standard_normal((2, sweep.height))
    left, right = noise[0], 0.6 * noise[0] + 0.8 * noise[1]
    related = sweep.with_columns(clip_score=pl.Series(left), hps_v2_score=pl.Series(right))
    pair = of(correlations(related), left="clip_score", right="hps_v2_score")
    assert pair["n"] == sweep.height
    assert pair["pearson_low"] < 0.6 < pair["pearson_high"]
    planted_rho = 6 / np.pi * np.arcsin(0.6 / 2)
    assert pair["spearman_low"] < planted_rho < pair["spearman_high"]
    assert pair["spearman_high"] - pair["spearman_low"] < 0.15
    assert pair["spearman"] == pytest.approx(spearmanr(left, right).statistic)


def test_spearman_shares_ranks_among_ties(sweep: pl.DataFrame) -> None:
    from scipy.stats import spearmanr

    pair = of(correlations(sweep), left="steps", right="clip_score")
    assert pair["spearman"] == pytest.approx(spearmanr(sweep["steps"], sweep["clip_score"]).statistic)


def test_the_same_seed_and_images_in_any_order_give_the_same_tables(
    sweep: pl.DataFrame, models: pl.DataFrame, spots: pl.DataFrame
) -> None:
    shuffled = sweep.sample(fraction=1, shuffle=True, seed=3)
    assert regression(shuffled).equals(models)
    assert sweet_spots(shuffled, models).equals(spots)
    assert correlations(shuffled, seed=7).equals(correlations(sweep, seed=7))
    assert not correlations(sweep, seed=7).equals(correlations(sweep, seed=8))


def test_each_metric_uses_the_images_that_have_it(sweep: pl.DataFrame) -> None:
    number = pl.int_range(pl.len())
    holed = sweep.with_columns(
        clip_score=pl.when(number >= 100).then("clip_score"),
        hps_v2_score=pl.when(number < 500).then("hps_v2_score").otherwise(float("nan")),
    )
    models = regression(holed).filter("chosen")
    counts = dict(zip(models["metric"], models["n"], strict=True))
    assert counts == {"clip_score": 500, "aesthetic_score": 600, "aes_v2_score": 600, "hps_v2_score": 500}
    assert of(correlations(holed), left="clip_score", right="hps_v2_score")["n"] == 400


def test_engines_are_never_mixed() -> None:
    unguided = THIN["no guidance"](planted(200, engine="flux_schnell"))
    both = pl.concat([planted(200), planted(200, seed=9, engine="sd3"), unguided.match_to_schema(SCORES)])
    for alone in (planted(200, seed=9, engine="sd3"), unguided):
        of_engine = pl.col("engine") == alone["engine"][0]
        assert regression(both).filter(of_engine).equals(regression(alone))
        assert correlations(both).filter(of_engine).equals(correlations(alone))


THIN: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "no rows": lambda s: s.clear(),
    "one row": lambda s: s.head(1),
    "three rows": lambda s: s.head(3),
    "nine rows": lambda s: s.head(LEAST_IMAGES - 1),
    "ten rows": lambda s: s.head(LEAST_IMAGES),
    "no scores": lambda s: s.with_columns(pl.lit(None).alias(metric) for metric in METRICS),
    "only NaN": lambda s: s.with_columns(pl.lit(float("nan")).alias(metric) for metric in METRICS),
    "infinite": lambda s: s.with_columns(clip_score=pl.lit(float("inf"))),
    "constant scores": lambda s: s.with_columns(pl.lit(0.25).alias(metric) for metric in METRICS),
    "one setting": lambda s: s.with_columns(steps=pl.lit(20), guidance=pl.lit(4.0)),
    "one guidance": lambda s: s.with_columns(guidance=pl.lit(0.5)),
    "two guidances": lambda s: s.with_columns(guidance=pl.when(pl.col("seed") % 2 == 0).then(2.0).otherwise(7)),
    "no settings": lambda s: s.with_columns(steps=pl.lit(None), guidance=pl.lit(None)),
    "no guidance": lambda s: s.with_columns(guidance=pl.lit(None)),
    "no prompts": lambda s: s.with_columns(prompt=pl.lit(None)),
    "no engine": lambda s: s.with_columns(engine=pl.lit(None)),
    "steps of zero": lambda s: s.with_columns(steps=pl.lit(0)),
    "one timed": lambda s: s.with_columns(elapsed_ms=pl.when(pl.col("seed") == 0).then("elapsed_ms")),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("thin", THIN)
def test_thin_data_gives_tables_and_notes_but_no_exception(thin: str) -> None:
    scores = THIN[thin](planted(60))
    models = regression(scores)
    tables = {"c": correlations(scores), "r": models, "s": sweet_spots(scores, models)}
    for table, schema in zip(tables.values(), (CORRELATIONS, REGRESSION, SPOTS), strict=True):
        assert table.schema == pl.Schema(schema)
        assert not table.select(pl.col(pl.Float64).is_nan().any()).transpose().to_series().any()
    engines = with_overall(scores)["engine"].n_unique()
    assert models.height == engines * len(METRICS) * len(MODELS)
    assert tables["s"].height == engines * (len(METRICS) + 2)
    assert models.filter("chosen").height == engines * len(METRICS)


@pytest.mark.parametrize(
    ("thin", "note"),
    [
        ("nine rows", "too few images (9; 10 needed)"),
        ("constant scores", "every image has the same score"),
        ("one guidance", "guidance never varies"),
        ("one setting", "steps never varies; guidance never varies"),
        ("no guidance", NO_GUIDANCE),
    ],
)
def test_a_note_says_what_is_missing(thin: str, note: str) -> None:
    models = regression(THIN[thin](planted(60)))
    assert of(models.filter("chosen"), metric="clip_score")["note"] == note


def test_one_guidance_still_finds_the_steps() -> None:
    sweep = THIN["one guidance"](planted())
    spot = of(sweet_spots(sweep, regression(sweep)), target="clip_score")
    assert spot["steps"] == pytest.approx(BEST_STEPS, abs=5)
    assert (spot["guidance"], spot["guidance_low"], spot["guidance_high"]) == (1, 1, 1)


def test_an_engine_without_guidance_is_judged_by_its_steps_as_one_that_never_varies_it_is() -> None:
    sweep = planted(engine="flux_schnell")
    without, constant = THIN["no guidance"](sweep), THIN["one guidance"](sweep)
    models = regression(without)
    assert models.drop("note").equals(regression(constant).drop("note"))
    spots = sweet_spots(without, models)
    guidance = ["guidance", "guidance_low", "guidance_high"]
    assert spots.drop(*guidance, "note").equals(sweet_spots(constant, regression(constant)).drop(*guidance, "note"))
    assert of(spots, target="overall")["steps"] == pytest.approx(BEST_STEPS, abs=5)
    assert spots.select(pl.col(guidance).null_count()).row(0) == (6, 6, 6)
    assert all(NO_GUIDANCE in note and "too few" not in note for note in spots["note"])
    assert of(spots, target="aes_v2_score")["note"] == f"does not move with steps; {NO_GUIDANCE}"
    pairs = correlations(without)
    assert pairs.equals(correlations(constant).filter(pl.col("left") != "guidance"))
    assert of(pairs, left="steps", right="clip_score")["n"] == 600


def test_an_image_without_guidance_among_those_that_have_it_is_left_out() -> None:
    holed = planted(200).with_columns(guidance=pl.when(pl.col("seed") >= 60).then("guidance"))
    whole = holed.drop_nulls("guidance")
    models = regression(holed)
    assert models.equals(regression(whole))
    assert sweet_spots(holed, models).equals(sweet_spots(whole, models))
    assert of(correlations(holed), left="guidance", right="clip_score")["n"] == 140
    assert of(correlations(holed), left="steps", right="clip_score")["n"] == 200


def test_the_analysis_loads_no_framework() -> None:
    check = (
        "import sys, flexy_assets.sweep.analysis, flexy_assets.sweep.report;"
        "print([m for m in ('torch', 'dagster', 'sklearn', 'scipy', 'plotly') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "[]\n"
