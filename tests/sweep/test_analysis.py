"""The analysis finds what was planted, calls noise noise, and survives thin data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

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
    FittedResponse,
    add_overall,
    compare_groups,
    correlate_metrics,
    describe_advice,
    diminishing_returns_table,
    effects_table,
    find_pareto_front,
    find_sweet_spots,
    fit_responses,
    principal_components,
    regression_table,
    response_table,
    select_images,
    times_table,
    weigh_metrics,
)
from flexy_assets.sweep.analysis.basis_functions import to_coordinates
from flexy_assets.sweep.analysis.importance import variance_shares
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
def responses(sweep: pl.DataFrame) -> list[FittedResponse]:
    return fit_responses(sweep)


@pytest.fixture(scope="module")
def models(responses: list[FittedResponse]) -> pl.DataFrame:
    return regression_table(responses)


@pytest.fixture(scope="module")
def spots(responses: list[FittedResponse]) -> pl.DataFrame:
    return find_sweet_spots(responses)


def of(table: pl.DataFrame, **values: object) -> dict[str, Any]:
    """The one row with these values."""
    return table.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in values.items()), named=True)


def test_a_planted_surface_is_found_with_its_planted_r2(models: pl.DataFrame) -> None:
    for target in ("clip_score", "hps_v2_score"):
        rows = models.filter(target=target)
        average = of(rows, model="average")
        assert average["r2"] == pytest.approx(0.5, abs=0.06)
        assert average["r2"] > rows.filter(pl.col("weight") > 0.1)["r2"].min()
        assert rows["weight"].sum() == pytest.approx(1)
        assert average["clusters_by"] == "prompt"


def test_a_metric_of_noise_is_called_flat(models: pl.DataFrame, spots: pl.DataFrame) -> None:
    assert of(models, target="aes_v2_score", model="average")["flat_p"] > 0.05
    spot = of(spots, target="aes_v2_score")
    assert (spot["steps"], spot["guidance"], spot["predicted"]) == (None, None, None)
    assert spot["reason"] == "no significant effect of steps or guidance"


def test_noise_is_seldom_called_a_trend() -> None:
    moving = []
    for seed in range(6):
        noise = np.random.default_rng(seed).standard_normal((len(METRIC_LABELS), 60))
        scores = planted(60).with_columns(pl.Series(m, values) for m, values in zip(METRIC_LABELS, noise, strict=True))
        moving += [response.moves for response in fit_responses(scores) if response.target != "overall"]
    assert len(moving) == 24
    assert sum(moving) <= 4


def test_r2_is_held_out_so_a_form_of_noise_falls_below_zero() -> None:
    table = regression_table(fit_responses(planted(60)))
    assert of(table, target="aes_v2_score", model="quadratic")["r2"] < 0


def test_prompts_are_left_out_whole() -> None:
    """A prompt's own slope, with a mean of 0 over prompts, must not be learnt from that prompt's images."""
    sweep = planted(400, prompts=6)
    own = {f"prompt {index}": slope for index, slope in enumerate((4.0, -4.0, 3.0, -3.0, 1.0, -1.0))}
    slopes = pl.col("prompt").replace_strict(own, return_dtype=pl.Float64)
    sweep = sweep.with_columns(clip_score=slopes * (pl.col("steps").log(2) - 4.7))
    average = of(regression_table(fit_responses(sweep)), target="clip_score", model="average")
    assert average["clusters_by"] == "prompt"
    assert average["r2"] < 0.01


def test_the_optimum_is_near_the_planted_one_and_inside_its_interval() -> None:
    found = find_sweet_spots(fit_responses(planted(1500)))
    for target in ("clip_score", "hps_v2_score", "overall"):
        spot = of(found, target=target)
        assert abs(np.log2(spot["steps"] / BEST_STEPS)) < 0.3
        assert abs(np.log2(spot["guidance"] / BEST_GUIDANCE)) < 0.3
        assert spot["low"] <= spot["predicted"] <= spot["high"]
        assert spot["steps_low"] <= spot["steps"] <= spot["steps_high"]
        assert spot["guidance_low"] <= spot["guidance"] <= spot["guidance_high"]
        assert spot["seconds"] == pytest.approx(0.2 + 0.05 * spot["steps"], rel=0.02)


def test_the_lead_is_quicker_and_as_surely_good(spots: pl.DataFrame, sweep: pl.DataFrame) -> None:
    best, lead = of(spots, target="overall"), of(spots, target="value")
    assert lead["seconds"] < 0.9 * best["seconds"]
    assert best["low"] - VALUE_TOLERANCE <= lead["low"] <= best["low"]
    assert lead["summary"].startswith(f"{lead['steps']} steps at guidance {lead['guidance']:.1f}: expected loss ")
    assert lead["summary"].endswith(f", at {lead['seconds_share']:.0%} of its time")
    assert lead["seconds_share"] == pytest.approx(lead["seconds"] / best["seconds"])
    untimed = find_sweet_spots(fit_responses(sweep.with_columns(elapsed_ms=pl.lit(None))))
    assert of(untimed, target="value")["steps"] == lead["steps"]
    assert untimed["seconds"].null_count() == untimed.height


def test_unguided_images_are_timed_by_themselves() -> None:
    """Guidance runs the model twice; a sweep with enough unguided images sees that they are quicker."""
    sweep = planted(600)
    twice = pl.when(pl.col("guidance") > 1).then(2).otherwise(1)
    downhill = -0.01 * pl.col("guidance").clip(1) + 0.0001 * pl.col("clip_score")
    sweep = sweep.with_columns(elapsed_ms=100 + 30 * pl.col("steps") * twice, clip_score=downhill)
    sweep = sweep.with_columns(pl.lit(None, pl.Float64).alias(m) for m in METRIC_LABELS if m != "clip_score")
    best = of(find_sweet_spots(fit_responses(sweep)), target="clip_score")
    assert best["guidance"] == 1
    assert best["seconds"] == pytest.approx(0.1 + 0.03 * best["steps"], rel=0.02)
    assert "edge of the guidance" in best["note"]


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


def test_images_in_any_order_with_their_ids_permuted_give_the_same_tables(
    sweep: pl.DataFrame, models: pl.DataFrame, spots: pl.DataFrame
) -> None:
    shuffled = sweep.sample(fraction=1, shuffle=True, seed=3).with_columns(image_id=sweep["image_id"].reverse())
    again = fit_responses(shuffled)
    assert regression_table(again).equals(models)
    assert find_sweet_spots(again).equals(spots)
    assert correlate_metrics(shuffled).equals(correlate_metrics(sweep))


def test_surface_region_front_and_band_are_of_one_model(responses: list[FittedResponse], spots: pl.DataFrame) -> None:
    surface = response_table(responses).filter(curve="surface")
    front = find_pareto_front(responses).drop_nulls("predicted")
    for spot in spots.drop_nulls("steps").iter_rows(named=True):
        target = "overall" if spot["target"] == "value" else spot["target"]
        cells = surface.filter(target=target)
        names = ["steps", "guidance", "predicted", "low", "high"]
        here = {(row[0], row[1]): row[2:] for row in cells.select(names).iter_rows()}
        at = (spot["steps"], spot["guidance"])
        predicted, low, high = (spot[name] for name in names[2:])
        optimism = spot["optimism"]
        assert 0 <= optimism < (predicted - low) / 2
        assert here[at] == pytest.approx([predicted + optimism, low + optimism, high])
        assert spot["low"] <= spot["predicted"] <= spot["high"]
        region = {(cell["steps"], cell["guidance"]) for cell in spot["region"]}
        assert at in region
        best = max((cell for cell in here if cells.height), key=lambda cell: here[cell][1])
        assert best in region
        held = {
            (steps, guidance)
            for steps, guidance in here
            if spot["steps_low"] <= steps <= spot["steps_high"]
            and spot["guidance_low"] <= guidance <= spot["guidance_high"]
        }
        assert at in held <= region, "ranges hold together"
        for row in front.filter(target=target).iter_rows(named=True):
            assert here[row["steps"], row["guidance"]][0] == pytest.approx(row["predicted"])


def test_each_metric_uses_the_images_that_have_it(sweep: pl.DataFrame) -> None:
    number = pl.int_range(pl.len())
    holed = sweep.with_columns(
        clip_score=pl.when(number >= 100).then("clip_score"),
        hps_v2_score=pl.when(number < 500).then("hps_v2_score").otherwise(float("nan")),
    )
    counts = {each.target: len(each.sample.y) for each in fit_responses(holed) if each.target != "overall"}
    assert counts == {"clip_score": 500, "aesthetic_score": 600, "aes_v2_score": 600, "hps_v2_score": 500}
    assert of(correlate_metrics(holed), left="clip_score", right="hps_v2_score")["n"] == 400


def test_engines_are_never_mixed() -> None:
    unguided = THIN["no guidance"](planted(200, engine="flux_schnell"))
    both = pl.concat([planted(200), planted(200, seed=9, engine="sd3"), unguided], how="vertical_relaxed")
    models = regression_table(fit_responses(both))
    for alone in (planted(200, seed=9, engine="sd3"), unguided):
        of_engine = pl.col("engine") == alone["engine"][0]
        assert models.filter(of_engine).equals(regression_table(fit_responses(alone)))
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
    responses = fit_responses(scores)
    models, spots = regression_table(responses), find_sweet_spots(responses)
    tables = [
        (models, REGRESSION_SCHEMA),
        (spots, SWEET_SPOTS_SCHEMA),
        (correlate_metrics(scores), CORRELATIONS_SCHEMA),
        (principal_components(scores), COMPONENTS_SCHEMA),
        (times_table(scores), TIMES_SCHEMA),
        (response_table(responses), RESPONSE_SCHEMA),
        (effects_table(responses), EFFECTS_SCHEMA),
        (diminishing_returns_table(responses), RETURNS_SCHEMA),
        (find_pareto_front(responses), PARETO_SCHEMA),
        (compare_groups(scores, responses), SWEEP_COMPARISON_SCHEMA),
    ]
    for table, schema in tables:
        assert table.schema == pl.Schema(schema)
        assert table.select(pl.any_horizontal(~pl.col(pl.Float64).is_finite()).any()).item() in (False, None)
        assert table.height or not scores.height
    engines = add_overall(scores)["engine"].n_unique()
    assert models.height == engines * (len(METRIC_LABELS) + 1) * len(MODELS)
    assert spots.height == engines * (len(METRIC_LABELS) + 2)
    assert spots.filter(pl.col("steps").is_null() == pl.col("reason").is_null()).is_empty()


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
    assert fit_responses(THIN[thin](planted(60)))[0].note == note


def test_one_guidance_still_finds_the_steps() -> None:
    sweep = THIN["one guidance"](planted())
    spot = of(find_sweet_spots(fit_responses(sweep)), target="clip_score")
    assert spot["steps"] == pytest.approx(BEST_STEPS, abs=5)
    assert (spot["guidance"], spot["guidance_low"], spot["guidance_high"]) == (1, 1, 1)


def test_an_engine_without_guidance_is_judged_by_its_steps_as_one_that_never_varies_it_is() -> None:
    sweep = planted(engine="unguided")
    without, constant = THIN["no guidance"](sweep), THIN["one guidance"](sweep)
    responses, of_constant = fit_responses(without), fit_responses(constant)
    assert regression_table(responses).drop("note").equals(regression_table(of_constant).drop("note"))
    spots = find_sweet_spots(responses)
    guidance = ["guidance", "guidance_low", "guidance_high"]
    spoken = ["region", "reason", "summary", "note"]
    assert spots.drop(*guidance, *spoken).equals(find_sweet_spots(of_constant).drop(*guidance, *spoken))
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
    spots = find_sweet_spots(fit_responses(holed))
    assert spots.drop("note").equals(find_sweet_spots(fit_responses(whole)).drop("note"))
    assert all("60 images have no steps or no guidance" in note for note in spots["note"])
    assert of(correlate_metrics(holed), left="guidance", right="clip_score")["n"] == 140
    assert of(correlate_metrics(holed), left="steps", right="clip_score")["n"] == 200


def test_what_cannot_be_done_is_said_and_why() -> None:
    def notes(thin: str) -> str:
        scores = THIN[thin](planted(60))
        responses = fit_responses(scores)
        tables = (response_table(responses), effects_table(responses), diminishing_returns_table(responses))
        assert all(table["note"].null_count() == 0 for table in tables if table["target"].n_unique() == 1)
        return " ".join(note or "" for table in (*tables, find_sweet_spots(responses)) for note in table["note"])

    assert "lack one of the scores" in notes("no complete rows")
    assert "too few images (1; 10 needed)" in notes("one row")
    assert "60 images have no steps" in notes("no settings")
    assert "bands apply to these 1 prompts only" in notes("one prompt")
    assert "too few images of few steps with high guidance (0)" in notes("a line of settings")
    untimed = find_pareto_front(fit_responses(planted(60).with_columns(elapsed_ms=None)))
    assert "no times are recorded" in untimed["note"][0]


# The whole of it, on many sweeps: python -m benchmarks.surfaces.


@pytest.fixture(scope="module")
def verdicts() -> pl.DataFrame:
    """The analysis against the truth on 15 synthetic sweeps."""
    jobs = [(kind, 2_000_000 + index) for kind in SURFACE_KINDS for index in range(3)]
    rows = [{"kind": kind, **evaluate_analysis(synthetic_sweep(kind, seed, images=400))} for kind, seed in jobs]
    return pl.DataFrame(rows, infer_schema_length=None)


def test_the_true_optimum_lies_in_the_region_and_the_region_is_not_everything(verdicts: pl.DataFrame) -> None:
    named = verdicts.drop_nulls("region")
    assert named.height >= 8
    assert named["region"].sum() >= named.height - 1
    assert named["share"].mean() < 0.35


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
        curve = response_table(fit_responses(scores)).filter(curve="steps", target="clip_score")
        widths.append((curve["high"] - curve["low"]).mean())
    assert widths[0] > 1.5 * widths[1]
    model = of(regression_table(fit_responses(sweep)), target="clip_score", model="average")
    assert (model["clusters_by"], model["clusters"]) == ("prompt", 8)
    assert model["prompt_share"] > 0.5


def test_a_score_that_levels_off_is_not_called_a_line() -> None:
    """A line would send the user to the end of both settings."""
    sweep = planted()
    bent = 1 - (-pl.col("steps") / 8).exp() - ((pl.col("guidance") - 6) / 5) ** 2
    sweep = sweep.with_columns(clip_score=bent + pl.col("aes_v2_score") / 6)
    spot = of(find_sweet_spots(fit_responses(sweep)), target="clip_score")
    assert spot["guidance_low"] > 1
    assert spot["guidance"] == pytest.approx(6, abs=1.5)


def test_diminishing_returns_are_said_plainly(sweep: pl.DataFrame, responses: list[FittedResponse]) -> None:
    found = of(diminishing_returns_table(responses), target="clip_score")
    # The planted curve is -0.01 (log2(steps / 24))², whose step gains 0.001 at 18 steps.
    assert found["low"] <= 18 <= found["high"]
    plateau = f"plateau from {found['beyond']} steps (95 % CI {found['low']}–{found['high']})"
    assert found["summary"] == f"{plateau}: one more step gains less than 0.001 CLIP score"
    flat = of(diminishing_returns_table(responses), target="aes_v2_score")
    assert flat["note"] == "no significant effect of steps or guidance"
    rising = sweep.with_columns(clip_score=pl.col("steps") * 0.01 + pl.col("aes_v2_score") * 1e-3)
    edge = of(diminishing_returns_table(fit_responses(rising)), target="clip_score")
    assert (edge["beyond"], edge["high"]) == (None, None)
    assert edge["summary"] == "no plateau up to 60 steps (95 %): one more step still gains 0.001 CLIP score"


def test_weights_choose_between_metrics_that_disagree(sweep: pl.DataFrame) -> None:
    apart = sweep.with_columns(hps_v2_score=-((pl.col("steps") / 8).log(2) ** 2) + 0.5 * pl.col("aes_v2_score"))
    steps = [
        of(find_sweet_spots(fit_responses(apart, weights)), target="overall")["steps"]
        for weights in ({"hps_v2_score": 1}, {"hps_v2_score": 1, "clip_score": 1}, {"clip_score": 3})
    ]
    assert steps[0] < steps[1] < steps[2]
    assert steps[0] == pytest.approx(8, abs=3)
    alone = find_sweet_spots(fit_responses(apart, {"clip_score": 3}))
    assert of(alone, target="overall")["steps"] == of(alone, target="clip_score")["steps"]


@pytest.mark.parametrize("weights", [{"sharpness": 1}, {"clip_score": -1}, {"clip_score": 0}, {"clip_score": np.nan}])
def test_weights_that_cannot_be_are_refused(sweep: pl.DataFrame, weights: dict[str, float]) -> None:
    with pytest.raises(BadInputError, match="weights"):
        fit_responses(sweep.head(20), weights)


def test_a_gain_that_cannot_be_asked_for_is_refused() -> None:
    for least_gain in ({"sharpness": 0.1}, {"clip_score": 0.0}):
        with pytest.raises(BadInputError, match="invalid least gain"):
            diminishing_returns_table([], least_gain=least_gain)


REASONS: dict[str, tuple[pl.DataFrame, str]] = {
    "images": (planted(39), "too few images (39; 40 needed)"),
    "prompts": (planted(200, prompts=2), "too few prompts (2; 3 needed)"),
    "differences": (planted(60), "the images hardly tell settings apart: the best may lie in "),
    "bend": (planted(600), "the scores rise to the edge of the steps tried without a bend: the best may lie beyond it"),
}


@pytest.mark.parametrize("case", REASONS)
def test_where_the_images_cannot_carry_an_answer_no_setting_is_named(case: str) -> None:
    scores, reason = REASONS[case]
    noise = pl.Series(np.random.default_rng(2).standard_normal(scores.height))
    scores = scores.with_columns(
        clip_score=pl.col("steps").log(2) * 0.7 + noise, hps_v2_score=None, aesthetic_score=None
    )
    spots = find_sweet_spots(fit_responses(scores, {"clip_score": 1}))
    advice = describe_advice(spots)["realvis_xl"]
    assert advice["reason"].startswith(reason)
    assert (advice["lead"], advice["best"], advice["region"]) == (None, None, None)
    assert advice["images"] == scores.height


def test_advice_is_inside_the_engines_range_and_says_what_lies_outside() -> None:
    rising = planted(400, engine="sdxl_turbo").with_columns(
        clip_score=pl.col("steps").log(2) + pl.col("aes_v2_score") / 4
    )
    rising = rising.with_columns(steps=1 + pl.col("steps") // 6)
    spots = find_sweet_spots(fit_responses(rising, {"clip_score": 1}))
    best = of(spots, target="overall")
    assert best["steps"] <= best["steps_high"] <= 4
    assert "outside the engine's range" in best["note"]
    advice = describe_advice(spots)["sdxl_turbo"]
    assert advice["lead"]["steps"] <= 4 and advice["reason"] is None


def test_redundant_metrics_share_a_weight_and_an_implausible_one_is_left_out(sweep: pl.DataFrame) -> None:
    equal = dict.fromkeys(METRIC_LABELS, 0.25)
    assert weigh_metrics(sweep) == (equal, [])
    twice = sweep.with_columns(aes_v2_score=pl.col("aesthetic_score") * 1.1 + pl.col("clip_score"))
    shares, notes = weigh_metrics(twice)
    assert shares == pytest.approx(
        {**dict.fromkeys(METRIC_LABELS, 1 / 3), "aesthetic_score": 1 / 6, "aes_v2_score": 1 / 6}
    )
    assert notes == ["Aesthetic V1 and Aesthetic V2 share a weight: they correlate by 0.9 or more"]
    wrong = sweep.with_columns(hps_v2_score=pl.col("hps_v2_score") - 0.11)
    shares, notes = weigh_metrics(wrong)
    assert shares["hps_v2_score"] == 0 and shares["clip_score"] == pytest.approx(1 / 3)
    assert notes[0].startswith("HPS v2.1 is left out: a mean of 0.1")
    assert weigh_metrics(wrong, equal) == (equal, []), "weights clear it"
    suspect = {"clip_score": "its prompts are not known"}
    note = of(find_sweet_spots(fit_responses(wrong, suspect=suspect)), target="overall")["note"]
    assert "HPS v2.1 is left out: a mean" in note and "CLIP score is left out: its prompts are not known; a we" in note
    cleared = of(find_sweet_spots(fit_responses(wrong, {"clip_score": 1}, suspect)), target="overall")["note"]
    assert "left out" not in cleared and "over CLIP score" in cleared


def test_settings_of_one_prompt_and_seed_are_compared_with_each_other() -> None:
    """Where prompt and seed are most of the variance, pairs tell settings apart that single images cannot."""
    rng = np.random.default_rng(3)
    pairs = planted(240, prompts=8).with_columns(seed=pl.int_range(pl.len()) // 4)
    pairs = pairs.with_columns(prompt=pl.format("prompt {}", pl.col("seed") % 8))
    offsets = pl.Series(rng.standard_normal(60) * 0.05)[pairs["seed"]]
    pairs = pairs.with_columns(clip_score=pl.col("clip_score") + offsets)
    single = pairs.with_columns(seed=pl.int_range(pl.len()))
    grid = to_coordinates(np.array([6.0, 24.0]), np.array([4.0, 4.0]))
    errors = []
    for scores in (pairs, single):
        response = fit_responses(scores)[0]
        columns = response.columns(grid)
        errors.append(response.deviations((columns[1] - columns[0])[None, :])[1].std())
    assert errors[0] < 0.6 * errors[1]


def test_no_point_of_the_front_is_beaten_and_a_sure_one_stays(responses: list[FittedResponse]) -> None:
    front = find_pareto_front(responses).filter(target="clip_score")
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
    sweep: pl.DataFrame, responses: list[FittedResponse]
) -> None:
    found = effects_table(responses)
    assert of(found, target="clip_score", effect="interaction")["p"] > 0.05
    assert of(found, target="clip_score", effect="guidance")["p"] < 0.01
    crossed = sweep.with_columns(clip_score=pl.col("clip_score") + 0.01 * pl.col("steps").log(2) * pl.col("guidance"))
    row = of(effects_table(fit_responses(crossed)), target="clip_score", effect="interaction")
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
    table = compare_groups(both, fit_responses(both)).filter(by="engine", target="clip_score")
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
    table = compare_groups(grouped, fit_responses(grouped))
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
    bare = sweep.drop("category", "complexity")
    without = compare_groups(bare, fit_responses(bare))
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
    table = compare_groups(tried, fit_responses(tried)).filter(target="clip_score")
    groups = {by: set(table.filter(by=by)["name"]) for by in ("scheduler", "negative_prompt", "size")}
    assert groups["scheduler"] == {"ddim", "the engine's own"}
    assert groups["negative_prompt"] == {"none", "blurred"}
    assert groups["size"] == {"512×512", "512×768"}
    ddim, own = (of(table, by="scheduler", name=name) for name in ("ddim", "the engine's own"))
    assert ddim["adjusted_high"] < own["adjusted_low"]
    assert {"scheduler", "negative_prompt", "size"} <= {part.by for part in comparison_panels(table)}


def test_schedulers_are_compared_within_pairs_of_prompt_and_seed() -> None:
    """Pairs differ by ten times what a scheduler costs."""
    number, is_ddim = pl.int_range(pl.len()) // 4, pl.int_range(pl.len()) % 2 == 0
    levels = pl.Series(np.repeat(np.random.default_rng(4).normal(0, 0.1, 60), 4))
    pairs = planted(240).with_columns(
        seed=number,
        prompt=pl.format("prompt {}", number % 20),
        scheduler=pl.when(is_ddim).then(pl.lit("ddim")),
        clip_score=pl.col("clip_score") + levels - 0.01 * is_ddim.cast(pl.Float64),
    )
    table = compare_groups(pairs, fit_responses(pairs)).filter(by="scheduler", target="clip_score")
    ddim, own = (of(table, name=name) for name in ("ddim", "the engine's own"))
    assert ddim["adjusted_high"] < own["adjusted_low"]
    assert own["adjusted"] - ddim["adjusted"] == pytest.approx(0.01, abs=0.004)


def test_the_analysis_loads_no_framework() -> None:
    check = (
        "import sys, flexy_assets.sweep.analysis, flexy_assets.sweep.report.build;"
        "print([m for m in ('torch', 'dagster', 'sklearn', 'scipy', 'plotly') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "[]\n"


def test_the_shares_of_the_variance_are_those_that_made_it() -> None:
    rng = np.random.default_rng(3)
    prompt, pair = np.arange(2400) // 40, np.arange(2400) // 4
    parts = {
        "prompt": rng.normal(0, 2, 60)[prompt],
        "seed": rng.normal(0, 1, 600)[pair],
        "rest": rng.normal(0, 1, 2400),
    }
    x, z = rng.normal(0, 1, (2, 2400))
    parts |= {"steps": 1.5 * (x**2 - 1), "guidance": 0 * z}
    y = np.sum(list(parts.values()), axis=0)
    settings = {"steps": np.stack([x, x**2], axis=1), "guidance": z[:, None]}
    shares = variance_shares(y, {"prompt": prompt, "seed": pair}, settings)
    total = sum(values.var() for values in parts.values())
    assert shares == pytest.approx({name: values.var() / total for name, values in parts.items()}, abs=0.03)
    unpaired = variance_shares(y, {"prompt": prompt}, settings)
    assert unpaired["rest"] == pytest.approx(shares["seed"] + shares["rest"], abs=0.02)
    assert variance_shares(y[:4], {}, {"steps": rng.normal(size=(4, 4))}) == {}
