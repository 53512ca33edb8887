"""A plan is a function of its settings: the same rows every time, well spread, and refused where it makes no sense."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import chisquare, kstest, qmc

from flexy_assets.sweep.assets import SweepConfig
from flexy_assets.sweep.plan import PLAN_SCHEMA, SAMPLINGS, Extension, SettingRange, Sweep, images_in_time
from flexy_assets.sweep.try_image import Trial
from resources.errors import BadInputError
from resources.settings import Settings

SWEEP = Sweep("mini_sdxl", ("a red disc", "a blue disc", "a tree"), SettingRange(4, 60), SettingRange(0.5, 12), seed=7)


def shares(sweep: Sweep, images: int) -> np.ndarray:
    """Where the images lie in the sweep's rectangle, (n, 2) from 0 to 1; steps in the middle of their cell."""
    rows = sweep.rows(0, images)
    steps = (rows["steps"].to_numpy() - sweep.steps.low + 0.5) / (sweep.steps.high - sweep.steps.low + 1)
    guidance = (rows["guidance"].to_numpy() - sweep.guidance.low) / (sweep.guidance.high - sweep.guidance.low)
    return np.stack([steps, guidance], axis=1)


# The same rows


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_same_settings_give_the_same_rows(sampling: str) -> None:
    sweep = replace(SWEEP, sampling=sampling)
    rows = sweep.rows(0, 50)
    assert rows.schema == PLAN_SCHEMA
    assert rows.equals(replace(SWEEP, sampling=sampling).rows(0, 50))


def test_the_rows_of_a_run_that_was_begun_long_ago_are_still_the_same() -> None:
    # A run begun with one version of Flexy is topped up with the next: these values may never change.
    sweep = replace(SWEEP, steps=SettingRange.parse("4:60", "steps"), guidance=SettingRange.parse("0.5:12", "guidance"))
    row = sweep.rows(101, 102).row(0, named=True)
    assert row["run_id"] == "e73f0f98-d16b-543a-afaf-1f8bf8b0f317"
    assert row["image_id"] == "6098710d-28a0-57ef-89f2-0b9e5694f3d4"
    assert [row[name] for name in ("prompt", "steps", "guidance", "seed")] == ["a blue disc", 45, 11.4779, 1074753670]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_topping_up_keeps_the_first_rows(sampling: str) -> None:
    sweep = replace(SWEEP, sampling=sampling)
    assert sweep.rows(0, 120).head(60).equals(sweep.rows(0, 60))
    assert sweep.rows(0, 120).slice(60).equals(sweep.rows(60, 120))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_another_seed_gives_other_images_in_another_run(sampling: str) -> None:
    one, other = replace(SWEEP, sampling=sampling), replace(SWEEP, sampling=sampling, seed=8)
    assert one.run_id != other.run_id
    first, second = one.rows(0, 100), other.rows(0, 100)
    assert not set(first["image_id"]) & set(second["image_id"])
    assert not set(first["seed"]) & set(second["seed"])
    assert (first["guidance"] == second["guidance"]).mean() < 0.05


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_engine_without_guidance_gets_the_same_rows_without_it(sampling: str) -> None:
    guided = replace(SWEEP, sampling=sampling)
    sweep = replace(guided, guidance=None)
    rows = sweep.rows(0, 50)
    assert rows.schema == PLAN_SCHEMA
    assert rows["guidance"].null_count() == 50
    assert rows.equals(replace(guided, guidance=None).rows(0, 50))
    columns = ["prompt", "steps", "seed"]
    assert rows.select(columns).equals(guided.rows(0, 50).select(columns))


def test_no_two_images_share_an_id_or_a_seed() -> None:
    rows = SWEEP.rows(0, 2000)
    assert rows["image_id"].n_unique() == rows["image_path"].n_unique() == rows["seed"].n_unique() == 2000
    assert rows["seed"].min() >= 0 and rows["seed"].max() < 2**31


def test_settings_come_back_from_json_as_the_same_run() -> None:
    strided = replace(SWEEP, steps=SettingRange.parse("4:60:8", "steps"), negative_prompt="blurred — 赤")
    factors = {"schedulers": ("euler", "ddim"), "sizes": ((512, 512), (768, 1024)), "negative_prompts": ("", "blurred")}
    listed = replace(SWEEP, steps=SettingRange.parse("4,8,16", "steps"), **factors)
    for sweep in (SWEEP, strided, listed, replace(SWEEP, guidance=None)):
        again = Sweep.from_json(json.loads(json.dumps(sweep.to_json())))
        assert again == sweep
        assert again.run_id == sweep.run_id


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "realvis_xl"},
        {"prompts": ("a red disc",)},
        {"steps": SettingRange(4, 59)},
        {"guidance": SettingRange(0.5, 12, 0.5)},
        {"guidance": None},
        {"sampling": "even"},
        {"negative_prompt": ""},
        {"width": 256},
        {"batch_size": 50},
        {"steps": SettingRange(4, 60, values=(4, 60))},
        {"schedulers": ("ddim",)},
        {"sizes": ((512, 512), (768, 512))},
        {"negative_prompts": ("", "blurred")},
    ],
)
def test_other_settings_are_another_run(change: dict[str, Any]) -> None:
    assert replace(SWEEP, **change).run_id != SWEEP.run_id


