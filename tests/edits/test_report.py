"""The edit report is one inert file that says what the tables say, and where they say nothing says so."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from flexy_assets.edits.comparison import compare_methods, mean_scores
from flexy_assets.edits.report.build import (
    MAX_TASKS,
    MAX_THUMBNAILS,
    MIN_TASKS,
    edit_thumbnails_needed,
    render_edit_report,
)
from flexy_assets.storage.edits import EDIT_CANDIDATES_SCHEMA
from resources.metrics import Metric
from resources.metrics.edits import METRICS
from tests.support.browser import Browser
from tests.support.page import Page

STEPS = 8
TRUTH = METRICS["truth"]
SELECTING = tuple(metric for metric in METRICS.values() if metric.role == "selecting")
INDEPENDENT = (METRICS["hps_v2_score"], METRICS["aes_v2_score"])
MEASURED = (TRUTH, *INDEPENDENT, *SELECTING)
HOSTILE = "</script><script>window.pwned = 1</script><img src=http://evil.test/x onerror=alert(1)>\" onload='x"


def candidates(
    tasks: int = 40, budgets: Sequence[int] = (8,), gain: float = 0.2, prompt: str = "make it red", seed: int = 0
) -> pl.DataFrame:
    """EACPS, with previews and a local stage, and TTFLUX; the truth of EACPS's are better by `gain`."""
    rng = np.random.default_rng(seed)
    rows = []
    for task in range(tasks):
        for budget in budgets:
            half = budget // 2
            local = [("local", f"l{index}", f"g{index % half}", 4, 4, 4) for index in range(budget)]
            previews = [("global", f"g{index}", None, 2, 8, 2) for index in range(2 * half)]
            carried_on = [("global", f"g{index}", None, 8, 8, 6) for index in range(half)]
            # What the previews cost too much is saved at one more that is carried on.
            carried_on[-1] = (*carried_on[-1][:5], budget * STEPS - 4 * budget - 4 * half - 6 * (half - 1))
            fresh = [("global", f"g{index}", None, 8, 8, 8) for index in range(budget)]
            for method, made in (("eacps", [*previews, *carried_on, *local]), ("ttflux", fresh)):
                winner = made[-1][1]
                for stage, name, parent, until, path, nfe in made:
                    better = gain if method == "eacps" else 0.0
                    truth = float(np.clip(0.5 + better + 0.1 * rng.standard_normal(), 0, 1))
                    chosen = name == winner and until == path
                    rows.append(
                        {
                            "run": "run",
                            "batch": "batch_0000",
                            "candidate_id": f"{task}/{method}/{budget}/{name}/{until}",
                            "task_id": f"task {task:03d}",
                            "prompt": f"{prompt} {task}",
                            "source_path": f"sources/{task}.png",
                            "method": method,
                            "budget": budget * STEPS,
                            "name": name,
                            "stage": stage,
                            "parent": parent,
                            "strength": 0.5 if parent else 1.0,
                            "seed": int(rng.integers(2**31)),
                            "noise_moves": "[[0.4, 7]]" if parent else "[]",
                            "stop_step": until,
                            "num_steps": path,
                            "nfe": nfe,
                            "elapsed_ms": 40 * nfe,
                            "scored_ms": 15,
                            "image_path": f"{method}/{budget}/{task}/{name}-{until}.webp",
                            "error": None,
                            "chosen": chosen,
                            "potential": 24 + rng.standard_normal(),
                            "pf": 20 + rng.standard_normal(),
                            "cons": rng.uniform(0.7, 0.95),
                            "lpips": rng.uniform(0.1, 0.4),
                            "parent_cons": rng.uniform(0.9, 1) if parent else None,
                            "parent_lpips": rng.uniform(0, 0.1) if parent else None,
                            "hps_v2_score": 0.27 + 0.01 * rng.standard_normal(),
                            "aes_v2_score": 5 + 0.3 * rng.standard_normal(),
                            "carried_out": float(truth > 0.5),
                            "preserved": 1.0,
                            "truth": truth,
                        }
                    )
    metrics = dict.fromkeys(list(rows[0])[len(EDIT_CANDIDATES_SCHEMA) :] if rows else [], pl.Float64)
    return pl.DataFrame(rows, schema=EDIT_CANDIDATES_SCHEMA | metrics)


