"""Scores that others wrote: their maker is recognised and fills the rest, or nothing is written to their column."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import sqlalchemy as sa

from flexy_assets.scoring import makers
from flexy_assets.scoring.work import Work
from flexy_assets.storage.adoption import adopt_rows
from flexy_assets.storage.makers import suspect_metrics
from flexy_assets.storage.scores import ScoredImage, record_scores, replace_other_scores, select_pending_scores
from flexy_assets.sweep import checks, jobs
from resources.database import Database
from resources.errors import BadInputError
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.settings import Settings
from tests.conftest import Flexy, on_postgres, on_sqlite
from tests.support import flexyface, references

pytestmark = pytest.mark.slow(seconds=150)

IMAGES, SCORED = (16, 8), 20
OLD = ("clip_score", "aesthetic_score")
Bring = Callable[..., Work]


@pytest.fixture
def bring(empty_database: Database, home: Path, monkeypatch: pytest.MonkeyPatch) -> Bring:
    """`bring(made_by)` brings a FlexyFace database whose scores were made by it."""

    def bring(made_by: flexyface.Maker | None, scored: int = SCORED, **environment: str) -> Work:
        flexyface.bring(empty_database, home / "pictures", IMAGES, scored, made_by=made_by)
        url = empty_database.url.render_as_string(hide_password=False)
        variables = {"FLEXY_DATABASE_URL": url, "FLEXY_IMAGES": str(home / "pictures")} | environment
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Work.from_settings(Settings.read())

    return bring


def columns(database: Database) -> dict[str, tuple[float | None, ...]]:
    """The first two scores by image path."""
    with database.begin(reading=True) as connection:
        rows = connection.execute(sa.text(f"SELECT image_path, {', '.join(OLD)} FROM bench_run_results"))
        return {path: tuple(scores) for path, *scores in rows}


def check(work: Work, metric: str) -> checks.CheckOutcome:
    return checks.known_maker(checks.MetricScores(METRICS[metric], work.database, work.settings))


@on_postgres
def test_the_variant_that_made_the_scores_is_recognised_and_fills_the_rest(
    flexy: Flexy, bring: Bring, empty_database: Database, tmp_path: Path
) -> None:
    work = bring(flexyface.OPEN_CLIP)
    before = columns(empty_database)
    result = flexy("backfill", "--json")
    assert result.exit_code == 0, result.output
    answered = json.loads(result.stdout)
    assert answered["filled"]["clip_score"] == answered["filled"]["aesthetic_score"] == 4
    assert [answered["agreement"][name]["variant"] for name in OLD] == ["clip_gelu", "clip_gelu + aesthetic_v1"]
    assert [answered["agreement"][name]["sampled"] for name in OLD] == [SCORED] * 2
    after = columns(empty_database)
    assert {path: after[path] for path, scores in before.items() if None not in scores} == {
        path: scores for path, scores in before.items() if None not in scores
    }
    whole = Database(f"sqlite:///{tmp_path / 'whole.sqlite'}")
    flexyface.bring(whole, tmp_path / "pictures", IMAGES, 24, made_by=flexyface.OPEN_CLIP)
    for path, scores in columns(whole).items():
        assert after[path] == pytest.approx(scores, abs=1e-5)
    with empty_database.begin(reading=True) as connection:
        scorers = set(connection.scalars(sa.text("SELECT scorer FROM image_scores WHERE metric = 'aesthetic_score'")))
    assert len(scorers) == 1 and "mini_clip_gelu@" in scorers.pop()
    passed = check(work, "aesthetic_score")
    assert passed.error is None and passed.metadata["made by"] == "clip_gelu + aesthetic_v1"
    assert "clip_gelu + aesthetic_v1" in flexy("status").stdout


def test_scores_of_an_unknown_maker_are_left_and_reported_until_the_column_is_rescored(
    flexy: Flexy, bring: Bring, empty_database: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = bring(None)
    before = columns(empty_database)
    result = flexy("backfill", "--json")
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    for words in ("clip_score is not filled: 20 of its scores", "aesthetic_score is not filled", "clip_gelu + aes"):
        assert words in line
    assert "correlation" in line and "flexy rescore aesthetic_score" in line
    answered = json.loads(result.stdout)
    assert answered["filled"] == {"aes_v2_score": 24, "hps_v2_score": 24}
    assert [answered["agreement"][name]["variant"] for name in OLD] == [None, None]
    assert [answered["agreement"][name]["done"] for name in OLD] == ["nothing written"] * 2
    assert columns(empty_database) == before
    assert "no known scorer gives them" in (check(work, "clip_score").error or "")
    assert check(work, "hps_v2_score").error is None

    # The night does not ask again.
    monkeypatch.setattr(makers, "_compare", None)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        request = jobs.request_backfill(instance, work.database, work.store, work.settings)
    assert isinstance(request, dg.SkipReason) and "aesthetic_score is not filled" in str(request.skip_message)
    again = flexy("backfill", "--json")
    assert (again.exit_code, json.loads(again.stdout)["scores_computed"]) == (2, 0)
    assert again.stderr == result.stderr
    refused = flexy("rescore", "clip_score", "--failed")
    assert refused.exit_code != 0 and "clip_score is not filled" in refused.stderr

    for metric in OLD:
        assert flexy("rescore", metric, "--replace", str(SCORED), "--json").exit_code == 0
        assert check(work, metric).error is None
    after = columns(empty_database)
    assert not any(after[path] == scores for path, scores in before.items())
    assert None not in {score for scores in after.values() for score in scores}
    assert flexy("backfill").exit_code == 0


def test_our_scores_are_kept_beside_a_column_of_an_unknown_maker(
    flexy: Flexy, bring: Bring, empty_database: Database, tmp_path: Path
) -> None:
    bring(None)
    assert flexy("backfill").exit_code == 2
    before = columns(empty_database)
    result = flexy("backfill", "--beside", "clip_score", "--beside", "aesthetic_score", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["filled"] == {"clip_score_flexy": 24, "aesthetic_score_flexy": 24}
    assert columns(empty_database) == before
    status = json.loads(flexy("status", "--json").stdout)
    beside = {"aesthetic_score_flexy": 24, "clip_score_flexy": 24}
    assert {row["metric"]: row["scored"] for row in status["beside"]} == beside
    assert set(status["agreement"]) == set(OLD) and "clip_score_flexy" in flexy("status").stdout
    assert flexy("export", "--out", str(tmp_path / "scores.csv")).exit_code == 0
    exported = pl.read_csv(tmp_path / "scores.csv")
    assert exported.columns[-3:] == ["seed", "aesthetic_score_flexy", "clip_score_flexy"]
    assert exported.height == SCORED and exported.select(*beside).null_count().row(0) == (0, 0)
    ours = Database(f"sqlite:///{tmp_path / 'ours.sqlite'}")
    flexyface.bring(ours, tmp_path / "pictures", IMAGES, SCORED)
    expected = sorted(scores[0] for scores in columns(ours).values() if scores[0] is not None)
    assert sorted(exported["clip_score_flexy"]) == pytest.approx(expected, abs=1e-5)
    refused = flexy("backfill", "--beside", "beauty")
    assert refused.exit_code == 2 and "unknown column 'beauty': choose from clip_score" in refused.stderr


@on_sqlite
def test_without_the_packages_nothing_is_begun(flexy: Flexy, bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(registry, "version", missing)
    bring(flexyface.OURS, FLEXY_SCORERS="reference")
    result = flexy("backfill")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "FLEXY_SCORERS=reference: hpsv2 is not installed: pip install --no-deps" in line


@on_sqlite
def test_the_packages_own_code_fills_what_ours_began_and_says_so(
    flexy: Flexy, bring: Bring, empty_database: Database
) -> None:
    references.install()
    bring(flexyface.OURS, FLEXY_SCORERS="reference")
    before = columns(empty_database)
    answered = json.loads(flexy("backfill", "--json").stdout)
    assert answered["filled"] == {"clip_score": 4, "aesthetic_score": 4, "aes_v2_score": 24, "hps_v2_score": 24}
    assert {path: scores for path, scores in columns(empty_database).items() if None not in before[path]} == {
        path: scores for path, scores in before.items() if None not in scores
    }
    with empty_database.begin(reading=True) as connection:
        rows = connection.execute(sa.text("SELECT DISTINCT metric, scorer FROM image_scores"))
        scorers = {metric: scorer.partition("@")[0] for metric, scorer in rows}
    assert scorers["hps_v2_score"] == "mini_hps[hpsv2 1.2.0]"
    assert scorers["clip_score"] == scorers["aesthetic_score"] == "mini_clip[simple-aesthetics-predictor 0.1.2]"


@on_sqlite
def test_scores_against_the_runs_titles_and_by_the_linear_head_are_recognised(bring: Bring) -> None:
    work = bring(flexyface.Maker("clip", "aesthetic_linear", titles=True))
    adopt_rows(work.database, work.settings)
    clip, aesthetic = (makers.find_maker(work, METRICS[name]) for name in OLD)
    assert (clip.reads, clip.prompts) == ("clip", "bench_runs.prompt")
    assert (aesthetic.reads, aesthetic.scorer) == ("clip", "aesthetic_linear")
    with work.database.begin(reading=True) as connection:
        assert list(suspect_metrics(connection, work.settings)) == ["clip_score"], "titles are not the images' prompts"
    assert makers.find_maker(work, METRICS["hps_v2_score"]) == METRICS["hps_v2_score"], "nobody has scored it"


@on_sqlite
def test_scores_of_a_metric_without_a_column_are_compared_too(bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric("liking", "Liking", "of a user", low=-1, high=1, scorer="hps")
    monkeypatch.setitem(METRICS, metric.name, metric)
    work = bring(flexyface.OURS)
    adopt_rows(work.database, work.settings)
    with work.database.begin(reading=True) as connection:
        images = select_pending_scores(metric.name, work.settings).images
        rows = list(connection.execute(images.limit(12)))
    hps = work.slot.get(work.model("hps"))
    scores = hps.scores([hps.prepare(work.store.read(row.image_path)) for row in rows], [row.prompt for row in rows])

    def record(values: Iterable[float]) -> None:
        with work.database.begin() as connection:
            replace_other_scores(connection, metric.name, "", work.settings)
            outcomes = [ScoredImage(row.id, float(value)) for row, value in zip(rows, values, strict=True)]
            record_scores(connection, metric.name, "another@1", outcomes)

    record(scores)
    assert makers.find_maker(work, metric) == metric
    record(scores[::-1])
    with pytest.raises(makers.UnknownMakerError, match="liking is not filled: 12 of its") as refused:
        makers.find_maker(work, metric)
    assert "or compute all of them again with flexy rescore liking" in str(refused.value)
    assert "beside" not in str(refused.value)


@on_sqlite
def test_images_that_cannot_be_read_tell_nothing_and_nothing_is_remembered(bring: Bring, home: Path) -> None:
    work = bring(flexyface.OURS)
    adopt_rows(work.database, work.settings)
    (home / "pictures").rename(home / "elsewhere")
    (home / "pictures").mkdir()
    with pytest.raises(BadInputError, match=r"none of 20 images with an existing score can be read"):
        makers.find_maker(work, METRICS["clip_score"])
    (home / "pictures").rmdir()
    (home / "elsewhere").rename(home / "pictures")
    assert makers.find_maker(work, METRICS["clip_score"]) == METRICS["clip_score"]
