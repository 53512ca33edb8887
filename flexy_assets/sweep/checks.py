"""Checks of what the sweep made. They look at the whole table, whichever batches a run was at."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dagster as dg

from flexy_assets.reporting import text_tables
from flexy_assets.scoring.work import Work
from flexy_assets.storage import quality
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
"""How many files are read; of more, so many drawn at random."""

SHOWN_ROWS = 5
"""How many offenders a check names."""

# What was asked for comes first, what looks at it last.
_LAST = {"dagster/priority": "-1"}

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found. `fault` says in one line what is wrong and what to do; None where all is well."""

    fault: str | None
    metadata: Mapping[str, Any]


def files_as_recorded(database: Database, images: ImageStore, settings: Settings) -> CheckOutcome:
    """Each image's file is there and, where its SHA-256 is recorded, has that."""
    with database.begin(reading=True) as connection:
        count, rows = quality.recorded_files(connection, MAX_FILES)
    looked_at = f"all {count:,} images" if len(rows) == count else f"{len(rows):,} of {count:,} images, drawn at random"
    metadata = {"looked at": looked_at, "with a recorded hash": sum(row.image_sha256 is not None for row in rows)}
    if rows:
        try:
            images.check()
        except BadInputError as error:
            return CheckOutcome(str(error), metadata)
    rows = sorted(rows, key=lambda row: row.image_path or "")
    found = images.verify_many([(row.image_path or "", row.image_sha256) for row in rows])
    lost = [(row, error) for row, error in zip(rows, found, strict=True) if error]
    metadata["not as recorded"] = len(lost)
    if not lost:
        return CheckOutcome(None, metadata)
    table = _table(
        {"image": row.id, "image_path": row.image_path, "reason": reason} for row, reason in lost[:SHOWN_ROWS]
    )
    fault = (
        f"{len(lost):,} files are not as recorded (looked at: {looked_at}): put them back below {images},"
        " or delete the rows of those that are lost"
    )
    return CheckOutcome(fault, metadata | {"the first": table})


def no_duplicates(database: Database, images: ImageStore, settings: Settings) -> CheckOutcome:
    """No two images agree in engine, prompts, steps, guidance, seed and size. An unknown seed agrees with none."""
    with database.begin(reading=True) as connection:
        rows = quality.duplicate_images(connection, settings, SHOWN_ROWS)
    if not rows:
        return CheckOutcome(None, {"images made twice": 0})
    groups, images_of_groups = rows[0].groups, int(rows[0].of_groups)
    columns = (*quality.SAME_IMAGE_COLUMNS, "images", "first_path", "last_path")
    table = _table({name: row._mapping[name] for name in columns} for row in rows)
    fault = (
        f"{groups:,} images were made more than once ({images_of_groups - groups:,} rows too many) and count as often"
        " in every figure: delete the rows that are too many"
    )
    return CheckOutcome(
        fault, {"images made twice": groups, "rows too many": images_of_groups - groups, "the most": table}
    )


@dataclass(frozen=True)
class MetricScores:
    """The scores of one metric."""

    metric: Metric
    database: Database
    settings: Settings

    @cached_property
    def tallies(self) -> list[RunTally]:
        """Two checks rest on these: the table is read once for both."""
        with self.database.begin(reading=True) as connection:
            return quality.run_tallies(connection, self.metric)


def in_range(scores: MetricScores) -> CheckOutcome:
    """Every score lies within the metric's bounds; NaN and infinity do not."""
    metric, tallies = scores.metric, scores.tallies
    count, outside = sum(t.count for t in tallies), sum(t.outside for t in tallies)
    metadata: dict[str, Any] = {"scored": count + outside, "bounds": f"{metric.low:g} to {metric.high:g}"}
    if count:
        lowest = min(t.lowest for t in tallies if t.lowest is not None)
        highest = max(t.highest for t in tallies if t.highest is not None)
        mean = sum(t.total for t in tallies) / count
        metadata |= {"lowest": round(lowest, 4), "mean": round(mean, 4), "highest": round(highest, 4)}
    if not outside:
        return CheckOutcome(None, metadata)
    fault = (
        f"{outside:,} of {count + outside:,} scores lie outside {metric.low:g} to {metric.high:g}:"
        f" compute their runs again with flexy rescore {metric.name} RUN"
    )
    with scores.database.begin(reading=True) as connection:
        rows = quality.images_out_of_range(connection, metric, SHOWN_ROWS)
    return CheckOutcome(fault, metadata | {"outside": outside, "the first": _table(dict(row._mapping) for row in rows)})