def tables(
    made: pl.DataFrame,
    metrics: Sequence[Metric] = MEASURED,
    budgets: Sequence[tuple[int, int]] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    names = [metric.name for metric in metrics if metric.name in made.columns]
    values = (
        made.filter("chosen")
        .unpivot(names, index=["task_id", "method", "budget"], variable_name="metric")
        .drop_nulls("value")
    )
    nfe = None if budgets is None else [(ours * STEPS, theirs * STEPS) for ours, theirs in budgets]
    return compare_methods(values, metrics, "eacps", "ttflux", nfe), mean_scores(values, metrics)


def report(
    made: pl.DataFrame,
    metrics: Sequence[Metric] = MEASURED,
    budgets: Sequence[tuple[int, int]] | None = None,
    thumbnails: dict[str, str] | None = None,
) -> Page:
    return Page(
        render_edit_report(made, *tables(made, metrics, budgets), thumbnails or {}, {"editor": "mini"}, metrics)
    )


def picture(colour: str | tuple[int, int, int] = "teal") -> str:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "WEBP")
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def answer(page: Page) -> str:
    return page.words.split("Edit report")[2].split("The methods selected by")[0]


def test_better_edits_are_called_better_by_metrics_not_used_for_selection() -> None:
    made = candidates(gain=0.2)
    compared, reached = tables(made)
    row = compared.row(by_predicate=pl.col("metric") == "truth", named=True)
    means = {each["method"]: each["mean"] for each in reached.filter(metric="truth").to_dicts()}
    said = answer(report(made))
    assert "At 8 denoises EACPS’s edits are better than TTFLUX’s." in said
    assert (
        f"By the ground truth: {means['eacps']:.3f} against {means['ttflux']:.3f}, +{row['gain']:.3f} (95 % interval "
        in said
    )
    assert f"over 40 tasks; {row['wins']} won, {row['ties']} tied, {row['losses']} lost." in said
    assert "no significant difference by HPS v2.1 and Aesthetic V2." in said
    assert "potential" not in said


def test_the_share_of_edits_carried_out_that_keep_the_rest_is_that_of_the_winners() -> None:
    ours = pl.col("method") == "eacps"
    first = pl.col("task_id") < "task 030"
    made = candidates().with_columns(
        carried_out=(~ours | first).cast(pl.Float64), preserved=(ours | first).cast(pl.Float64)
    )
    assert "keep the rest in 75% of tasks, TTFLUX’s in 75%." in answer(report(made))
    made = made.with_columns(carried_out=first.cast(pl.Float64) * ours.cast(pl.Float64))
    assert "EACPS’s edits carry out the instruction and keep the rest in 75% of tasks, TTFLUX’s in 0%." in answer(
        report(made)
    )


def test_worse_edits_are_called_worse() -> None:
    assert "At 8 denoises TTFLUX’s edits are better than EACPS’s." in answer(report(candidates(gain=-0.2)))


def test_an_interval_over_zero_shows_nothing() -> None:
    odd = pl.col("task_id").str.slice(5).cast(pl.Int64) % 2 == 1
    ours = pl.when(odd).then(0.6).otherwise(0.4)
    page = report(candidates().with_columns(truth=pl.when(method="eacps").then(ours).otherwise(0.5)))
    assert "At 8 denoises EACPS’s and TTFLUX’s edits do not differ significantly." in answer(page)
    assert ", which includes 0, over 40 tasks" in answer(page)
    assert "EACPS better" not in page.words


