"""The report is one inert file that says what the tables say."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from benchmarks import report as synthetic
from flexy_assets import reporting
from flexy_assets.reporting.thumbnails import make_contact_sheet, make_thumbnail, make_thumbnails
from flexy_assets.sweep.analysis import (
    EFFECTS_SCHEMA,
    METRIC_LABELS,
    SCORES_TABLE_SCHEMA,
    SWEEP_COMPARISON_SCHEMA,
    AnalysisTables,
    find_time_heaps,
    measured_images,
    times_table,
)
from flexy_assets.sweep.report.build import render_sweep_report, sweep_thumbnails_needed
from flexy_assets.sweep.report.comparison_panels import comparison_panels
from flexy_assets.sweep.report.embedding_map import map_embeddings
from flexy_assets.sweep.report.points import MAX_BYTES, MAX_POINTS
from flexy_assets.sweep.report.summary import answer_sweep, describe_components, describe_times, format_effects
from resources.images import UnreadableImageError
from tests.support.page import Page

pytestmark = pytest.mark.slow(seconds=85)

STATIC = Path(reporting.__file__).parent / "static"
HOSTILE = "</script><script>window.pwned = 1</script><img src=http://evil.test/x onerror=alert(1)>\" onload='x"


def sweep(images: int = 200, effect: float = 1.0, prompt: str = "a fox", seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    steps, guidance = rng.integers(4, 61, images), rng.uniform(0.5, 12, images)
    surface = -effect * ((np.log2(steps / 24)) ** 2 + ((guidance - 6) / 4) ** 2)
    return pl.DataFrame(
        {
            "image_id": [f"id-{index:05d}" for index in range(images)],
            "run_id": ["4b7193fd"] * images,
            "batch": ["4b7193fd_0000"] * images,
            "engine": ["realvis_xl"] * images,
            "prompt": [f"{prompt} {index % 7}" for index in range(images)],
            "steps": steps,
            "guidance": guidance,
            "seed": np.arange(images),
            "elapsed_ms": 200 + 50 * steps,
            "image_path": [f"{index}.webp" for index in range(images)],
            **{metric: 5 + surface + rng.standard_normal(images) for metric in METRIC_LABELS},
        },
        schema_overrides=SCORES_TABLE_SCHEMA,
    )


NO_TABLES = AnalysisTables.of(sweep().clear())


SWEEP = sweep()


def report(scores: pl.DataFrame) -> str:
    return render_sweep_report(scores, AnalysisTables.of(scores), {})


@pytest.fixture(scope="module")
def tables() -> AnalysisTables:
    return AnalysisTables.of(SWEEP)


@pytest.fixture(scope="module")
def figures(tables: AnalysisTables) -> dict[str, Any]:
    found: dict[str, Any] = of_script(render_sweep_report(SWEEP, tables, {}))["figures"]
    return found


@pytest.fixture(scope="module")
def two_thousand(tables: AnalysisTables) -> str:
    scores = synthetic.sweep(2000)
    photographs = [synthetic.photograph(seed, side=256) for seed in range(20)]
    # Each is there a hundred times, and so has a hundredth of the room.
    small = make_thumbnails(lambda path: photographs[int(path)], [str(n) for n in range(20)], MAX_BYTES // 100)
    pictures = {image_id: small[str(n % 20)] for n, image_id in enumerate(scores["image_id"])}
    return render_sweep_report(scores, tables, pictures)


@pytest.fixture(scope="module")
def hostile(tables: AnalysisTables) -> Page:
    scores = SWEEP.with_columns(
        engine=pl.lit(HOSTILE), run_id=pl.lit(HOSTILE), image_id=pl.lit(HOSTILE) + pl.col("image_id")
    ).with_columns(pl.lit(HOSTILE) + pl.col("prompt"))
    named = {
        name: table.with_columns(engine=pl.lit(HOSTILE), **({"name": HOSTILE + table["name"]} if by else {}))
        for name, table in vars(tables).items()
        for by in ["name" in table.columns]
    }
    return Page(render_sweep_report(scores, AnalysisTables(**named), {}))


def test_hostile_text_stays_text(hostile: Page) -> None:
    assert [a.get("type") for a in hostile.attributes("script")] == ["text/plain", "application/json", None, None]
    assert not [tag for tag, _ in hostile.tags if tag == "img"]
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in hostile.words
    held = json.loads(hostile.contents["script"][1])
    assert held["names"]["engine"] == [HOSTILE]
    # Plotly reads HTML in what it writes: nothing from outside is among it.
    assert HOSTILE not in json.dumps([figure["data"] for figure in held["figures"].values()])


def test_only_the_scripts_of_the_page_may_run(hostile: Page) -> None:
    allowed = re.findall(r"'sha256-([^']+)'", hostile.policy)
    plotly, _, *own = hostile.contents["script"]
    scripts = *own, gzip.decompress(base64.b64decode(plotly)).decode()
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts] == allowed
    assert "default-src 'none'" in hostile.policy
    assert "'unsafe-inline'" not in hostile.policy.split("script-src")[1]


def test_nothing_is_fetched(tables: AnalysisTables) -> None:
    picture = make_thumbnail(Image.new("RGB", (64, 64), "teal"))
    page = Page(render_sweep_report(SWEEP, tables, dict.fromkeys(sweep_thumbnails_needed(SWEEP), picture)))
    loads = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")
    ]
    assert loads
    assert all(value.startswith("#") for value in loads)
    css = " ".join(page.contents["style"] + [a.get("style") or "" for _, a in page.tags])
    assert "@import" not in css
    assert "url(" not in css
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_the_answer_is_that_of_the_tables() -> None:
    scores = sweep(400)
    found = AnalysisTables.of(scores)
    words = Page(render_sweep_report(scores, found, {})).words
    best, value = (found.spots.row(by_predicate=pl.col("target") == t, named=True) for t in ("overall", "value"))
    lead, top, region = answer_sweep(found, "steps and guidance").figures
    for figure, row in ((lead, value), (top, best)):
        assert figure.setting == f"{row['steps']} steps at guidance {row['guidance']:.1f}"
        seconds, predicted = figure.facts
        assert seconds == f"{row['seconds']:.1f} s an image"
        center, low, high = map(float, re.findall(r"−?[\d.]+", predicted))
        assert (center, low, high) == pytest.approx((row["predicted"], row["low"], row["high"]), abs=0.05)
    assert region.setting.startswith(f"{value['steps_low']}–{value['steps_high']} steps")
    times = re.findall(r"[\d.]+", region.facts[0])
    assert list(map(float, times)) == pytest.approx(
        [0.2 + 0.05 * value[f"steps_{end}"] for end in ("low", "high")], abs=0.06
    )
    assert all(f"{figure.title} {figure.setting} {figure.facts[0]}" in words for figure in (lead, top, region))
    assert "Weak evidence" not in words
    said = found.returns.row(by_predicate=pl.col("target") == "overall", named=True)["summary"]
    assert said.startswith("plateau from ") and f"Overall: {said}" in words


def test_an_images_overall_score_has_the_weights_of_the_analysis(tables: AnalysisTables) -> None:
    weight = (pl.col("target") == "clip_score").cast(pl.Float64)
    weighted = replace(tables, regression=tables.regression.with_columns(overall_weight=weight))
    columns = of_script(render_sweep_report(SWEEP, weighted, {}))["columns"]
    clip, overall = np.array(columns["clip_score"]), np.array(columns["overall"])
    assert overall == pytest.approx((clip - clip.mean()) / clip.std(ddof=1), abs=1e-4)


def test_an_engine_without_guidance_is_said_to_have_none_and_shown_none() -> None:
    unguided = sweep(200).with_columns(engine=pl.lit("flux_schnell"), guidance=pl.lit(None, pl.Float64))
    alone, both = (Page(report(scores)) for scores in (unguided, pl.concat([unguided, sweep(200, seed=1)])))
    assert re.search(r"Lead: use this \d+ steps \d", alone.words)
    assert "Steps explain" in alone.words
    attributes = " ".join(value or "" for _, found in alone.tags for value in found.values())
    for shown in (alone.words, attributes):
        assert {found.group() for found in re.finditer(r"\w* ?[Gg]uidance", shown)} <= {"no guidance"}
    # Beside an engine that has one it is the same.
    said = alone.words.split("This engine has no guidance")[1].split("Compared at the same settings")[0]
    assert both.words.split("This engine has no guidance")[1].startswith(f"{said}realvis_xl ")
    assert "steps at guidance" in both.words


def test_weak_evidence_is_called_weak_and_none_is_called_none() -> None:
    weak = Page(report(sweep(1500, effect=0.12))).words
    assert "Weak evidence, a hint and not a rule. Lead: use this" in weak
    flat = report(sweep(200, effect=0, seed=1))
    assert "No setting is named: no significant effect of steps or guidance." in Page(flat).words
    assert "no setting is worth more seconds than the quickest" in Page(flat).words
    assert not [key for key in of_script(flat)["figures"] if key.endswith(("-surface", "-front"))]


def test_counts_and_missing_scores_are_told() -> None:
    scores = sweep(120).with_columns(hps_v2_score=pl.when(pl.col("seed") >= 33).then("hps_v2_score"))
    words = Page(render_sweep_report(scores, NO_TABLES, {})).words
    assert "Images 120 images of 7 prompts Sweep 4b7193fd Engine realvis_xl (weights not recorded)" in words
    assert "realvis_xl none none none 33 120" in words


def test_every_image_of_two_thousand_has_its_picture_under_15_megabytes(two_thousand: str) -> None:
    assert len(two_thousand.encode()) < 15_000_000
    held = of_script(two_thousand)
    assert len(held["pictures"]) == 2000
    assert None not in held["pictures"]
    longer = {max(Image.open(BytesIO(base64.b64decode(webp))).size) for webp in held["pictures"][:50]}
    assert len(longer) == 1
    assert longer.pop() >= 96


def test_of_more_images_a_sample_is_shown_and_said_so() -> None:
    scores = synthetic.sweep(20_000).with_columns(
        engine=pl.when(pl.int_range(pl.len()) < 300).then(pl.lit("rare")).otherwise("engine")
    )
    needed = sweep_thumbnails_needed(scores)
    assert len(needed) == len(set(needed)) == MAX_POINTS
    page = render_sweep_report(scores, NO_TABLES, {})
    held = of_script(page)
    assert held["columns"]["id"] == sorted(needed, key=lambda image_id: (of(scores, image_id)["engine"], image_id))
    assert f"{MAX_POINTS:,} of 20,000 images are on this page" in Page(page).words
    assert scores.filter(pl.col("image_id").is_in(needed), engine="rare").height == 300
    for metric in METRIC_LABELS:
        best, worst = (scores.sort(metric, descending=way)["image_id"][0] for way in (True, False))
        assert {best, worst} <= set(needed)


def of(scores: pl.DataFrame, image_id: str) -> dict[str, Any]:
    return scores.row(by_predicate=pl.col("image_id") == image_id, named=True)


def of_script(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Page(page).contents["script"][1])
    return found


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            sweep(40).with_columns(
                clip_score=pl.when(pl.col("seed") < 20).then("clip_score"),
                hps_v2_score=pl.when(pl.col("seed") >= 20).then("hps_v2_score"),
            ),
            "No image has all 4 scores",
        ),
        (sweep(1), "no sweet spot: too few images (1; 10 needed)"),
        (sweep(60).with_columns(clip_score=pl.lit(0.3)), "CLIP score is the same for every image (0.300)"),
        (sweep(60).with_columns(guidance=pl.lit(7.5)), "Guidance never varies (always 7.5)"),
        (sweep(60).with_columns(steps=pl.lit(8)), "Steps never varies (always 8)"),
        (
            sweep(60).with_columns(clip_score=pl.when(pl.col("seed") > 2).then("clip_score").otherwise(math.nan)),
            "3 of 60 values of CLIP score are NaN or infinite, and count as missing",
        ),
        (sweep().clear(), "there is no image"),
    ],
    ids=["no complete row", "one row", "constant column", "one guidance", "one steps", "NaN", "none"],
)
def test_what_could_not_be_done_is_said_with_its_reason(scores: pl.DataFrame, said: str) -> None:
    words = Page(report(scores)).words
    assert said in words.split("What could not be done, and why")[1]


def test_nothing_is_said_to_be_undone_where_all_was_done(tables: AnalysisTables) -> None:
    assert "could not be done" not in Page(render_sweep_report(SWEEP, tables, {})).words


@pytest.mark.parametrize(
    "scores",
    [
        sweep().clear(),
        sweep(1),
        sweep(5),
        sweep(30).with_columns(pl.lit(None).alias(metric) for metric in METRIC_LABELS),
        sweep(30).with_columns(steps=pl.lit(None), guidance=pl.lit(None)),
        sweep(30).with_columns(guidance=pl.lit(1.0), steps=pl.lit(8), elapsed_ms=pl.lit(None)),
        sweep(30).with_columns(prompt=pl.lit(None), engine=pl.lit(None), seed=pl.lit(None)),
    ],
    ids=["none", "one", "five", "unscored", "no settings", "one setting", "unnamed"],
)
def test_thin_data_still_makes_a_page(scores: pl.DataFrame) -> None:
    sweep_thumbnails_needed(scores)
    assert "</html>" in report(scores)[-20:]


def test_every_plot_has_its_place(tables: AnalysisTables) -> None:
    page = Page(render_sweep_report(SWEEP, tables, {}))
    figures = json.loads(page.contents["script"][1])["figures"]
    places = {attributes["id"] for _, attributes in page.tags if attributes.get("class") == "plot"}
    assert places == {*figures, "explore", "parallel"}
    # Each metric by steps, by guidance and by both; overall by both, its front, seconds and correlations.
    assert len(figures) == 3 * len(METRIC_LABELS) + 4


def test_plotly_is_the_published_bundle_and_draws_every_kind_of_trace(figures: dict[str, Any]) -> None:
    folder = STATIC / "vendor"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        script = (folder / name).read_bytes()
        assert hashlib.sha256(script).hexdigest() == digest
    assert b"v4.1.1" in script and (folder / "plotly.LICENSE").read_text().startswith("MIT License")
    kinds = {trace["type"] for figure in figures.values() for trace in figure["data"]}
    assert kinds == {"scatter", "heatmap", "contour"}
    assert all(f'name:"{kind}"'.encode() in script for kind in kinds)


def test_every_script_of_ours_is_type_checked() -> None:
    scripts = sorted(STATIC.glob("*.js"))
    checked = json.loads((STATIC / "tsconfig.json").read_text())["files"]
    assert {script.name for script in scripts} == {name for name in checked if name.endswith(".js")}
    assert all(script.read_text("utf-8").startswith("// @ts-check\n") for script in scripts)


def test_lines_bands_and_surfaces_are_those_of_the_response(tables: AnalysisTables, figures: dict[str, Any]) -> None:
    for along, suffix in (("steps", ""), ("guidance", "-guidance")):
        curve = tables.response.filter(target="clip_score", curve=along)
        band, line = figures[f"figure-0-clip_score{suffix}"]["data"]
        assert line["x"] == pytest.approx(curve[along].to_list(), rel=1e-4)
        assert line["y"] == pytest.approx(curve["predicted"].to_list(), rel=1e-4)
        assert band["y"] == pytest.approx([*curve["high"], *curve["low"].reverse()], rel=1e-4)
    surface = figures["figure-0-clip_score-surface"]["data"][0]
    for row in tables.response.filter(target="clip_score", curve="surface").sample(20, seed=0).iter_rows(named=True):
        drawn = surface["z"][surface["y"].index(row["guidance"])][surface["x"].index(row["steps"])]
        assert drawn == (pytest.approx(row["predicted"], rel=1e-4) if row["images"] else None)


def test_surface_region_and_marks_of_a_figure_are_of_one_model(tables: AnalysisTables, figures: dict[str, Any]) -> None:
    words = Page(render_sweep_report(SWEEP, tables, {})).words
    for target in ("overall", *METRIC_LABELS):
        spot = tables.spots.row(by_predicate=pl.col("target") == target, named=True)
        surface, veil, *marks = figures[f"figure-0-{target}-surface"]["data"]
        bright = {
            (steps, guidance)
            for guidance, line in zip(veil["y"], veil["z"], strict=True)
            for steps, dimmed in zip(veil["x"], line, strict=True)
            if not dimmed
        }
        assert bright == {(cell["steps"], cell["guidance"]) for cell in spot["region"]}
        marked = (
            [spot]
            if target != "overall"
            else [tables.spots.row(by_predicate=pl.col("target") == "value", named=True), spot]
        )
        for mark, row in zip(marks, marked[: len(marks)], strict=True):
            assert (mark["x"], mark["y"]) == ([row["steps"]], [row["guidance"]])
            here = surface["z"][surface["y"].index(row["guidance"])][surface["x"].index(row["steps"])]
            assert here == pytest.approx(row["predicted"] + row["optimism"], rel=1e-4)
            assert row["low"] <= row["predicted"] <= row["high"]
            assert (row["steps"], row["guidance"]) in bright
        assert f"bright: {spot['region_share']:.0%} of what was tried" in words


def test_the_front_joins_what_is_not_beaten_and_says_its_ends(tables: AnalysisTables, figures: dict[str, Any]) -> None:
    front = tables.front.filter(pl.col("on_front"), target="overall").sort("seconds")
    joined = figures["figure-0-front"]["data"][1]
    assert joined["x"] == pytest.approx(front["seconds"].to_list(), rel=1e-4)
    assert sorted(joined["y"]) == joined["y"]
    said = Page(render_sweep_report(SWEEP, tables, {})).words.split("no other beats in both quality and time")[1]
    assert said.startswith(f", the quickest is {front['steps'][0]} steps at guidance")
    assert f"and the highest prediction has {front['steps'][-1]} steps" in said[:200]


def test_effects_are_called_by_their_sign_only_where_they_are_sure() -> None:
    given = (("steps", 0.2, 0.1, 0.3, 0.01), ("guidance", -0.2, -0.3, -0.1, 0.01), ("interaction", 0.2, 0.1, 0.3, 0.4))
    rows = [
        {"engine": "e", "target": "clip_score", "effect": effect, "change": change, "low": low, "high": high, "p": p}
        | {"steps_from": 8, "steps_to": 40, "guidance_from": 1.5, "guidance_to": 11.0}
        for effect, change, low, high, p in given
    ]
    heads, (row,) = format_effects(pl.DataFrame(rows, schema_overrides=EFFECTS_SCHEMA), True)
    assert list(heads.values())[:2] == ["Steps, 8 to 40", "Guidance, 1.5 to 11"]
    assert [cell["words"] for cell in row["cells"]] == ["more raise it", "more lowers it", "not significant"]
    bent = pl.DataFrame(rows[:1], schema_overrides=EFFECTS_SCHEMA).with_columns(low=-0.1)
    assert format_effects(bent, False)[1][0]["cells"][0]["words"] == "non-monotonic"


def compared(by: str, names: Sequence[str], engine: str | None = None) -> pl.DataFrame:
    """Adjusted means that rise from name to name, half as far apart as their intervals reach."""
    at = np.arange(len(names), dtype=float)
    columns = {"adjusted": at, "adjusted_low": at - 2, "adjusted_high": at + 2, "mean": -at}
    engines = [engine or name for name in names]
    rows = {"by": by, "engine": engines, "name": names, "target": "clip_score", "n": 9, **columns}
    return pl.DataFrame(rows, schema_overrides=SWEEP_COMPARISON_SCHEMA).select(
        pl.col(name) if name in rows else pl.lit(None, dtype).alias(name)
        for name, dtype in SWEEP_COMPARISON_SCHEMA.items()
    )


def test_the_highest_and_the_lowest_prompts_are_shown_in_their_order() -> None:
    (part,) = comparison_panels(compared("prompt", [f"prompt {n}" for n in range(27)], "sd3"))
    (panel,) = part.folded
    assert [bar["name"] for bar in panel.bars] == [f"prompt {n}" for n in (*range(26, 16, -1), *range(9, -1, -1))]
    assert panel.between == 7
    places = [place for bar in panel.bars for place in bar["at"].values()]
    assert min(places) > 0
    assert max(places) < 100


def test_engines_are_ranked_only_as_far_as_their_intervals_tell() -> None:
    near = compared("engine", ["one", "two"])
    apart = near.with_columns(adjusted_low=pl.col("adjusted") - 0.1, adjusted_high=pl.col("adjusted") + 0.1)
    unadjusted = near.with_columns(pl.lit(None, pl.Float64).alias("adjusted"), note=pl.lit("no settings are shared"))
    said = [comparison_panels(table)[0].open[0].words for table in (near, apart, unadjusted)]
    assert "which is higher is uncertain" in said[0]
    assert said[1] == "two is highest: its interval lies above the other."
    assert said[2] == "Not at the same settings: no settings are shared."


def test_one_engine_with_one_run_and_one_prompt_has_nothing_to_compare() -> None:
    words = Page(render_sweep_report(sweep(12).with_columns(prompt=pl.lit("a fox")), NO_TABLES, {})).words
    assert "one engine, one sweep and one prompt: nothing to compare" in words
    assert "Adjusted" not in words


def test_how_many_things_the_metrics_measure_is_said(tables: AnalysisTables) -> None:
    # All four follow the same surface; what they do not share is noise.
    assert re.match(
        r"[34] of 4 principal components explain 9\d% .*: \d+% \(\d+% to \d+%\) is mostly",
        describe_components(tables.components),
    )
    assert "are unknown: too few images" in describe_components(AnalysisTables.of(sweep(1)).components)


def test_engines_stand_on_the_same_axes_and_colours() -> None:
    other = sweep(100, effect=2, seed=1).with_columns(
        engine=pl.lit("sd3"), image_id="x" + pl.col("image_id"), steps=pl.col("steps") + 30
    )
    figures = of_script(report(pl.concat([sweep(100), other])))["figures"]
    one, two = (
        [figures[f"figure-{engine}-{name}"] for name in ("clip_score", "clip_score-surface")] for engine in (0, 1)
    )
    for first, second in zip(one, two, strict=True):
        assert first["layout"] == second["layout"]
    assert [one[1]["data"][0][end] for end in ("zmin", "zmax")] == [two[1]["data"][0][end] for end in ("zmin", "zmax")]
    assert one[1]["data"][0]["z"] != two[1]["data"][0]["z"]


def test_a_thumbnail_is_a_small_webp() -> None:
    small = Image.open(BytesIO(make_thumbnail(Image.new("RGB", (512, 256), "red"), side=96)))
    assert (small.format, small.size) == ("WEBP", (96, 48))


def test_thumbnails_are_as_fine_as_their_room_allows_and_never_overflow_it() -> None:
    picture, paths = synthetic.photograph(0, side=260), [f"{n}" for n in range(4)]
    found = {room: make_thumbnails(lambda _: picture, paths, room) for room in (4 * 40_000, 4 * 4_000, 4 * 60)}
    sides = [max(Image.open(BytesIO(webps["0"])).size) if webps else 0 for webps in found.values()]
    assert sides[0] == 256 > sides[1] > 64
    assert all(sum(map(len, webps.values())) <= room for room, webps in found.items())
    assert [len(webps) for webps in found.values()][:2] == [4, 4]


def test_a_picture_that_cannot_be_read_is_left_out() -> None:
    def read(path: str) -> Image.Image:
        if path == "broken":
            raise UnreadableImageError("cannot decode image broken")
        return Image.new("RGB", (64, 64), "teal")

    assert list(make_thumbnails(read, ["whole", "broken"], 10_000)) == ["whole"]
    assert make_thumbnails(read, ["broken"], 10_000) == make_thumbnails(read, [], 10_000) == {}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "CMYK", "1"])
def test_pictures_of_any_mode_are_taken(mode: str) -> None:
    image = Image.new("RGB", (80, 80), "red").convert(mode)
    assert make_thumbnail(image)
    assert make_contact_sheet([image])


def test_a_contact_sheet_keeps_reading_order() -> None:
    images = [Image.new("RGB", (100, 100), colour) for colour in ("red", "lime", "blue")]
    sheet = Image.open(BytesIO(make_contact_sheet(images, columns=2, side=64)))
    assert (sheet.format, sheet.size) == ("WEBP", (130, 130))
    brightest = [np.argmax(sheet.getpixel(at)) for at in ((32, 32), (98, 32), (32, 98))]
    assert brightest == [0, 1, 2]


def test_a_contact_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        make_contact_sheet([])


def test_the_map_is_of_the_two_directions_in_which_embeddings_differ_most() -> None:
    ids, prompts = [*"abcdef", "unknown"], ["fox", "fox", "owl", "owl", "hen", "hen", None]
    vectors = dict(
        zip(ids, np.array([[4, 0, 0], [4, 0, 1], [-4, 3, 0], [-4, 3, 1], [0, -3, 0], [0, -3, 1]]), strict=False)
    )
    found = map_embeddings(ids, prompts, vectors, "clip")
    assert found and (found.n, found.x[-1], found.y[-1]) == (6, None, None)
    assert found.x[:2] == [found.x[0]] * 2 and found.x[0] != found.x[2]  # the third direction is left out
    assert found.share == pytest.approx(1 - 1.5 / 101.5, abs=1e-3)
    assert found.prompt_share == pytest.approx(1 - (1.5 / 101.5) * 5 / 3, abs=1e-3)
    turned = map_embeddings(ids, prompts, {name: vector[::-1] for name, vector in vectors.items()}, "clip")
    assert turned and turned.x == found.x
    assert map_embeddings(ids, prompts, {}, "") is None


def test_the_first_lines_say_what_made_the_images_and_when() -> None:
    scores = sweep(30).with_columns(
        weights=pl.lit("realvis_xl@ac93e0dd/fp16"),
        run_id=pl.when(pl.col("seed") < 10).then(pl.lit("4b7193fd")).otherwise(pl.lit("5c")),
        created_at=pl.when(pl.col("seed") < 10).then(datetime(2026, 3, 1)).otherwise(datetime(2026, 3, 4)),
        scheduler=pl.when(pl.col("seed") < 10).then(pl.lit("ddim")),
    )
    page = Page(render_sweep_report(scores, NO_TABLES, {}))
    assert "Images 30 images of 7 prompts, 1 March 2026 to 4 March 2026" in page.words
    assert "2 sweeps 4b7193fd, 10 images, 1 March 2026 5c, 20 images, 4 March 2026" in page.words
    assert "Engine realvis_xl (realvis_xl@ac93e0dd/fp16)" in page.words
    assert json.loads(page.contents["script"][1])["names"]["scheduler"] == ["ddim", "the engine's own"]


def test_times_have_three_digits_and_two_machines_are_told_apart() -> None:
    apart = sweep(200).with_columns(
        run_id=pl.when(pl.col("seed") < 100).then(pl.lit("fast")).otherwise(pl.lit("slow")),
        elapsed_ms=pl.when(pl.col("seed") < 100).then(pl.col("elapsed_ms")).otherwise(3 * pl.col("elapsed_ms")),
    )
    one, two = (
        describe_times(times_table(scores), find_time_heaps(measured_images(scores))) for scores in (SWEEP, apart)
    )
    assert one == ["An image takes 200 ms and 50.0 ms a step."]
    assert re.search(
        r"two heaps: 100 of 200 images take (2.9\d|3.00) times as long as the others, by their sweep", two[1]
    )
    assert two[2:] == ["fast: 200 ms and 50.0 ms a step.", "slow: 600 ms and 150 ms a step."]