# Batches


def test_batches_are_full_and_in_order() -> None:
    sweep = replace(SWEEP, batch_size=30)
    rows = sweep.rows(0, 100)
    prefix = sweep.run_id.hex[:8]
    keys = rows["batch"].unique(maintain_order=True).to_list()
    assert keys == [f"{prefix}_{number:04d}" for number in range(4)]
    assert [rows.filter(batch=key).height for key in keys] == [30, 30, 30, 10]
    assert all(sweep.rows_of_batch(key, 100).equals(rows.filter(batch=key)) for key in keys)
    assert sweep.rows_of_batch(f"{prefix}_0004", 100).is_empty()
    assert rows["image_path"][31] == f"{prefix}_0001/000031.png"


# The spread


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_steps_are_whole_and_guidance_within_its_range(sampling: str) -> None:
    rows = replace(SWEEP, sampling=sampling).rows(0, 2000)
    assert rows["steps"].dtype == PLAN_SCHEMA["steps"]
    assert set(rows["steps"]) == set(range(4, 61))
    assert rows["guidance"].is_between(0.5, 12).all()


def test_every_step_count_is_about_equally_likely() -> None:
    counts = Counter(SWEEP.rows(0, 4000)["steps"])
    assert chisquare([counts[steps] for steps in range(4, 61)]).pvalue > 0.01


def test_uniform_is_uniform_and_its_columns_have_nothing_to_do_with_each_other() -> None:
    points = shares(SWEEP, 4000)
    assert kstest(points[:, 1], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(points.T)[0, 1]) < 0.05


def test_a_stride_is_kept_to() -> None:
    sweep = replace(
        SWEEP, steps=SettingRange.parse("4:60:8", "steps"), guidance=SettingRange.parse("0.1:1:0.1", "guidance")
    )
    rows = sweep.rows(0, 500)
    assert set(rows["steps"]) == {4, 12, 20, 28, 36, 44, 52, 60}
    # As a person writes them: 0.3, not 0.30000000000000004.
    assert set(rows["guidance"]) == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}


def test_a_range_of_one_value_is_that_value() -> None:
    rows = replace(
        SWEEP, steps=SettingRange.parse("8", "steps"), guidance=SettingRange.parse("7.12345", "guidance")
    ).rows(0, 20)
    assert set(rows["steps"]) == {8}
    assert set(rows["guidance"]) == {7.12345}


@pytest.mark.parametrize("seed", range(5))
def test_even_sampling_is_more_even(seed: int) -> None:
    uniform, even = (replace(SWEEP, seed=seed, sampling=sampling) for sampling in ("uniform", "even"))
    # Also while it grows, and three times over: one lucky draw does not do it.
    for images in (100, 400):
        assert qmc.discrepancy(shares(even, images)) < qmc.discrepancy(shares(uniform, images)) / 3


def test_every_prompt_is_used_once_before_any_is_used_twice() -> None:
    prompts = tuple(f"prompt {number}" for number in range(17))
    used = replace(SWEEP, prompts=prompts).rows(0, 17 * 4)["prompt"].to_list()
    rounds = [used[start : start + 17] for start in range(0, len(used), 17)]
    assert all(sorted(each) == sorted(prompts) for each in rounds)
    assert len({tuple(each) for each in rounds}) == 4


# Pairs


PAIRED = replace(SWEEP, sampling="paired")


