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
from polars.testing import assert_frame_equal

from benchmarks.surfaces import SURFACE_KINDS, evaluate_analysis, evaluate_correlations, synthetic_sweep
from flexy_assets.sweep.analysis import (
    COMPONENTS_SCHEMA,
    CORRELATIONS_SCHEMA,
    EFFECTS_SCHEMA,
    METRIC_LABELS,
    MIN_IMAGES,
    MODELS,
    NO_GUIDANCE,
    PARETO_SCHEMA,
    REGRESSION_SCHEMA,
    RESPONSE_SCHEMA,
    RETURNS_SCHEMA,
    SCORES_TABLE_SCHEMA,
    SWEEP_COMPARISON_SCHEMA,
    SWEET_SPOTS_SCHEMA,
    TIMES_SCHEMA,
    VALUE_TOLERANCE,
    add_overall,
    compare_groups,
    correlate_metrics,
    diminishing_returns_table,
    effects_table,
    find_pareto_front,
    find_sweet_spots,
    fit_models,
    predict_score,
    principal_components,
    response_table,
    select_images,
    times_table,
)
from flexy_assets.sweep.report.comparison_panels import comparison_panels
from resources.errors import BadInputError

pytestmark = pytest.mark.slow(seconds=120)

BEST_STEPS, BEST_GUIDANCE = 24, 4.0


def planted(images: int = 600, seed: int = 1, engine: str = "realvis_xl", prompts: int = 12) -> pl.DataFrame:
    """A sweep whose truth is known.

    CLIP and HPS peak at 24 steps and guidance 4 with R² 0.5; V1 follows CLIP's noise with correlation 0.6;
    V2 is noise; an image takes 0.2 s and 0.05 s a step.
    """
    rng = np.random.default_rng(seed)
    steps = rng.integers(4, 61, images)
    guidance = rng.uniform(0.5, 12, images)
    surface = -((np.log2(steps / BEST_STEPS)) ** 2) - (np.log2(np.maximum(guidance, 1) / BEST_GUIDANCE)) ** 2
    noise = rng.standard_normal((4, images)) * surface.std()
    return pl.DataFrame(
        {
            "image_id": [f"{engine}-{index:05d}" for index in range(images)],
            "run_id": ["4b7193fd"] * images,
            "batch": ["4b7193fd_0000"] * images,
            "engine": [engine] * images,
            "prompt": [f"prompt {index}" for index in rng.integers(0, prompts, images)],
            "category": [None] * images,
            "complexity": [None] * images,
            "steps": steps,
            "guidance": guidance,
            "seed": np.arange(images),
            "elapsed_ms": (200 + 50 * steps + rng.normal(0, 10, images)).astype(int),
            "image_path": [f"{index}.webp" for index in range(images)],
            "weights": [None] * images,
            "clip_score": 0.25 + 0.01 * (surface + noise[0]),
            "aesthetic_score": 5.0 + 0.6 * noise[0] + 0.8 * noise[1],
            "aes_v2_score": 5.0 + noise[2],
            "hps_v2_score": 0.28 + 0.01 * (surface + noise[3]),
        },
        schema_overrides=SCORES_TABLE_SCHEMA,
    )


@pytest.fixture(scope="module")
def sweep() -> pl.DataFrame:
    return planted()


@pytest.fixture(scope="module")
def models(sweep: pl.DataFrame) -> pl.DataFrame:
    return fit_models(sweep)


@pytest.fixture(scope="module")
def spots(sweep: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    return find_sweet_spots(sweep, models)


def of(table: pl.DataFrame, **values: object) -> dict[str, Any]:
    """The one row with these values."""
    return table.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in values.items()), named=True)


def test_a_planted_surface_is_chosen_with_its_planted_r2(models: pl.DataFrame) -> None:
    for metric in ("clip_score", "hps_v2_score"):
        row = of(models.filter("chosen"), metric=metric)
        assert row["model"] != "linear"
        assert row["r2"] == pytest.approx(0.5, abs=0.06)
        assert row["folds_by"] == "prompt"


def test_a_metric_of_noise_is_called_flat(models: pl.DataFrame, spots: pl.DataFrame) -> None:
    assert of(models.filter("chosen"), metric="aes_v2_score")["model"] == "mean"
    spot = of(spots, target="aes_v2_score")
    assert (spot["steps"], spot["guidance"], spot["predicted"]) == (None, None, None)
    assert spot["note"] == "no significant effect of steps or guidance"


