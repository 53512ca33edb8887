"""The report as a person uses it, in a Chromium: by mouse, keys and touch, in light and dark, wide and narrow."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from benchmarks import report as synthetic
from flexy_assets.sweep.analysis import METRIC_LABELS, AnalysisTables
from flexy_assets.sweep.report.build import render_sweep_report
from tests.support.browser import Browser

pytestmark = pytest.mark.slow(seconds=40)

IMAGES = 240
# Two images of each engine share prompt and seed.
SCORES = synthetic.sweep(IMAGES).with_columns(seed=pl.int_range(IMAGES) // 160)

ACCESSIBILITY = (Path(__file__).parents[1] / "support/accessibility.js").read_text().rstrip()

SHOWN = """(() => {
  const card = document.getElementById("card"), image = card.querySelector("img");
  const drawn = image?.complete && image.naturalWidth > 0;
  return card.hidden ? null : {words: card.innerText, image: image.src.split(",")[1], alt: image.alt, drawn};
})()"""


@pytest.fixture(scope="module")
def tables() -> AnalysisTables:
    return AnalysisTables.of(SCORES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, tables: AnalysisTables) -> Path:
    """Two engines, four runs; every picture is of a colour of its own."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    pictures = {image_id: flat(index) for index, image_id in enumerate(SCORES["image_id"])}
    embeddings = {image_id: np.eye(8, dtype=np.float32)[index % 8] for index, image_id in enumerate(pictures)}
    path.write_text(render_sweep_report(SCORES, tables, pictures, ("clip", embeddings)), encoding="utf-8")
    return path


def flat(index: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (index, 255 - index, 128)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Browser]:
    """The report in a wide, light window; after whatever was done, no error was logged and nothing was asked for."""
    browser.resize()
    browser.dark(False)
    browser.open(path)
    plotted(browser)
    yield browser
    assert browser.errors == []
    assert browser.requests == [path.as_uri()]


def plotted(browser: Browser, plot: str = "explore") -> None:
    """The plot is in sight and drawn."""
    browser.evaluate(f"document.getElementById('{plot}').scrollIntoView({{block: 'center'}})")
    browser.evaluate(
        f"""new Promise(done => {{
          const look = () => document.querySelector("#{plot} .point") ? done() : setTimeout(look, 20);
          look();
        }})"""
    )
    browser.settle()


def dot(browser: Browser, number: int, plot: str = "explore") -> tuple[float, float]:
    """Where a dot is that is in sight, the first such from `number` on."""
    found = browser.evaluate(
        f"""(() => {{
          for (const point of [...document.querySelectorAll("#{plot} .point")].slice({number})) {{
            const box = point.getBoundingClientRect(), at = [box.x + box.width / 2, box.y + box.height / 2];
            if (at[1] > 60 && at[1] < innerHeight - 5) return at;
          }}
        }})()"""
    )
    return found[0], found[1]


def row_of(shown: dict[str, Any]) -> dict[str, Any]:
    """The row whose picture it is, told by the picture's colour."""
    colour = Image.open(BytesIO(base64.b64decode(shown["image"]))).convert("RGB").getpixel((0, 0))
    assert isinstance(colour, tuple)
    return SCORES.row(int(colour[0]), named=True)


def tells(shown: dict[str, Any], row: dict[str, Any]) -> None:
    """The card shows the picture and says all that is known of the row."""
    assert shown["drawn"]
    words = shown["words"]
    for said in (row["prompt"], row["engine"], row["run_id"], row["image_path"], str(row["steps"]), str(row["seed"])):
        assert said in words
    guidance = f"{row['guidance']:.1f}" if row["guidance"] > 1 else "1 (off)"
    assert f"Guidance\n{guidance}" in words
    for metric, label in METRIC_LABELS.items():
        written = re.search(rf"{re.escape(label)}\s+(−?[\d.]+)", words)
        assert written
        assert float(written[1].replace("−", "-")) == pytest.approx(row[metric], rel=0.006)
    assert row["prompt"] in shown["alt"]


@pytest.mark.parametrize("plot", ["explore", "figure-1-hps_v2_score"])
def test_pointing_at_a_dot_shows_its_image_settings_and_scores(page: Browser, plot: str) -> None:
    plotted(page, plot)
    page.hover(*dot(page, 30, plot))
    shown = page.evaluate(SHOWN)
    row = row_of(shown)
    tells(shown, row)
    x, y = page.evaluate(f"document.querySelector('#{plot} .hovertext').textContent").replace("−", "-").split(", ")
    assert float(x) == row["steps"]
    assert float(y) == pytest.approx(row["clip_score" if plot == "explore" else "hps_v2_score"], rel=0.001)
    page.hover(5, 5)
    page.evaluate("new Promise(done => setTimeout(done, 700))")
    assert page.evaluate(SHOWN) is None