def test_half_the_budget_is_judged_at_its_own_cost() -> None:
    made = candidates(budgets=(4, 8))
    page = report(made, budgets=[(4, 4), (8, 8), (4, 8)])
    assert answer(page).startswith(" At 8 denoises EACPS’s")
    assert re.search(
        r"EACPS at 4 denoises against TTFLUX at 8 denoises: \+0\.\d+ \(.*\), EACPS’s are still better\.", answer(page)
    )
    assert "Candidates at other budgets are not shown." in page.words


def test_without_the_truth_held_out_metrics_decide() -> None:
    made = (
        candidates()
        .drop("truth", "carried_out", "preserved")
        .with_columns(hps_v2_score=pl.when(method="eacps").then(0.3).otherwise(0.2) + pl.col("hps_v2_score") / 10)
    )
    page = report(made, (*INDEPENDENT, *SELECTING))
    assert "At 8 denoises EACPS’s edits are better than TTFLUX’s." in answer(page)
    assert "By HPS v2.1, which was not used for selection: " in answer(page)
    assert "EACPS won by HPS v2.1, " in page.words
    assert "truth" not in page.words


@pytest.mark.parametrize("absent", [True, False], ids=["absent", "null"])
def test_a_metric_used_for_selection_is_no_evidence(absent: bool) -> None:
    nothing = ["truth", "carried_out", "preserved", "hps_v2_score", "aes_v2_score"]
    made = candidates().with_columns(potential=pl.when(method="eacps").then(30.0).otherwise(20.0))
    made = made.drop(nothing) if absent else made.with_columns(pl.lit(None, pl.Float64).alias(name) for name in nothing)
    page = report(made, SELECTING if absent else MEASURED)
    assert "Whether EACPS’s or TTFLUX’s edits are better is unknown:" in answer(page)
    assert "are better than" not in page.words
    assert "EACPS better" not in page.words
    assert "no evidence" in page.words


@pytest.mark.parametrize(
    ("tasks", "few"), [(1, "1 task is too few"), (MIN_TASKS - 1, f"{MIN_TASKS - 1} tasks are too few")]
)
def test_of_few_tasks_no_method_is_called_better(tasks: int, few: str) -> None:
    page = report(candidates(tasks))
    assert f"whether EACPS’s or TTFLUX’s edits are better is unknown: {few}." in answer(page)
    assert "EACPS better" not in page.words


def test_no_candidates_make_a_page_that_says_so() -> None:
    page = report(candidates(0))
    for words in (
        "No result yet: no task has been compared.",
        "Nothing was compared",
        "There is no task to show.",
    ):
        assert words in page.words


def test_the_cost_is_said_to_be_equal_only_where_it_is() -> None:
    made = candidates(tasks=12)
    assert (
        "ran the same number of denoising steps (NFE) in every task, previews included: 12 pairs" in report(made).words
    )
    dear = (pl.col("task_id") == "task 003") & (pl.col("name") == "l2")
    unequal = report(made.with_columns(nfe=pl.when(dear).then(5).otherwise("nfe"))).words
    assert "The costs are not equal: in 1 of 12 pairs of searches" in unequal
    assert "first in task 003, EACPS 65 and TTFLUX 64." in unequal


def test_the_local_stage_is_told_with_its_chance() -> None:
    made = candidates(tasks=20).with_columns(parent_cons=pl.when(pl.col("parent").is_not_null()).then(0.97))
    local = report(made).words.split("The local stage")[1]
    assert "EACPS 8 denoises 160 0.970 0.970 to 0.970" in local
    assert "67% 20 of 20, 100% 83% to 100%" in local
    assert "not measured" in report(made.drop("parent_lpips")).words
    assert "there was no local stage" in report(made.filter(method="ttflux")).words


def test_previews_that_went_on_are_shown_once_and_stopped_ones_say_where() -> None:
    page = report(candidates(tasks=1))
    eacps = page.words.split("24 candidates")[2].split(" TTFLUX ")[0]
    names = re.findall(r"\b[gl]\d+\b(?= (?:stopped|winner|global|local))", eacps)
    assert names == [f"{stage}{index}" for stage in "gl" for index in range(8)]
    assert len(re.findall(r"stopped at step 2 of 8 global", eacps)) == 4
    assert len([a for a in page.attributes("figure") if a.get("class") == "stopped"]) == 4
    assert "l7 winner local, from g3 at strength 0.5" in page.words