def test_noise_is_seldom_called_a_trend() -> None:
    called = []
    for seed in range(10):
        noise = np.random.default_rng(seed).standard_normal((len(METRIC_LABELS), 60))
        scores = planted(60).with_columns(pl.Series(m, values) for m, values in zip(METRIC_LABELS, noise, strict=True))
        called += fit_models(scores).filter("chosen")["model"].to_list()
    assert len(called) == 40
    assert sum(model != "mean" for model in called) <= 4


def test_r2_is_out_of_fold_so_a_model_of_noise_falls_below_zero() -> None:
    assert of(fit_models(planted(60)), metric="aes_v2_score", model="quadratic")["r2"] < 0


def test_prompts_are_left_out_whole() -> None:
    """A prompt's own slope, with a mean of 0 over prompts, must not be learnt from that prompt's images."""
    sweep = planted(400, prompts=5)
    own = {f"prompt {index}": slope for index, slope in enumerate((4.0, -4.0, 3.0, -3.0, 0.0))}
    slopes = pl.col("prompt").replace_strict(own, return_dtype=pl.Float64)
    sweep = sweep.with_columns(clip_score=slopes * (pl.col("steps").log(2) - 4.7))
    linear = of(fit_models(sweep), metric="clip_score", model="linear")
    assert linear["folds_by"] == "prompt"
    assert linear["r2"] < -0.05
    assert of(fit_models(planted(400, prompts=4)), metric="clip_score", model="linear")["folds_by"] == "image"


def test_the_optimum_is_near_the_planted_one_and_inside_its_interval() -> None:
    found = find_sweet_spots(*with_models(planted(1500)))
    for target in ("clip_score", "hps_v2_score", "overall"):
        spot = of(found, target=target)
        assert abs(np.log2(spot["steps"] / BEST_STEPS)) < 0.3
        assert abs(np.log2(spot["guidance"] / BEST_GUIDANCE)) < 0.3
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
    untimed = find_sweet_spots(sweep.with_columns(elapsed_ms=pl.lit(None)), models)
    assert of(untimed, target="value")["steps"] == of(spots, target="value")["steps"]
    assert untimed["seconds"].null_count() == untimed.height


def test_unguided_images_are_timed_by_themselves() -> None:
    """Guidance runs the model twice; a sweep with enough unguided images sees that they are quicker."""
    sweep = planted(600)
    twice = pl.when(pl.col("guidance") > 1).then(2).otherwise(1)
    downhill = -0.01 * pl.col("guidance").clip(1) + 0.0001 * pl.col("clip_score")
    sweep = sweep.with_columns(elapsed_ms=100 + 30 * pl.col("steps") * twice, clip_score=downhill)
    sweep = sweep.with_columns(pl.lit(None, pl.Float64).alias(m) for m in METRIC_LABELS if m != "clip_score")
    best = of(find_sweet_spots(sweep, fit_models(sweep)), target="clip_score")
    assert best["guidance"] == 1
    assert best["seconds"] == pytest.approx(0.1 + 0.03 * best["steps"], rel=0.02)
    assert "edge of the guidance" in best["note"]


def test_predictions_can_be_made_from_the_stored_table_alone(
    sweep: pl.DataFrame, models: pl.DataFrame, tmp_path: Path
) -> None:
    models.write_parquet(tmp_path / "models.parquet")
    row = of(pl.read_parquet(tmp_path / "models.parquet").filter("chosen"), metric="clip_score")
    assert predict_score(row, [BEST_STEPS], [BEST_GUIDANCE]) == pytest.approx(0.25, abs=0.003)
    assert predict_score(row, np.arange(4, 61)[:, None], np.arange(1, 9)).shape == (57, 8)
    misses = sweep["clip_score"] - predict_score(row, sweep["steps"], sweep["guidance"])
    assert misses.std() == pytest.approx(row["rmse"], rel=0.05)


def test_the_intercept_is_the_middle_of_the_surface_even_where_guidance_makes_no_parabola() -> None:
    model = of(fit_models(THIN["two guidances"](planted())), metric="clip_score", model="quadratic")
    intercept = {c["term"]: c["value"] for c in model["coefficients"]}["intercept"]
    assert intercept == pytest.approx(predict_score(model, 2 ** model["steps_mean"], 2 ** model["guidance_mean"]))
    assert intercept == pytest.approx(0.24, abs=0.01)