def test_a_click_keeps_the_image_until_escape(page: Browser, screenshots: Path) -> None:
    page.click(*dot(page, 60))
    page.hover(5, 5)
    page.evaluate("new Promise(done => setTimeout(done, 700))")
    tells(page.evaluate(SHOWN), row_of(page.evaluate(SHOWN)))
    page.screenshot(screenshots / "sweep-point.png")
    page.press("Escape")
    assert page.evaluate(SHOWN) is None


def test_keys_reach_the_plot_and_go_from_dot_to_dot(page: Browser) -> None:
    page.evaluate("scrollTo(0, 0)")
    for _ in range(40):
        page.press("Tab")
        if page.evaluate("document.activeElement.id") == "explore":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    along = SCORES.sort("steps", "clip_score")["image_id"].to_list()
    for key, place in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", IMAGES - 1)):
        page.press(key)
        shown = page.evaluate(SHOWN)
        assert row_of(shown)["image_id"] == along[place]
        assert f"{place + 1} of {IMAGES}" in shown["words"]
    page.press("Escape")
    assert page.evaluate(SHOWN) is None
    assert page.evaluate("document.activeElement.id") == "explore"


def test_a_tap_shows_an_image_on_a_phone(page: Browser, path: Path, screenshots: Path) -> None:
    page.resize(400, 800, touch=True)
    page.open(path)
    plotted(page)
    page.tap(*dot(page, 10))
    tells(page.evaluate(SHOWN), row_of(page.evaluate(SHOWN)))
    page.screenshot(screenshots / "sweep-phone.png")


def test_filters_leave_their_images_in_plots_grids_and_lists(page: Browser, screenshots: Path) -> None:
    kept = SCORES.filter(engine="sd3_medium").filter(~pl.col("run_id").str.starts_with("00000002"))
    for name, choice in (("Engines", "realvis_xl"), ("Sweeps", "00000002")):
        page.evaluate(
            f"""for (const box of document.querySelectorAll("details.choose")) {{
              if (!box.textContent.startsWith("{name}")) continue;
              box.open = true;
              [...box.querySelectorAll("label")].find(label => label.textContent.includes("{choice}")).click();
            }}"""
        )
    assert images_shown(page) == set(kept["image_id"])
    assert page.evaluate("document.querySelector('[data-engine=realvis_xl]').checkVisibility()") is False
    counts = page.evaluate("[...document.querySelectorAll('#grids small')].map(count => Number(count.textContent))")
    assert sum(counts) == kept.height
    buttons = page.evaluate(
        "[...document.querySelectorAll('button.picture')].map(button => columns.id[button.dataset.row])"
    )
    assert buttons
    assert set(buttons) <= set(kept["image_id"])
    best = kept.sort("clip_score")["image_id"][-1]
    assert page.evaluate("columns.id[document.querySelector('#extremes .picture').dataset.row]") == best
    page.screenshot(screenshots / "sweep-filtered.png")

    prompt = kept["prompt"][0]
    page.evaluate(f"""document.getElementById("prompt").value = "{prompt.upper()}";
        document.getElementById("prompt").dispatchEvent(new Event("input"))""")
    few = kept.filter(prompt=prompt)
    assert images_shown(page) == set(few["image_id"])
    assert page.evaluate("document.getElementById('count').textContent") == f"{few.height} of {IMAGES} images"
    page.evaluate("document.getElementById('all').click()")
    assert images_shown(page) == set(SCORES["image_id"])


def images_shown(browser: Browser) -> set[str]:
    browser.settle()
    return set(
        browser.evaluate(
            "document.getElementById('explore').data.flatMap(t => t.customdata ?? []).map(row => columns.id[row])"
        )
    )


def test_engines_runs_and_prompts_are_told_apart_by_colour_mark_and_name(page: Browser) -> None:
    for by, count in (("engine", 2), ("run_id", 4), ("prompt", 8)):
        page.evaluate(f"""document.getElementById("explore-by").value = "{by}";
            document.getElementById("explore-by").dispatchEvent(new Event("input"))""")
        page.settle()
        looks = page.evaluate("""document.getElementById("explore").data.filter(trace => trace.customdata)
            .map(trace => [trace.marker.color, trace.marker.symbol, trace.name])""")
        assert [len({look[part] for look in looks}) for part in range(3)] == [count] * 3
        assert page.evaluate("document.querySelectorAll('#explore .legendtext').length") == count