def test_four_images_in_a_row_share_prompt_and_seed_and_differ_in_their_settings() -> None:
    rows = PAIRED.rows(0, 402)
    pairs = rows.group_by(pl.col("index") // 4, maintain_order=True).agg(pl.all())
    assert all(len(set(each)) == 1 for name in ("prompt", "seed") for each in pairs[name])
    assert pairs["seed"].list.first().n_unique() == pairs.height == 101
    assert all(len(set(zip(*each, strict=True))) == len(each[0]) for each in pairs.select("steps", "guidance").rows())
    # Every prompt once before any is used twice, and the plane as evenly as by the sequence alone.
    prompts = pairs["prompt"].list.first()
    assert all(set(prompts[start : start + 3]) == set(SWEEP.prompts) for start in range(0, 99, 3))
    assert rows.select("steps", "guidance").equals(
        replace(SWEEP, sampling="even").rows(0, 402).select("steps", "guidance")
    )
    assert PAIRED.rows(130, 402).equals(rows.slice(130))


@pytest.mark.parametrize(
    ("steps", "guidance", "schedulers", "size"),
    [("8", "3", (), 1), ("8", "3", ("euler", "ddim", "unipc"), 3), ("4,8", "3", (), 2), ("4,8", "1,3,5", (), 4)],
)
def test_no_pair_holds_an_image_twice(steps: str, guidance: str, schedulers: tuple[str, ...], size: int) -> None:
    ranges = {"steps": SettingRange.parse(steps, "steps"), "guidance": SettingRange.parse(guidance, "guidance")}
    sweep = replace(PAIRED, **ranges, schedulers=schedulers)
    rows = sweep.rows(0, 60)
    assert sweep.pair_size == size
    assert rows.select("prompt", "seed", "steps", "guidance", "scheduler").n_unique() == 60


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_combination_of_further_factors_is_used_as_often(sampling: str) -> None:
    factors = {"schedulers": ("euler", "ddim"), "sizes": ((512, 512), (512, 768)), "negative_prompts": ("", "blurred")}
    rows = replace(SWEEP, sampling=sampling, **factors).rows(0, 400)
    counts = rows.group_by("scheduler", "width", "height", "negative_prompt").len()
    assert counts["len"].to_list() == [50] * 8
    assert set(rows["negative_prompt"]) == {None, "blurred"}


# Chosen settings


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_chosen_settings_are_rows_of_the_same_sweep_and_change_no_others(sampling: str) -> None:
    sweep = replace(SWEEP, sampling=sampling)
    chosen = tuple((steps, steps / 4) for steps in range(10, 20))
    extended = replace(sweep, extensions=(Extension(50, chosen),))
    rows, before = extended.rows(0, 80), sweep.rows(0, 80)
    assert extended.run_id == sweep.run_id
    assert rows.select("image_id", "batch", "image_path").equals(before.select("image_id", "batch", "image_path"))
    assert rows.head(50).equals(before.head(50)) and rows.slice(60).equals(before.slice(60))
    assert rows.slice(50, 10).select("steps", "guidance").rows() == list(chosen)
    assert [rows["seed"][place] for place in (50, 54, 58)] == rows["seed"][50:60].unique(maintain_order=True).to_list()
    again = Sweep.from_json(json.loads(json.dumps(extended.to_json())))
    assert again == extended and again.rows(55, 70).equals(rows.slice(55, 15))


# Refusals


def complaint(what: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        what(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "text", ["", "a", "4:", ":60", "4:60:8:1", "4-60", "nan", "4:inf", "1e999", "4:60:x", "4,", "4:8,16", "4,inf"]
)
def test_what_is_no_range_is_said(text: str) -> None:
    assert complaint(SettingRange.parse, text, "steps").startswith(f"invalid steps {text!r}: must be LOW:HIGH")


@pytest.mark.parametrize("text", ["60:4", "4:60:0", "4:60:-1"])
def test_an_empty_range_is_said(text: str) -> None:
    assert complaint(SettingRange.parse, text, "guidance").startswith(f"invalid guidance {text!r}: the range is empty")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompts": ()}, "no prompts"),
        ({"steps": SettingRange(0, 60)}, "steps"),
        ({"steps": SettingRange(4, 1001)}, "steps"),
        ({"steps": SettingRange(4.5, 60)}, "steps"),
        ({"steps": SettingRange(4, 60, 0.5)}, "steps"),
        ({"guidance": SettingRange(-1, 12)}, "guidance"),
        ({"guidance": SettingRange(1, 101)}, "guidance"),
        ({"batch_size": 0}, "batch size 0"),
        ({"sampling": "grid"}, "'grid'"),
        ({"width": 500}, "500"),
        ({"height": 0}, "0"),
        ({"steps": SettingRange(4, 8, values=(4, 4.5, 8))}, "steps '4,4.5,8'"),
        ({"sizes": ((512, 512), (512, 500))}, "500"),
        ({"schedulers": ("ddim", "ddim")}, "'ddim' is given twice"),
    ],
)
def test_settings_no_image_can_be_made_with_are_refused(change: dict[str, Any], named: str) -> None:
    assert named in complaint(replace, SWEEP, **change)


FULL = Settings.read({"FLEXY_MODELS": "full"})


def test_a_sweep_of_an_engine_without_guidance_has_none() -> None:
    assert SweepConfig(engine="flux_schnell", prompts=["a fox"], steps="1:8").sweep(FULL).guidance is None