def test_guidance_at_or_below_one_is_the_same_setting(models: pl.DataFrame) -> None:
    row = of(models.filter("chosen"), metric="clip_score")
    assert predict_score(row, 20, 0.5) == predict_score(row, 20, 1.0) != predict_score(row, 20, 1.5)


def test_intervals_hold_a_planted_correlation_and_agree_with_scipy(sweep: pl.DataFrame) -> None:
    from scipy.stats import spearmanr

    noise = np.random.default_rng(5).standard_normal((2, sweep.height))
    left, right = noise[0], 0.6 * noise[0] + 0.8 * noise[1]
    related = sweep.with_columns(clip_score=pl.Series(left), hps_v2_score=pl.Series(right))
    pair = of(correlate_metrics(related), left="clip_score", right="hps_v2_score")
    assert pair["n"] == sweep.height
    assert pair["pearson_low"] < 0.6 < pair["pearson_high"]
    planted_rho = 6 / np.pi * np.arcsin(0.6 / 2)
    assert pair["spearman_low"] < planted_rho < pair["spearman_high"]
    assert pair["spearman_high"] - pair["spearman_low"] < 0.2
    assert pair["spearman"] == pytest.approx(spearmanr(left, right).statistic)


def test_spearman_shares_ranks_among_ties(sweep: pl.DataFrame) -> None:
    from scipy.stats import spearmanr

    pair = of(correlate_metrics(sweep), left="steps", right="clip_score")
    assert pair["spearman"] == pytest.approx(spearmanr(sweep["steps"], sweep["clip_score"]).statistic)


def test_the_same_seed_and_images_in_any_order_give_the_same_tables(
    sweep: pl.DataFrame, models: pl.DataFrame, spots: pl.DataFrame
) -> None:
    shuffled = sweep.sample(fraction=1, shuffle=True, seed=3)
    assert fit_models(shuffled).equals(models)
    assert find_sweet_spots(shuffled, models).equals(spots)
    assert_frame_equal(correlate_metrics(shuffled), correlate_metrics(sweep))
    assert not find_sweet_spots(sweep, models, seed=1).equals(spots)


def test_each_metric_uses_the_images_that_have_it(sweep: pl.DataFrame) -> None:
    number = pl.int_range(pl.len())
    holed = sweep.with_columns(
        clip_score=pl.when(number >= 100).then("clip_score"),
        hps_v2_score=pl.when(number < 500).then("hps_v2_score").otherwise(float("nan")),
    )
    models = fit_models(holed).filter("chosen")
    counts = dict(zip(models["metric"], models["n"], strict=True))
    assert counts == {"clip_score": 500, "aesthetic_score": 600, "aes_v2_score": 600, "hps_v2_score": 500}
    assert of(correlate_metrics(holed), left="clip_score", right="hps_v2_score")["n"] == 400


def test_engines_are_never_mixed() -> None:
    unguided = THIN["no guidance"](planted(200, engine="flux_schnell"))
    both = pl.concat([planted(200), planted(200, seed=9, engine="sd3"), unguided.match_to_schema(SCORES_TABLE_SCHEMA)])
    for alone in (planted(200, seed=9, engine="sd3"), unguided):
        of_engine = pl.col("engine") == alone["engine"][0]
        assert fit_models(both).filter(of_engine).equals(fit_models(alone))
        assert correlate_metrics(both).filter(of_engine).equals(correlate_metrics(alone))