def test_a_failed_candidate_is_called_failed() -> None:
    lost = (pl.col("method") == "ttflux") & (pl.col("name") == "g2")
    made = candidates(tasks=1).with_columns(
        image_path=pl.when(~lost).then("image_path"), error=pl.when(lost).then(pl.lit("out of memory"))
    )
    assert "g2 failed" in report(made).words


def test_tasks_are_told_apart_by_who_won_them() -> None:
    made = candidates(tasks=12)
    won = {"first": 5, "tied": 3, "second": 4}
    task = pl.col("task_id").str.slice(5).cast(pl.Int64)
    ours = pl.when(task < 5).then(0.9).when(task < 8).then(0.5).otherwise(0.1)
    page = report(made.with_columns(truth=pl.when(method="eacps").then(ours).otherwise(0.5)))
    found = [a["data-won"] for a in page.attributes("article")]
    assert {each: found.count(each) for each in won} == won
    assert "All 12 EACPS won 5 Tied 3 TTFLUX won 4 " in page.words
    assert "task 000 : EACPS won by truth, 0.900 against 0.500" in page.words
    assert "task 011 : TTFLUX won by truth, 0.500 against 0.100" in page.words


@pytest.fixture(scope="module")
def hostile() -> Page:
    texts = [
        "run",
        "batch",
        "task_id",
        "prompt",
        "source_path",
        "name",
        "stage",
        "parent",
        "noise_moves",
        "image_path",
        "error",
    ]
    made = candidates(tasks=12, prompt=HOSTILE).with_columns(
        pl.lit(HOSTILE).alias(name) + pl.col(name) for name in texts
    )
    made = made.with_columns(error=pl.lit(HOSTILE)).rename({"hps_v2_score": HOSTILE})
    metrics = (TRUTH, Metric(HOSTILE, HOSTILE, HOSTILE, 0, 1, role="independent"))
    pictures = dict.fromkeys(edit_thumbnails_needed(made), picture())
    return Page(render_edit_report(made, *tables(made, metrics), pictures, {HOSTILE: HOSTILE}, metrics))


def test_hostile_text_stays_text(hostile: Page) -> None:
    assert [a.get("type") for a in hostile.attributes("script")] == [None, None]
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert not [a for a in hostile.attributes("img") if "evil" in (a.get("src") or "")]
    assert HOSTILE in hostile.words


def test_only_the_scripts_of_the_page_may_run(hostile: Page) -> None:
    policy = next(a["content"] or "" for a in hostile.attributes("meta") if a.get("http-equiv"))
    scripts = hostile.contents["script"]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*);", policy) == [" ".join(f"'sha256-{each}'" for each in hashes)]


def test_nothing_is_fetched(hostile: Page) -> None:
    names = ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")
    loads = [value or "" for _, attributes in hostile.tags for name, value in attributes.items() if name in names]
    assert loads
    assert all(value.startswith("data:image/webp;base64,") for value in loads)
    css = " ".join(hostile.contents["style"] + [a.get("style") or "" for _, a in hostile.tags])
    assert "@import" not in css
    assert "url(" not in css
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in hostile.tags}


def test_every_picture_is_embedded_once_has_its_words_and_can_be_reached() -> None:
    made = candidates(tasks=3)
    needed = edit_thumbnails_needed(made)
    assert len(needed) == 3 * (1 + 16 + 8)
    page = report(made, thumbnails={path: picture((index, 0, 0)) for index, path in enumerate(needed)})
    images = page.attributes("img")
    assert all(image["alt"] for image in images)
    assert len([image for image in images if image.get("src")]) == len(needed)
    keys = {image["id"] for image in images if image.get("id")}
    again = [image["data-same"] for image in images if image.get("data-same")]
    assert len(again) == 3 * 2
    assert set(again) <= keys
    # Two more are the dialog's.
    assert len([a for a in page.attributes("button") if a.get("class") == "picture"]) == len(images) - 2
    assert "no image" not in page.words
    assert f"{len(needed)} images could not be read." in report(made).words