def test_pairs_show_two_images_of_one_prompt_that_two_metrics_order_oppositely(page: Browser) -> None:
    pairs = page.evaluate("data.pairs")
    assert len(pairs) == 6
    shares = [pair["share"] for pair in pairs]
    assert shares == sorted(shares, reverse=True)
    ids = page.evaluate("columns.id")
    for pair in pairs:
        for a, b in (
            (SCORES.row(by_predicate=pl.col("image_id") == ids[at], named=True) for at in two) for two in pair["pairs"]
        ):
            assert (a["engine"], a["prompt"]) == (b["engine"], b["prompt"])
            assert a[pair["left"]] > b[pair["left"]]
            assert a[pair["right"]] < b[pair["right"]]
    assert page.evaluate("document.querySelectorAll('.duel').length") >= 6


def test_two_images_of_one_prompt_and_seed_lie_on_each_other(page: Browser, screenshots: Path) -> None:
    page.evaluate("byId('seeds').scrollIntoView()")
    page.until("filled")

    def chosen() -> list[dict[str, Any]]:
        ids = page.evaluate("all('#seeds-grid [aria-pressed=true]').map(button => columns.id[button.dataset.row])")
        return [SCORES.row(by_predicate=pl.col("image_id") == image_id, named=True) for image_id in ids]

    a, b = chosen()
    assert all(a[name] == b[name] for name in ("engine", "prompt", "seed")) and a["steps"] != b["steps"]
    page.evaluate("byId('seeds-slider').focus()")
    page.press("Home")
    assert page.evaluate("getComputedStyle(byId('seeds-stack').lastChild).clipPath") == "inset(0px 0px 0px 0%)"
    page.evaluate("byId('seeds-flicker').focus()")
    page.press("Enter")
    for shown in ("second", "first"):
        page.until(f"byId('seeds-stack').className === '{shown}'", seconds=3)
    page.screenshot(screenshots / "sweep-seeds.png")
    page.evaluate("""byId("seeds-prompt").selectedIndex = 3; byId("seeds-prompt").dispatchEvent(new Event("input"));
        document.querySelector("#seeds-grid .picture").focus()""")
    page.press("Enter")
    assert page.evaluate("document.activeElement.dataset.row") is not None
    assert chosen()[0]["prompt"] != a["prompt"]


def test_the_map_and_the_lines_through_every_score_show_their_images(page: Browser) -> None:
    plotted(page, "map")
    page.hover(*dot(page, 30, "map"))
    tells(page.evaluate(SHOWN), row_of(page.evaluate(SHOWN)))
    page.press("Escape")
    page.evaluate("draw(byId('parallel')); byId('parallel').focus()")
    page.press("Home")
    assert page.evaluate("columns.overall[shown] === Math.max(...columns.overall)")
    best = page.evaluate("new Set(byId('parallel').data[1].customdata.filter(row => row !== null)).size")
    assert best == IMAGES // 10


def test_the_table_of_images_sorts(page: Browser) -> None:
    page.evaluate(
        "[...document.querySelectorAll('#images-head button')].find(b => b.textContent === 'CLIP score').click()"
    )
    first = page.evaluate("columns.id[document.querySelector('#images-body .picture').dataset.row]")
    assert first == SCORES.sort("clip_score")["image_id"][-1]
    assert page.evaluate("document.querySelector('#images-head [aria-sort=descending]').textContent") == "CLIP score"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_veil_marks_and_band_are_drawn_in_the_colours_of_the_page(page: Browser, dark: bool) -> None:
    page.dark(dark)
    page.evaluate("['figure-0-overall-surface', 'figure-0-clip_score'].forEach(id => draw(byId(id)))")
    colours = """[...document.querySelectorAll('#figure-0-{}')].map(part => getComputedStyle(part).{})"""
    ink = "rgb(236, 235, 230)" if dark else "rgb(29, 29, 27)"
    veil = "rgba(31, 31, 29, 0.72)" if dark else "rgba(255, 255, 255, 0.72)"
    assert veil in page.evaluate(colours.format("overall-surface .contourfill path", "fill"))
    assert ink in page.evaluate(colours.format("overall-surface .point", "stroke"))
    assert ink in page.evaluate(colours.format("clip_score .js-line", "stroke"))
    assert page.evaluate(colours.format("clip_score .js-fill", "fill")) == [ink]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out_from_its_ground(page: Browser, screenshots: Path, dark: bool) -> None:
    page.dark(dark)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    page.evaluate("plots.forEach(draw); show(0, {pin: true})")
    page.settle()
    found = page.evaluate(f"{ACCESSIBILITY}.contrasts()")
    assert len(found) > 500
    assert sorted(text for text in found if text[0] < 4.5) == []
    page.evaluate(
        "document.querySelectorAll('details').forEach(part => { part.open = false; }); hide(); scrollTo(0, 0)"
    )
    page.screenshot(screenshots / f"sweep-{'dark' if dark else 'light'}.png", whole=True)