THIN: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "no rows": lambda s: s.clear(),
    "one row": lambda s: s.head(1),
    "three rows": lambda s: s.head(3),
    "nine rows": lambda s: s.head(MIN_IMAGES - 1),
    "ten rows": lambda s: s.head(MIN_IMAGES),
    "no scores": lambda s: s.with_columns(pl.lit(None).alias(metric) for metric in METRIC_LABELS),
    "only NaN": lambda s: s.with_columns(pl.lit(float("nan")).alias(metric) for metric in METRIC_LABELS),
    "infinite": lambda s: s.with_columns(clip_score=pl.lit(float("inf"))),
    "constant scores": lambda s: s.with_columns(pl.lit(0.25).alias(metric) for metric in METRIC_LABELS),
    "one setting": lambda s: s.with_columns(steps=pl.lit(20), guidance=pl.lit(4.0)),
    "one guidance": lambda s: s.with_columns(guidance=pl.lit(0.5)),
    "two guidances": lambda s: s.with_columns(guidance=pl.when(pl.col("seed") % 2 == 0).then(2.0).otherwise(7)),
    "no settings": lambda s: s.with_columns(steps=pl.lit(None), guidance=pl.lit(None)),
    "no guidance": lambda s: s.with_columns(guidance=pl.lit(None)),
    "no prompts": lambda s: s.with_columns(prompt=pl.lit(None)),
    "no engine": lambda s: s.with_columns(engine=pl.lit(None)),
    "steps of zero": lambda s: s.with_columns(steps=pl.lit(0)),
    "no complete rows": lambda s: s.with_columns(
        clip_score=pl.when(pl.col("seed") % 2 == 0).then("clip_score"),
        hps_v2_score=pl.when(pl.col("seed") % 2 == 1).then("hps_v2_score"),
    ),
    "one prompt": lambda s: s.with_columns(prompt=pl.lit("a")),
    "a line of settings": lambda s: s.with_columns(guidance=pl.col("steps") / 5.0),
    "one timed": lambda s: s.with_columns(elapsed_ms=pl.when(pl.col("seed") == 0).then("elapsed_ms")),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("thin", THIN)
def test_thin_data_gives_tables_and_notes_but_no_exception(thin: str) -> None:
    scores = THIN[thin](planted(60))
    models = fit_models(scores)
    spots = find_sweet_spots(scores, models)
    tables = [
        (models, REGRESSION_SCHEMA),
        (spots, SWEET_SPOTS_SCHEMA),
        (correlate_metrics(scores), CORRELATIONS_SCHEMA),
        (principal_components(scores), COMPONENTS_SCHEMA),
        (times_table(scores), TIMES_SCHEMA),
        (response_table(scores, models), RESPONSE_SCHEMA),
        (effects_table(scores, models), EFFECTS_SCHEMA),
        (diminishing_returns_table(scores, models), RETURNS_SCHEMA),
        (find_pareto_front(scores, models), PARETO_SCHEMA),
        (compare_groups(scores, models), SWEEP_COMPARISON_SCHEMA),
    ]
    for table, schema in tables:
        assert table.schema == pl.Schema(schema)
        assert table.select(pl.any_horizontal(~pl.col(pl.Float64).is_finite()).any()).item() in (False, None)
        assert table.height or not scores.height
    engines = add_overall(scores)["engine"].n_unique()
    assert models.height == engines * len(METRIC_LABELS) * len(MODELS)
    assert spots.height == engines * (len(METRIC_LABELS) + 2)
    assert models.filter("chosen").height == engines * len(METRIC_LABELS)


@pytest.mark.parametrize(
    ("thin", "note"),
    [
        ("nine rows", "too few images (9; 10 needed)"),
        ("constant scores", "every image has the same score"),
        ("one guidance", "guidance is constant"),
        ("one setting", "steps is constant; guidance is constant"),
        ("no guidance", NO_GUIDANCE),
    ],
)
def test_a_note_says_what_is_missing(thin: str, note: str) -> None:
    models = fit_models(THIN[thin](planted(60)))
    assert of(models.filter("chosen"), metric="clip_score")["note"] == note


def test_one_guidance_still_finds_the_steps() -> None:
    sweep = THIN["one guidance"](planted())
    spot = of(find_sweet_spots(sweep, fit_models(sweep)), target="clip_score")
    assert spot["steps"] == pytest.approx(BEST_STEPS, abs=5)
    assert (spot["guidance"], spot["guidance_low"], spot["guidance_high"]) == (1, 1, 1)