def no_missing_scores(scores: MetricScores) -> CheckOutcome:
    """Every image that this set of models may score has its score."""
    with scores.database.begin(reading=True) as connection:
        holes = quality.missing_scores_of(connection, scores.metric.name, scores.settings.models)
    metadata: dict[str, Any] = {"missing": holes.missing, "failed": holes.failed, "given up": holes.given_up}
    if holes.reason:
        metadata["last failure"] = holes.reason
    if not holes.missing:
        return CheckOutcome(None, metadata)
    fault = f"{holes.missing:,} scores are missing"
    remedies = [] if holes.given_up == holes.missing else ["flexy heal, or the night, fills them"]
    if holes.given_up:
        fault += f", {holes.given_up:,} of them given up after {MAX_ATTEMPTS} attempts"
        remedies += [f"once the cause is mended, flexy rescore {scores.metric.name} --failed tries those again"]
    if holes.reason:
        fault += f" (the last failed: {' '.join(holes.reason.split())})"
    return CheckOutcome(f"{fault}: {'; '.join(remedies)}", metadata)


def no_drift(scores: MetricScores) -> CheckOutcome:
    """No engine's newest run lies half a standard deviation, and beyond chance, from the mean of its earlier runs."""
    found = drift.find_drifts(scores.tallies, scores.metric)
    if not found:
        return CheckOutcome(
            None, {"compared": f"nothing: no engine has two runs of {drift.MIN_IMAGES_PER_RUN} scores each"}
        )
    rows = (
        {
            "engine": one.engine,
            "newest run": one.run_id,
            "images": one.images,
            "mean": f"{one.mean:.4g}",
            "earlier images": one.earlier_images,
            "earlier mean": f"{one.earlier_mean:.4g}",
            "z": f"{one.z:.1f}",
            "d": f"{one.d:.2f}",
        }
        for one in found
    )
    real = [
        f"{one.engine} {one.mean:.4g} in run {one.run_id.hex[:8]} after {one.earlier_mean:.4g} (d = {one.d:.2f})"
        for one in found
        if one.is_real
    ]
    fault = f"the mean moved: {'; '.join(real)}: see whether prompts, settings or the scorer changed" if real else None
    return CheckOutcome(fault, {"compared": _table(rows)})


IMAGE_CHECKS: dict[Callable[[Database, ImageStore, Settings], CheckOutcome], dg.AssetCheckSeverity] = {
    files_as_recorded: ERROR,
    no_duplicates: WARN,
}
SCORE_CHECKS: dict[Callable[[MetricScores], CheckOutcome], dg.AssetCheckSeverity] = {
    in_range: ERROR,
    no_missing_scores: WARN,
    no_drift: WARN,
}


def _specs(key: dg.AssetKey, checks: Iterable[Callable[..., CheckOutcome]]) -> list[dg.AssetCheckSpec]:
    return [dg.AssetCheckSpec(check.__name__, asset=key, description=check.__doc__) for check in checks]


def _results(
    context: dg.AssetCheckExecutionContext,
    key: dg.AssetKey,
    checks: Mapping[Callable[..., CheckOutcome], dg.AssetCheckSeverity],
    *arguments: Any,
) -> Iterator[dg.AssetCheckResult]:
    """The verdicts of those checks of an asset that were asked for."""
    for check, severity in checks.items():
        if dg.AssetCheckKey(key, check.__name__) in context.selected_asset_check_keys:
            verdict = check(*arguments)
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=check.__name__,
                passed=verdict.fault is None,
                severity=severity,
                description=verdict.fault,
                metadata=verdict.metadata,
            )


@dg.multi_asset_check(specs=_specs(assets.generated_images.key, IMAGE_CHECKS), can_subset=True, op_tags=_LAST)
def image_checks(context: dg.AssetCheckExecutionContext, work: dg.ResourceParam[Work]) -> Iterator[dg.AssetCheckResult]:
    """Look at the images' files and rows."""
    migrate(work.database)
    yield from _results(context, assets.generated_images.key, IMAGE_CHECKS, work.database, work.store, work.settings)


@dg.multi_asset_check(
    specs=[spec for metric in METRICS.values() for spec in _specs(assets.asset_key_of(metric), SCORE_CHECKS)],
    can_subset=True,
    op_tags=_LAST,
)
def score_checks(context: dg.AssetCheckExecutionContext, work: dg.ResourceParam[Work]) -> Iterator[dg.AssetCheckResult]:
    """Look at the scores of every metric."""
    migrate(work.database)
    for metric in METRICS.values():
        yield from _results(
            context, assets.asset_key_of(metric), SCORE_CHECKS, MetricScores(metric, work.database, work.settings)
        )


def _table(rows: Iterable[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    # None are left where somebody has put all of them right meanwhile.
    return dg.MetadataValue.md(text_tables.format_markdown_table(list(rows)))