def test_every_picture_has_words_and_every_control_a_name(page: Browser) -> None:
    alts = page.evaluate("[...document.querySelectorAll('img')].map(image => image.alt)")
    assert len(alts) > 50
    assert all("a photograph of subject" in alt for alt in alts)
    assert page.evaluate(f"{ACCESSIBILITY}.nameless()") == []
    assert (
        page.evaluate("['main', 'nav', 'footer', 'aside'].map(part => document.querySelectorAll(part).length)")
        == [1] * 4
    )
    assert page.evaluate("document.querySelector('a').hash") == "#filters"
    headings = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(heading => Number(heading.tagName[1]))"
    )
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


@pytest.mark.parametrize("width", [1400, 400, 320])
def test_the_page_never_scrolls_sideways(page: Browser, width: int) -> None:
    page.resize(width, 800)
    page.evaluate("plots.forEach(draw)")
    page.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_is_shown_and_does_nothing(browser: Browser, tables: AnalysisTables, tmp_path: Path) -> None:
    evil = "</script><script>window.pwned = 1</script><img src=http://evil.test/x onerror=pwned=1>\" onload='pwned=1"
    scores = SCORES.head(60).with_columns(
        (pl.lit(evil) + pl.col(name)).alias(name) for name in ("engine", "run_id", "prompt", "image_path")
    )
    path = tmp_path / "report.html"
    evil_tables = {
        name: table.with_columns(
            (pl.lit(evil) + pl.col(column)).alias(column) for column in ("engine", "name") if column in table
        )
        for name, table in vars(tables).items()
    }
    path.write_text(render_sweep_report(scores, AnalysisTables(**evil_tables), {}), encoding="utf-8")
    browser.resize()
    browser.open(path)
    plotted(browser)
    browser.evaluate("show(0, {pin: true})")
    browser.evaluate(
        "for (const by of ['prompt', 'run_id', 'engine']) { byId('explore-by').value = by; draw(byId('explore')); }"
    )
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    assert evil in browser.evaluate("byId('card-prompt').textContent")
    assert evil[:39] in browser.evaluate("document.querySelector('#explore .legendtext').textContent")
    assert browser.evaluate("window.pwned ?? null") is None
    assert (browser.errors, browser.requests) == ([], [path.as_uri()])
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1400


@pytest.mark.parametrize(
    "scores",
    [
        SCORES.head(1),
        SCORES.head(30).with_columns(pl.lit(None, pl.Float64).alias(metric) for metric in METRIC_LABELS),
        SCORES.head(30).with_columns(steps=pl.lit(None), guidance=pl.lit(None), elapsed_ms=pl.lit(None)),
        SCORES.head(30).with_columns(guidance=pl.lit(None)),
        SCORES.head(30).with_columns(guidance=pl.lit(7.5), clip_score=pl.lit(0.3)),
        SCORES.head(30).with_columns(
            prompt=pl.lit(None), run_id=pl.lit(None), seed=pl.lit(None), image_path=pl.lit(None)
        ),
        SCORES.head(0),
    ],
    ids=["one row", "unscored", "no settings", "no guidance", "constant", "unnamed", "none"],
)
def test_thin_data_make_a_page_that_works(browser: Browser, tmp_path: Path, scores: pl.DataFrame) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_sweep_report(scores, AnalysisTables.of(scores), {}), encoding="utf-8")
    browser.resize()
    browser.open(path)
    if scores.height:
        browser.evaluate("new Promise(done => { const look = () => filled ? done() : setTimeout(look, 20); look(); })")
        browser.evaluate("plots.forEach(draw)")
        assert browser.evaluate("document.querySelectorAll('#images-body tr').length") == min(scores.height, 20)
        browser.evaluate("document.querySelector('#images-body button').click()")
        assert "no image" in browser.evaluate("document.getElementById('card').innerText")
    assert (browser.errors, browser.requests) == ([], [path.as_uri()])