def test_curves_show_every_budget_and_method() -> None:
    page = report(candidates(tasks=12, budgets=(2, 4, 8)))
    figures = json.loads(page.contents["script"][1])
    # Truth with its gain, two independent metrics, four that selected.
    assert len(figures) == 8
    assert {a["id"] for a in page.attributes("div") if a.get("class") == "plot"} == set(figures)
    lines = [trace for figure in figures.values() for trace in figure["data"] if trace.get("name")]
    assert [trace["name"] for trace in lines].count("EACPS") == 8
    assert all(len(trace["x"]) == len(trace["y"]) == 3 for trace in lines)
    assert len(lines) == 7 * 2 + 1
    assert lines[0]["hovertext"][0].startswith("EACPS at 2 denoises: 0.")
    assert figures["figure-0"]["layout"]["xaxis"]["ticktext"] == ["2", "4", "8"]
    only_one = report(candidates(tasks=12))
    assert "There is one budget, so there is no curve." in only_one.words
    assert len(only_one.attributes("script")) == 2


def test_curves_are_drawn_in_a_browser_that_fetches_nothing(browser: Browser, tmp_path: Path) -> None:
    made = candidates(tasks=12, budgets=(2, 4, 8))
    path = tmp_path / "report.html"
    path.write_text(render_edit_report(made, *tables(made), {}, {}, MEASURED), encoding="utf-8")
    browser.resize()
    browser.open(path)
    browser.evaluate("document.getElementById('figure-0').scrollIntoView()")
    browser.until("document.querySelectorAll('#figure-0 .point').length === 6")
    assert (browser.errors, browser.requests) == ([], [path.as_uri()])


def test_extra_metrics_are_shown_and_strange_numbers_are_none() -> None:
    made = candidates(tasks=2).with_columns(
        judge=pl.lit(7.25), cons=pl.lit(float("nan")), lpips=pl.lit(None, pl.Float64)
    )
    words = report(made).words.split("Task by task")[1]
    assert "judge 7.25" in words
    assert "nan" not in words.lower()
    assert "LPIPS 0" not in words


def test_many_tasks_stay_a_page_that_can_be_opened() -> None:
    made = candidates(tasks=MAX_TASKS + 20)
    needed = edit_thumbnails_needed(made)
    assert len(needed) == MAX_THUMBNAILS
    pictures = dict.fromkeys(needed, picture() + "A" * 4000)
    compared = tables(made)
    start = time.perf_counter()
    page = render_edit_report(made, *compared, pictures, {}, MEASURED)
    assert time.perf_counter() - start < 20
    assert len(page.encode()) < 18_000_000
    built = Page(page)
    assert f"The first {MAX_TASKS} of {MAX_TASKS + 20} tasks are shown; the statistics above count all." in built.words
    assert re.search(r"To keep this file small [\d,]+ images are left out, winners last", built.words)
    winners = [a for a in built.attributes("img") if (a.get("alt") or "").endswith("winner")]
    assert len([a for a in winners if a.get("src")]) == 2 * MAX_TASKS


def test_two_hundred_tasks_fit_into_fifteen_megabytes() -> None:
    made = candidates(tasks=200)
    # As TTFLUX's eight are, so are eight of EACPS's: no previews.
    made = made.filter((pl.col("method") == "ttflux") | (pl.col("stage") == "local"))
    needed = edit_thumbnails_needed(made)
    assert len(needed) == 200 * (1 + 2 * 8)
    page = render_edit_report(made, *tables(made), dict.fromkeys(needed, picture() + "A" * 3000), {}, MEASURED)
    assert len(page.encode()) < 15_000_000
    assert "are left out" not in page
