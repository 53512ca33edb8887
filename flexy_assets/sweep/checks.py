"""Asset checks of the sweep. They check the whole table, whichever partitions a Dagster run covered."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dagster as dg

from flexy_assets.reporting import text_tables
from flexy_assets.scoring import makers
from flexy_assets.scoring.work import Work
from flexy_assets.storage import quality
from flexy_assets.storage.makers import list_makers
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.quality import RunTally
from flexy_assets.storage.scores import MAX_ATTEMPTS
from flexy_assets.sweep import assets
from flexy_assets.sweep.analysis import drift
from resources.database import Database
from resources.errors import BadInputError
from resources.images import ImageStore
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.settings import Settings

MAX_FILES = 5_000
"""Files read at most; of more, a random sample."""

SHOWN_ROWS = 5

# Checks run after the assets of the same Dagster run.
_LAST = {"dagster/priority": "-1"}

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@dataclass(frozen=True)
class CheckOutcome:
    """The result of a check. `error` says in one line what is wrong and what to do; None where it passed."""

    error: str | None
    metadata: Mapping[str, Any]


def files_as_recorded(database: Database, images: ImageStore, settings: Settings) -> CheckOutcome:
    """Each image's file exists and, where its SHA-256 is recorded, matches it."""
    with database.begin(reading=True) as connection:
        count, rows = quality.recorded_files(connection, MAX_FILES)
    checked = f"all {count:,} images" if len(rows) == count else f"a random {len(rows):,} of {count:,} images"
    metadata = {"checked": checked, "with a recorded hash": sum(row.image_sha256 is not None for row in rows)}
    if rows:
        try:
            images.check()
        except BadInputError as unreadable:
            return CheckOutcome(str(unreadable), metadata)
    rows = sorted(rows, key=lambda row: row.image_path or "")
    errors = images.verify_many([(row.image_path or "", row.image_sha256) for row in rows])
    changed = [
        {"image": row.id, "image_path": row.image_path, "reason": error}
        for row, error in zip(rows, errors, strict=True)
        if error
    ]
    metadata["missing or changed"] = len(changed)
    if not changed:
        return CheckOutcome(None, metadata)
    error = f"{len(changed):,} files are missing or changed (checked: {checked})"
    remedy = f"run their partitions of generated_images or flexy sweep run, or restore them below {images}"
    return CheckOutcome(f"{error}: {remedy}", metadata | {"first rows": _table(changed[:SHOWN_ROWS])})


def no_unnamed_files(database: Database, images: ImageStore, settings: Settings) -> CheckOutcome:
    """Every file below the image root is named by a row: no row is lost, and no killed run's file is left."""
    files = set(images.list_files())
    count, prefixes = len(files), images.own_prefixes()
    if files:
        with database.begin(reading=True) as connection:
            for path in quality.recorded_paths(connection):
                prefix = next((each for each in prefixes if path.startswith(f"{each}/")), None)
                files.discard(path[len(prefix) + 1 :] if prefix else path)
    metadata: dict[str, Any] = {"files": count, "unnamed": len(files)}
    if not files:
        return CheckOutcome(None, metadata)
    metadata["first files"] = _table({"path": path} for path in sorted(files)[:SHOWN_ROWS])
    error = f"{len(files):,} of {count:,} files below {images} are named by no row, for example {min(files)}"
    return CheckOutcome(f"{error}: run their sweeps, which makes the rows of planned ones, or remove them", metadata)


def no_duplicates(database: Database, images: ImageStore, settings: Settings) -> CheckOutcome:
    """No two images have the same engine, prompts, steps, guidance, seed and size. Unknown seeds are all different."""
    with database.begin(reading=True) as connection:
        rows = quality.duplicate_images(connection, settings, SHOWN_ROWS)
    if not rows:
        return CheckOutcome(None, {"duplicated images": 0})
    groups, surplus = rows[0].groups, int(rows[0].of_groups) - rows[0].groups
    columns = (*quality.SAME_IMAGE_COLUMNS, "images", "first_path", "last_path")
    table = _table({name: row._mapping[name] for name in columns} for row in rows)
    duplicated = f"{groups:,} images are duplicated ({surplus:,} surplus rows)"
    return CheckOutcome(
        f"{duplicated} and counted more than once: delete the surplus rows",
        {"duplicated images": groups, "surplus rows": surplus, "most duplicated": table},
    )


@dataclass(frozen=True)
class MetricScores:
    """The scores of one metric."""

    metric: Metric
    database: Database
    settings: Settings

    @cached_property
    def tallies(self) -> list[RunTally]:
        """The sums that two checks need, read once."""
        with self.database.begin(reading=True) as connection:
            return quality.run_tallies(connection, self.metric)


def in_range(scores: MetricScores) -> CheckOutcome:
    """Every score is within the metric's range; NaN and infinity are not."""
    metric, tallies = scores.metric, scores.tallies
    count, outside = sum(t.count for t in tallies), sum(t.outside for t in tallies)
    metadata: dict[str, Any] = {"scored": count + outside, "range": f"{metric.low:g} to {metric.high:g}"}
    if count:
        lowest = min(t.lowest for t in tallies if t.lowest is not None)
        highest = max(t.highest for t in tallies if t.highest is not None)
        mean = sum(t.total for t in tallies) / count
        metadata |= {"lowest": round(lowest, 4), "mean": round(mean, 4), "highest": round(highest, 4)}
    if not outside:
        return CheckOutcome(None, metadata)
    with scores.database.begin(reading=True) as connection:
        rows = quality.images_out_of_range(connection, metric, SHOWN_ROWS)
    metadata |= {"outside": outside, "first rows": _table(dict(row._mapping) for row in rows)}
    error = f"{outside:,} of {count + outside:,} scores are outside {metric.low:g} to {metric.high:g}"
    return CheckOutcome(f"{error}: recompute their sweeps with flexy rescore {metric.name} SWEEP", metadata)