def test_an_engine_without_guidance_is_judged_by_its_steps_as_one_that_never_varies_it_is() -> None:
    sweep = planted(engine="flux_schnell")
    without, constant = THIN["no guidance"](sweep), THIN["one guidance"](sweep)
    models = fit_models(without)
    assert models.drop("note").equals(fit_models(constant).drop("note"))
    spots = find_sweet_spots(without, models)
    guidance = ["guidance", "guidance_low", "guidance_high"]
    spoken = ["region", "summary", "note"]
    assert spots.drop(*guidance, *spoken).equals(
        find_sweet_spots(constant, fit_models(constant)).drop(*guidance, *spoken)
    )
    assert of(spots, target="overall")["steps"] == pytest.approx(BEST_STEPS, abs=5)
    assert spots.select(pl.col(guidance).null_count()).row(0) == (6, 6, 6)
    assert all(NO_GUIDANCE in note and "too few" not in note for note in spots["note"])
    assert of(spots, target="aes_v2_score")["note"] == f"no significant effect of steps; {NO_GUIDANCE}"
    pairs = correlate_metrics(without)
    assert pairs.equals(correlate_metrics(constant).filter(pl.col("left") != "guidance"))
    assert of(pairs, left="steps", right="clip_score")["n"] == 600


def test_an_image_without_guidance_among_those_that_have_it_is_left_out() -> None:
    holed = planted(200).with_columns(guidance=pl.when(pl.col("seed") >= 60).then("guidance"))
    whole = holed.drop_nulls("guidance")
    models = fit_models(holed)
    assert models.equals(fit_models(whole))
    spots = find_sweet_spots(holed, models)
    assert spots.drop("note").equals(find_sweet_spots(whole, models).drop("note"))
    assert all("60 images have no steps or no guidance" in note for note in spots["note"])
    assert of(correlate_metrics(holed), left="guidance", right="clip_score")["n"] == 140
    assert of(correlate_metrics(holed), left="steps", right="clip_score")["n"] == 200


def test_what_cannot_be_done_is_said_and_why() -> None:
    def notes(thin: str) -> str:
        scores = THIN[thin](planted(60))
        models = fit_models(scores)
        tables = (
            response_table(scores, models),
            effects_table(scores, models),
            diminishing_returns_table(scores, models),
        )
        assert all(table["note"].null_count() == 0 for table in tables if table["target"].n_unique() == 1)
        return " ".join(note or "" for table in (*tables, find_sweet_spots(scores, models)) for note in table["note"])

    assert "lack one of the scores" in notes("no complete rows")
    assert "too few images (1; 10 needed)" in notes("one row")
    assert "60 images have no steps" in notes("no settings")
    assert "bands apply to these 1 prompts only" in notes("one prompt")
    assert "too few images of few steps with high guidance (0)" in notes("a line of settings")
    assert (
        "no times are recorded" in find_pareto_front(*with_models(planted(60).with_columns(elapsed_ms=None)))["note"][0]
    )


# The whole of it, on many sweeps: python -m benchmarks.surfaces.


@pytest.fixture(scope="module")
def verdicts() -> pl.DataFrame:
    """The analysis against the truth on 15 synthetic sweeps."""
    jobs = [(kind, 2_000_000 + index) for kind in SURFACE_KINDS for index in range(3)]
    rows = [{"kind": kind, **evaluate_analysis(synthetic_sweep(kind, seed, images=400))} for kind, seed in jobs]
    return pl.DataFrame(rows, infer_schema_length=None)


def test_the_true_optimum_lies_in_the_region_and_the_region_is_not_everything(verdicts: pl.DataFrame) -> None:
    moving = verdicts.filter(~pl.col("flat"))
    assert moving["region"].sum() >= moving.height - 1
    assert moving["share"].mean() < 0.5


def test_flat_is_called_flat_and_what_moves_is_not(verdicts: pl.DataFrame) -> None:
    truly = verdicts["kind"] == "flat"
    assert (verdicts["flat"] != truly).sum() <= 2


def test_the_true_steps_beyond_which_no_step_pays_lie_in_their_interval(verdicts: pl.DataFrame) -> None:
    assert verdicts["beyond"].sum() >= verdicts.height - 2
    assert verdicts["beyond width"].mean() < 36


def test_bands_slopes_and_effects_hold_the_truth_as_often_as_they_say(verdicts: pl.DataFrame) -> None:
    held = [name for name in verdicts.columns if name.endswith((" band", " slope", " effect"))]
    assert len(held) == 8
    assert 0.88 < verdicts.select(pl.mean_horizontal(pl.col(held).cast(pl.Float64)).mean()).item() < 0.995


def test_correlations_hold_the_truth_where_prompts_repeat_and_where_not() -> None:
    found = pl.DataFrame([evaluate_correlations(2_000_000 + index) for index in range(50)], infer_schema_length=None)
    held = found.drop("repeating prompts").unpivot(variable_name="of", value_name="held").drop_nulls()
    assert 0.92 < held["held"].mean() < 0.98


