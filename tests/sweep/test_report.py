"""The report is one inert file that says what the tables say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from io import BytesIO

import numpy as np
import polars as pl
import pytest
from PIL import Image

from flexy_assets.sweep.analysis import METRICS, SCORES, correlations, regression, sweet_spots
from flexy_assets.sweep.pictures import contact_sheet, thumbnail
from flexy_assets.sweep.report import pictures_needed, render
from tests.page import Page

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
            **{metric: 5 + surface + rng.standard_normal(images) for metric in METRICS},
        },
        schema_overrides=SCORES,
    )


def tables(scores: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    models = regression(scores)
    return correlations(scores), models, sweet_spots(scores, models)


def report(scores: pl.DataFrame) -> str:
    return render(scores, *tables(scores), {})


@pytest.fixture(scope="module")
def hostile() -> Page:
    scores = sweep(prompt=HOSTILE).with_columns(
        engine=pl.lit(HOSTILE), run_id=pl.lit(HOSTILE), image_id=pl.lit(HOSTILE) + pl.col("image_id")
    )
    return Page(report(scores))


def test_hostile_text_stays_text(hostile: Page) -> None:
    assert [attributes.get("type") for tag, attributes in hostile.tags if tag == "script"] == [
        "application/json",
        None,
        None,
    ]
    assert not [tag for tag, _ in hostile.tags if tag == "img"]
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in hostile.words
    shown = json.loads(hostile.contents["script"][0])
    texts = [text for figure in shown.values() for trace in figure["data"] for text in trace.get("text") or []]
    assert any(isinstance(text, str) and "&lt;/script&gt;" in text for text in texts)
    assert not any("<" in text for text in texts if isinstance(text, str))


def test_only_the_two_scripts_written_here_may_run(hostile: Page) -> None:
    allowed = re.findall(r"'sha256-([^']+)'", hostile.policy)
    run = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in hostile.contents["script"][1:]]
    assert run == allowed
    assert "default-src 'none'" in hostile.policy
    assert "'unsafe-inline'" not in hostile.policy.split("script-src")[1]


def test_nothing_is_fetched() -> None:
    scores = sweep()
    picture = thumbnail(Image.new("RGB", (64, 64), "teal"))
    page = Page(render(scores, *tables(scores), dict.fromkeys(pictures_needed(scores), picture)))
    loads = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")
    ]
    assert loads
    assert all(value.startswith("data:image/webp;base64,") for value in loads)
    css = " ".join(page.contents["style"] + [a.get("style") or "" for _, a in page.tags])
    assert "@import" not in css
    assert "url(" not in css
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_the_answer_is_that_of_the_tables() -> None:
    scores = sweep(400)
    found = tables(scores)
    words = Page(render(scores, *found, {})).words
    best, value = (found[2].row(by_predicate=pl.col("target") == t, named=True) for t in ("overall", "value"))
    assert f"Best overall: {best['steps']} steps at guidance {best['guidance']:.1f}" in words
    assert f"Best value: {value['steps']} steps at guidance {value['guidance']:.1f}" in words
    assert "Weak evidence" not in words


def test_an_engine_without_guidance_is_said_to_have_none_and_shown_none() -> None:
    unguided = sweep(200).with_columns(engine=pl.lit("flux_schnell"), guidance=pl.lit(None, pl.Float64))
    alone, both = (Page(report(scores)) for scores in (unguided, pl.concat([unguided, sweep(200, seed=1)])))
    assert re.search(r"Best overall: \d+ steps , about", alone.words)
    assert "Steps explain" in alone.words
    attributes = " ".join(value or "" for _, found in alone.tags for value in found.values())
    for shown in (alone.words, attributes, alone.contents["script"][0]):
        assert {found.group() for found in re.finditer(r"\w* ?[Gg]uidance", shown)} <= {"no guidance"}
    # Beside an engine that has one it is the same.
    said = alone.words.split("This engine has no guidance")[1].split("Each metric is fitted")[0]
    assert both.words.split("This engine has no guidance")[1].startswith(f"{said}realvis_xl Sweet spots")
    assert "steps at guidance" in both.words


def test_weak_evidence_is_called_weak_and_none_is_called_none() -> None:
    weak = Page(report(sweep(1500, effect=0.12))).words
    assert "Weak evidence, a hint and not a rule. Steps and guidance explain" in weak
    assert "No setting stands out." in Page(report(sweep(200, effect=0))).words


def test_counts_and_missing_scores_are_told() -> None:
    scores = sweep(120).with_columns(hps_v2_score=pl.when(pl.col("seed") >= 33).then("hps_v2_score"))
    words = Page(report(scores)).words
    assert "120 images" in words
    assert "1 engine 1 run 7 prompts" in words
    assert "realvis_xl none none none 33 120" in words


def test_each_picture_carries_its_prompt_and_is_among_the_few_needed() -> None:
    scores = sweep(2000)
    needed = pictures_needed(scores)
    assert len(needed) == len(set(needed)) <= 57
    colours = dict.fromkeys(needed, thumbnail(Image.new("RGB", (64, 64), "teal")))
    found = tables(scores)
    page = Page(render(scores, *found, colours))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) >= len(needed)
    assert all(re.match(r"a fox \d \(\d+ steps, guidance .+, seed \d+\)", p["alt"] or "") for p in pictures)
    assert "no picture" not in page.words
    assert "no picture" in Page(render(scores, *found, {})).words


def test_the_best_picture_comes_first() -> None:
    scores = sweep(50)
    best = scores.sort("clip_score").row(-1, named=True)
    words = Page(report(scores)).words
    shown = words.split("CLIP score, best")[1]
    assert shown.startswith(f" no picture {best['clip_score']:.2f} {best['steps']} steps")


@pytest.mark.parametrize(
    "scores",
    [
        sweep().clear(),
        sweep(1),
        sweep(5),
        sweep(30).with_columns(pl.lit(None).alias(metric) for metric in METRICS),
        sweep(30).with_columns(steps=pl.lit(None), guidance=pl.lit(None)),
        sweep(30).with_columns(guidance=pl.lit(1.0), steps=pl.lit(8), elapsed_ms=pl.lit(None)),
        sweep(30).with_columns(prompt=pl.lit(None), engine=pl.lit(None), seed=pl.lit(None)),
    ],
    ids=["none", "one", "five", "unscored", "no settings", "one setting", "unnamed"],
)
def test_thin_data_still_makes_a_page(scores: pl.DataFrame) -> None:
    pictures_needed(scores)
    assert "</html>" in report(scores)[-20:]


def test_every_plot_has_its_place() -> None:
    page = Page(report(sweep()))
    figures = json.loads(page.contents["script"][0])
    assert {attributes["id"] for _, attributes in page.tags if attributes.get("class") == "plot"} == set(figures)
    assert len(figures) == 2 * len(METRICS) + 2


def test_a_thumbnail_is_a_small_webp() -> None:
    small = Image.open(BytesIO(thumbnail(Image.new("RGB", (512, 256), "red"), side=96)))
    assert (small.format, small.size) == ("WEBP", (96, 48))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "CMYK", "1"])
def test_pictures_of_any_mode_are_taken(mode: str) -> None:
    image = Image.new("RGB", (80, 80), "red").convert(mode)
    assert thumbnail(image)
    assert contact_sheet([image])


def test_a_contact_sheet_keeps_reading_order() -> None:
    images = [Image.new("RGB", (100, 100), colour) for colour in ("red", "lime", "blue")]
    sheet = Image.open(BytesIO(contact_sheet(images, columns=2, side=64)))
    assert (sheet.format, sheet.size) == ("PNG", (130, 130))
    assert [sheet.getpixel(at) for at in ((32, 32), (98, 32), (32, 98))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]


def test_a_contact_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