def no_missing_scores(scores: MetricScores) -> CheckOutcome:
    """Every image that this model set may score has its score."""
    with scores.database.begin(reading=True) as connection:
        counts = quality.missing_scores_of(connection, scores.metric.name, scores.settings.models)
    metadata: dict[str, Any] = {"missing": counts.missing, "failed": counts.failed}
    metadata["attempts exhausted"] = counts.exhausted
    if counts.error:
        metadata["last error"] = counts.error
    if not counts.missing:
        return CheckOutcome(None, metadata)
    error = f"{counts.missing:,} scores are missing"
    remedies = [] if counts.exhausted == counts.missing else ["run `flexy backfill` or wait for the nightly schedule"]
    if counts.exhausted:
        error += f", {counts.exhausted:,} of them with attempts exhausted ({MAX_ATTEMPTS})"
        remedies += [f"fix the cause, then run `flexy rescore {scores.metric.name} --failed`"]
    if counts.error:
        error += f" (last error: {' '.join(counts.error.split())})"
    return CheckOutcome(f"{error}: {'; '.join(remedies)}", metadata)


def no_drift(scores: MetricScores) -> CheckOutcome:
    """No engine's newest sweep differs from its earlier ones significantly and by half a standard deviation."""
    drifts = drift.find_drifts(scores.tallies, scores.metric)
    if not drifts:
        nothing = f"nothing: no engine has two sweeps of {drift.MIN_IMAGES_PER_RUN} scores each"
        return CheckOutcome(None, {"compared": nothing})
    rows = (
        {
            "engine": each.engine,
            "newest sweep": each.run_id,
            "images": each.images,
            "mean": f"{each.mean:.4g}",
            "earlier images": each.earlier_images,
            "earlier mean": f"{each.earlier_mean:.4g}",
            "z": f"{each.z:.1f}",
            "d": f"{each.d:.2f}",
        }
        for each in drifts
    )
    real = [
        f"{each.engine} {each.mean:.4g} in sweep {each.run_id.hex[:8]} after {each.earlier_mean:.4g} (d = {each.d:.2f})"
        for each in drifts
        if each.is_real
    ]
    error = f"the mean drifted: {'; '.join(real)}: check whether prompts, settings or the scorer changed"
    return CheckOutcome(error if real else None, {"compared": _table(rows)})


def known_maker(scores: MetricScores) -> CheckOutcome:
    """It is known what made the scores that were in the column before Flexy: one scorer, which fills the others too."""
    with scores.database.begin(reading=True) as connection:
        found = {maker.metric: maker for maker in list_makers(connection, scores.settings)}
    maker = found.get(scores.metric.name)
    if maker is None:
        return CheckOutcome(None, {"made by": "Flexy"})
    figures = makers.agreement_document(maker, scores.metric)
    metadata = {"made by": makers.describe_maker(maker, scores.metric)} | {
        name.replace("_", " "): figures[name]
        for name in ("sampled", "agreeing", "mean_difference", "spread", "correlation")
        if figures[name] is not None
    }
    metadata["tried"] = dg.MetadataValue.md("\n".join(f"- {each}" for each in maker.tried))
    return CheckOutcome(makers.describe_refusal(maker) if maker.variant is None else None, metadata)


Checks = Mapping[Callable[..., CheckOutcome], dg.AssetCheckSeverity]
"""Checks and how severe a failure of each is."""

IMAGE_CHECKS: Checks = {files_as_recorded: ERROR, no_unnamed_files: WARN, no_duplicates: WARN}
SCORE_CHECKS: Checks = {known_maker: ERROR, in_range: ERROR, no_missing_scores: WARN, no_drift: WARN}


def _specs(key: dg.AssetKey, checks: Checks) -> list[dg.AssetCheckSpec]:
    return [dg.AssetCheckSpec(check.__name__, asset=key, description=check.__doc__) for check in checks]


def _results(
    context: dg.AssetCheckExecutionContext, key: dg.AssetKey, checks: Checks, *arguments: Any
) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of an asset's selected checks."""
    for check, severity in checks.items():
        if dg.AssetCheckKey(key, check.__name__) in context.selected_asset_check_keys:
            outcome = check(*arguments)
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=check.__name__,
                passed=outcome.error is None,
                severity=severity,
                description=outcome.error,
                metadata=outcome.metadata,
            )


@dg.multi_asset_check(specs=_specs(assets.generated_images.key, IMAGE_CHECKS), can_subset=True, op_tags=_LAST)
def image_checks(context: dg.AssetCheckExecutionContext, work: dg.ResourceParam[Work]) -> Iterator[dg.AssetCheckResult]:
    """Check the images' files and rows."""
    migrate(work.database)
    yield from _results(context, assets.generated_images.key, IMAGE_CHECKS, work.database, work.store, work.settings)


@dg.multi_asset_check(
    specs=[spec for metric in METRICS.values() for spec in _specs(assets.asset_key_of(metric), SCORE_CHECKS)],
    can_subset=True,
    op_tags=_LAST,
)
def score_checks(context: dg.AssetCheckExecutionContext, work: dg.ResourceParam[Work]) -> Iterator[dg.AssetCheckResult]:
    """Check the scores of every metric."""
    migrate(work.database)
    for metric in METRICS.values():
        scores = MetricScores(metric, work.database, work.settings)
        yield from _results(context, assets.asset_key_of(metric), SCORE_CHECKS, scores)


def _table(rows: Iterable[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    # Empty where all were corrected meanwhile.
    return dg.MetadataValue.md(text_tables.format_markdown_table(list(rows)))