def test_where_prompts_differ_a_band_is_wider_than_images_alone_would_have_it() -> None:
    sweep = planted(600, prompts=8)
    level = pl.col("prompt").str.slice(7).cast(pl.Float64) * 0.02
    sweep = sweep.with_columns(clip_score=pl.col("clip_score") + level)
    alone = sweep.with_columns(prompt=pl.col("image_id"))
    widths = []
    for scores in (sweep, alone):
        curve = response_table(*with_models(scores)).filter(curve="steps", target="clip_score")
        widths.append((curve["high"] - curve["low"]).mean())
    assert widths[0] > 1.5 * widths[1]
    model = of(fit_models(sweep).filter("chosen"), metric="clip_score")
    assert (model["clusters_by"], model["clusters"]) == ("prompt", 8)
    assert model["prompt_share"] > 0.5


def test_a_score_that_levels_off_is_not_called_a_line() -> None:
    """A line would send the user to the end of both settings."""
    sweep = planted()
    bent = 1 - (-pl.col("steps") / 8).exp() - ((pl.col("guidance") - 6) / 5) ** 2
    sweep = sweep.with_columns(clip_score=bent + pl.col("aes_v2_score") / 6)
    models = fit_models(sweep)
    assert of(models.filter("chosen"), metric="clip_score")["model"] in ("quadratic", "additive", "spline")
    spot = of(find_sweet_spots(sweep, models), target="clip_score")
    assert spot["guidance_low"] > 1
    assert spot["guidance"] == pytest.approx(6, abs=1.5)


def test_diminishing_returns_are_said_plainly(sweep: pl.DataFrame, models: pl.DataFrame) -> None:
    found = of(diminishing_returns_table(sweep, models), target="clip_score")
    # The planted curve is -0.01 (log2(steps / 24))², whose step gains 0.001 at 18 steps.
    assert found["low"] <= 18 <= found["high"]
    plateau = f"plateau from {found['beyond']} steps (95 % CI {found['low']}–{found['high']})"
    assert found["summary"] == f"{plateau}: one more step gains less than 0.001 CLIP score"
    flat = of(diminishing_returns_table(sweep, models), target="aes_v2_score")
    assert flat["note"] == "no significant effect of steps or guidance"
    rising = sweep.with_columns(clip_score=pl.col("steps") * 0.01 + pl.col("aes_v2_score") * 1e-3)
    edge = of(diminishing_returns_table(*with_models(rising)), target="clip_score")
    assert (edge["beyond"], edge["high"]) == (None, None)
    assert edge["summary"] == "no plateau up to 60 steps (95 %): one more step still gains 0.001 CLIP score"


def test_weights_choose_between_metrics_that_disagree(sweep: pl.DataFrame) -> None:
    apart = sweep.with_columns(hps_v2_score=-((pl.col("steps") / 8).log(2) ** 2) + 0.5 * pl.col("aes_v2_score"))
    models = fit_models(apart)
    steps = [
        of(find_sweet_spots(apart, models, weights), target="overall")["steps"]
        for weights in ({"hps_v2_score": 1}, {"hps_v2_score": 1, "clip_score": 1}, {"clip_score": 3})
    ]
    assert steps[0] < steps[1] < steps[2]
    assert steps[0] == pytest.approx(8, abs=3)
    alone = find_sweet_spots(apart, models, {"clip_score": 3})
    assert of(alone, target="overall")["steps"] == of(alone, target="clip_score")["steps"]


@pytest.mark.parametrize("weights", [{"sharpness": 1}, {"clip_score": -1}, {"clip_score": 0}, {"clip_score": np.nan}])
def test_weights_that_cannot_be_are_refused(sweep: pl.DataFrame, weights: dict[str, float]) -> None:
    with pytest.raises(BadInputError, match="weights"):
        find_sweet_spots(sweep, fit_models(sweep.clear()), weights)


def test_a_gain_that_cannot_be_asked_for_is_refused(sweep: pl.DataFrame, models: pl.DataFrame) -> None:
    for least_gain in ({"sharpness": 0.1}, {"clip_score": 0.0}):
        with pytest.raises(BadInputError, match="invalid least gain"):
            diminishing_returns_table(sweep, models, least_gain=least_gain)