@pytest.mark.parametrize(
    ("engine", "setting", "words"),
    [
        ("flux_schnell", {"guidance": "1:5"}, "flux_schnell has no guidance: leave it out"),
        ("flux_schnell", {"negative_prompt": "blurred"}, "flux_schnell has no negative prompt: leave it out"),
        ("flux2_dev", {"negative_prompt": "blurred"}, "flux2_dev has no negative prompt: leave it out"),
    ],
)
def test_a_setting_the_engine_ignores_is_refused(engine: str, setting: dict[str, str], words: str) -> None:
    config = SweepConfig(engine=engine, prompts=["a fox"], **setting)
    assert complaint(config.sweep, FULL) == words


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"schedulers": "euler,best"}, "invalid scheduler 'best' for realvis_xl: choose from ddim, dpmpp_2m, "),
        (
            {"engine": "flux_schnell", "schedulers": "ddim"},
            "invalid scheduler 'ddim' for flux_schnell: it is used with",
        ),
        ({"sizes": "512,big"}, "invalid size 'big': must be PIXELS or WIDTHxHEIGHT, as in 512 or 768x1024"),
        ({"sizes": "512x512x2"}, "invalid size '512x512x2': must be"),
        ({"sizes": "512,1001"}, "invalid image side 1001 for realvis_xl: must be a multiple of 8"),
        (
            {"engine": "flux_schnell", "negative_prompts": ["", "blurred"]},
            "flux_schnell has no negative prompt: leave it",
        ),
    ],
)
def test_a_factor_that_no_image_can_be_made_with_is_refused(setting: dict[str, Any], words: str) -> None:
    config = SweepConfig(**{"engine": "realvis_xl", "prompts": ["a fox"]} | setting)
    assert complaint(config.sweep, FULL).startswith(words)


def test_one_of_a_list_is_the_setting_itself() -> None:
    plain = SweepConfig(engine="realvis_xl", prompts=["a fox"], width=768, height=1024, negative_prompt="blurred")
    listed = SweepConfig(engine="realvis_xl", prompts=["a fox"], sizes="768x1024", negative_prompts=["blurred"])
    assert listed.sweep(FULL) == plain.sweep(FULL)


@pytest.mark.parametrize(
    ("engine", "setting", "words"),
    [
        ("flux_schnell", {"steps": "4:60"}, "invalid steps '4:60' for flux_schnell: it is made for 1:8: use steps 1:8"),
        ("sdxl_lightning_4", {"steps": "8"}, "invalid steps '8' for sdxl_lightning_4: it is made for 4: use steps 4"),
        ("flux_1_dev", {"guidance": "0.5:12"}, "invalid guidance '0.5:12' for flux_1_dev: it is made for 1:10: use"),
    ],
)
def test_what_an_engine_is_not_made_for_is_refused_in_a_sweep_and_a_trial(
    engine: str, setting: dict[str, str], words: str
) -> None:
    line = complaint(SweepConfig(engine=engine, prompts=["a fox"], **setting).sweep, FULL)
    assert line.startswith(words) and line.endswith(", or another engine")
    if "steps" in setting:
        outside = complaint(lambda: Trial.of(FULL, "a fox", engine, steps=60))
        assert outside.startswith(f"invalid steps '60' for {engine}: it is made for ")


@pytest.mark.parametrize(
    ("engine", "steps", "guidance"),
    [
        ("realvis_xl_v4", "4:60", "0.5:12"),
        ("sdxl_turbo", "1:4", "None"),
        ("sdxl_lightning_8", "8", "None"),
        ("flux_1_dev", "1:50", "1:10"),
        ("flux_dev", "1:8", "None"),
    ],
)
def test_a_sweeps_default_ranges_are_what_its_engine_is_made_for(engine: str, steps: str, guidance: str) -> None:
    sweep = SweepConfig(engine=engine, prompts=["a fox"]).sweep(FULL)
    assert (str(sweep.steps), str(sweep.guidance)) == (steps, guidance)


# A budget in hours


@pytest.mark.parametrize(("base", "a_step"), [(200, 50), (0, 30)])
def test_hours_become_as_many_images_as_the_engine_makes_in_them(base: int, a_step: int) -> None:
    timings = [(steps, base + a_step * steps) for steps in range(4, 60, 5)]
    images = images_in_time(SWEEP, timings, 3600)
    seconds = (base + a_step * SWEEP.rows(0, images)["steps"].to_numpy()).sum() / 1000
    assert seconds == pytest.approx(3600, rel=0.03)


def test_one_timed_image_is_enough_and_none_is_not() -> None:
    assert images_in_time(SWEEP, [(10, 1000)], 360) == pytest.approx(360 / (0.1 * 32), abs=1)
    assert images_in_time(SWEEP, [(10, 10_000_000)], 1) == 1
    assert "no image of mini_sdxl has been timed: give a number" in complaint(images_in_time, SWEEP, [], 3600)