def test_the_quickest_as_good_setting_is_in_the_region_with_its_share_of_the_time(spots: pl.DataFrame) -> None:
    best = of(spots, target="clip_score")
    inside = [(cell["steps"], cell["guidance"]) for cell in best["region"]]
    assert (best["steps"], best["guidance"]) in inside
    assert best["region_share"] == pytest.approx(len(inside) / (20 * 13), rel=0.1)
    quickest = min(steps for steps, _ in inside)
    best_setting = f"{best['steps']} steps at guidance {best['guidance']:.1f}"
    assert best["summary"].startswith(f"{quickest} steps at guidance ")
    assert (
        f": not significantly different from {best_setting} (95 %: at most {best['loss_high']:.2g} worse)"
        in (best["summary"])
    )
    assert best["summary"].endswith(f", at {best['seconds_share']:.0%} of its time")
    assert best["seconds_share"] == pytest.approx((0.2 + 0.05 * quickest) / best["seconds"], rel=0.02)
    assert best["loss"] <= best["loss_high"]


def test_a_quicker_setting_that_may_lose_a_standard_deviation_is_no_advice(sweep: pl.DataFrame) -> None:
    thin = sweep.head(40).with_columns(clip_score=pl.col("clip_score") + 0.05 * pl.col("aes_v2_score"))
    models = fit_models(thin).with_columns(flat_p=0.01, chosen=pl.col("model") == "quadratic")
    row = of(find_sweet_spots(thin, models), target="clip_score")
    assert row["loss_high"] > thin["clip_score"].std()
    assert row["summary"].startswith("too few images to compare ")
    assert row["summary"].endswith("the loss may exceed 1 SD")


def test_no_point_of_the_front_is_beaten_and_a_sure_one_stays(sweep: pl.DataFrame, models: pl.DataFrame) -> None:
    front = find_pareto_front(sweep, models).filter(target="clip_score")
    now = front.filter("on_front").sort("seconds")
    assert now["predicted"].is_sorted()
    assert now["seconds"].n_unique() == now.height
    assert front["front_probability"].is_between(0, 1).all()
    assert now["front_probability"].max() > 0.6
    assert now["steps"].max() <= 35


def test_seconds_are_a_line_that_one_slow_image_does_not_bend() -> None:
    slow = planted().with_columns(elapsed_ms=pl.when(pl.col("seed") == 0).then(60_000).otherwise("elapsed_ms"))
    row = times_table(slow).row(0, named=True)
    assert row["base_low"] < 0.1995 < row["base_high"], "milliseconds are cut, not rounded"
    assert row["a_step_low"] < 0.05 < row["a_step_high"]
    assert row["outliers"] >= 1
    assert "count less" in row["note"]


def test_components_find_what_metrics_share() -> None:
    shared, own = np.random.default_rng(8).standard_normal((2, 4, 600))
    metrics = {metric: 0.9 * shared[0] + 0.45 * noise for metric, noise in zip(METRIC_LABELS, own, strict=True)}
    found = principal_components(
        planted().with_columns(**{name: pl.Series(values) for name, values in metrics.items()})
    )
    first = of(found, component=1)
    assert first["share_low"] < (1 + 3 * 0.8) / 4 < first["share_high"]
    assert all(loading["low"] > 0.8 for loading in first["loadings"])
    assert found["share"].sum() == pytest.approx(1)
    assert "not significantly different from component" in of(found, component=3)["note"]


def test_an_interaction_is_found_where_one_was_planted_and_nowhere_else(
    sweep: pl.DataFrame, models: pl.DataFrame
) -> None:
    found = effects_table(sweep, models)
    assert of(found, target="clip_score", effect="interaction")["p"] > 0.05
    assert of(found, target="clip_score", effect="guidance")["p"] < 0.01
    crossed = sweep.with_columns(clip_score=pl.col("clip_score") + 0.01 * pl.col("steps").log(2) * pl.col("guidance"))
    row = of(effects_table(*with_models(crossed)), target="clip_score", effect="interaction")
    spread = np.log2(row["steps_to"] / row["steps_from"]) * (row["guidance_to"] - row["guidance_from"])
    assert row["p"] < 0.01
    assert row["low"] < 0.01 * spread < row["high"]


def test_engines_and_runs_are_compared_at_the_same_settings() -> None:
    """The second engine is worse by 0.008, but was tried at better settings only."""
    slow = planted(800)
    near_the_best = pl.col("steps").is_between(15, 35) & pl.col("guidance").is_between(2.5, 6)
    best = planted(1200, seed=4, engine="sd3").filter(near_the_best)
    worse = best.with_columns(clip_score=pl.col("clip_score") - 0.008, run_id=pl.lit("7c"))
    both = pl.concat([slow, worse])
    table = compare_groups(*with_models(both)).filter(by="engine", target="clip_score")
    first, second = (of(table, name=name) for name in ("realvis_xl", "sd3"))
    assert first["mean"] < second["mean"]
    assert first["adjusted_low"] > second["adjusted_high"]
    assert (first["steps_from"], first["steps_to"]) == (15, 35)
    assert select_images(both, engines=["sd3"]).equals(select_images(both, runs=["7c"]))
    with pytest.raises(BadInputError, match="no images of sweep 'x'"):
        select_images(both, runs=["x"])


def test_the_category_that_an_engine_is_weak_in_is_named() -> None:
    """Prompts with text are worse by 0.02, and were tried at better settings only; complexity changes nothing."""
    sweep = planted(1200, prompts=40)
    number = pl.col("prompt").str.extract(r"(\d+)").cast(pl.Int64)
    near_the_best = pl.col("steps").is_between(15, 35) & pl.col("guidance").is_between(2.5, 6)
    text = number % 4 == 0
    grouped = sweep.with_columns(
        category=pl.when(text).then(pl.lit("text")).otherwise(pl.lit("animals")),
        complexity=pl.when(number % 8 < 4).then(pl.lit("simple")).otherwise(pl.lit("complex")),
        clip_score=pl.col("clip_score") - 0.02 * text.cast(pl.Float64),
    ).filter(~text | near_the_best)
    table = compare_groups(*with_models(grouped))
    rows = {name: of(table, by="category", target="clip_score", name=name) for name in ("text", "animals")}
    assert rows["text"]["adjusted_high"] < rows["animals"]["adjusted_low"]
    assert rows["text"]["n"] + rows["animals"]["n"] == grouped.height
    words = {
        (part.by, panel.target): panel.words
        for part in comparison_panels(table)
        for panel in (*part.open, *part.folded)
    }
    assert words["category", "clip_score"].startswith("Weak, with the interval below the mean of all: text (")
    assert words["complexity", "clip_score"] == "No group's interval lies below the mean of all."
    without = compare_groups(*with_models(sweep.drop("category", "complexity")))
    assert set(without["by"]) == {"engine", "run", "prompt"}


def test_schedulers_sizes_and_negative_prompts_are_compared_where_there_are_several() -> None:
    sweep = planted(400, prompts=20)
    is_ddim = pl.col("seed") % 2 == 0
    tried = sweep.with_columns(
        scheduler=pl.when(is_ddim).then(pl.lit("ddim")),
        negative_prompt=pl.when(pl.col("seed") % 3 == 0).then(pl.lit("blurred")),
        width=512,
        height=pl.when(pl.col("seed") % 4 < 2).then(512).otherwise(768),
        clip_score=pl.col("clip_score") - 0.02 * is_ddim.cast(pl.Float64),
    )
    table = compare_groups(*with_models(tried)).filter(target="clip_score")
    groups = {by: set(table.filter(by=by)["name"]) for by in ("scheduler", "negative_prompt", "size")}
    assert groups["scheduler"] == {"ddim", "the engine's own"}
    assert groups["negative_prompt"] == {"none", "blurred"}
    assert groups["size"] == {"512×512", "512×768"}
    ddim, own = (of(table, by="scheduler", name=name) for name in ("ddim", "the engine's own"))
    assert ddim["adjusted_high"] < own["adjusted_low"]
    assert {"scheduler", "negative_prompt", "size"} <= {part.by for part in comparison_panels(table)}


def with_models(scores: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    return scores, fit_models(scores)


def test_the_analysis_loads_no_framework() -> None:
    check = (
        "import sys, flexy_assets.sweep.analysis, flexy_assets.sweep.report.build;"
        "print([m for m in ('torch', 'dagster', 'sklearn', 'scipy', 'plotly') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "[]\n"
