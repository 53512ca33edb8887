"""Dagster runs in this process on the user's instance, so that what the command does shows in the UI."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import dagster as dg

from flexy_assets import names
from flexy_assets.dead_runs import PROCESS_TAG, end_dead_runs, process_tag
from flexy_assets.partitions import SEED_BATCHES
from resources.database import named_database_errors
from resources.errors import BadInputError
from resources.metrics.sweep import METRICS
from resources.settings import Settings

REPOSITORY = Path(__file__).parent.parent
"""The folder of dagster.yaml, which is DAGSTER_HOME by default; the wheel has it at share/flexy."""

QUIET_LOGGING: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""The command prints its own lines, not Dagster's."""

_RANGE_START_TAG, _RANGE_END_TAG = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
_PARTITION_TAG = "dagster/partition"
_FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Open the user's instance (`DAGSTER_HOME`), by default the embedded one below `FLEXY_HOME`."""
    storage = settings.home / "dagster"
    repository = REPOSITORY if (REPOSITORY / "dagster.yaml").exists() else Path(sys.prefix) / "share" / "flexy"
    os.environ["DAGSTER_HOME"] = os.environ.get("DAGSTER_HOME") or str(repository)
    home = Path(os.environ["DAGSTER_HOME"])
    if not home.is_absolute() or not home.is_dir():
        raise BadInputError(
            f"invalid DAGSTER_HOME {str(home)!r}: {'does not exist' if home.is_absolute() else 'not a full path'}:"
            f" unset it, or set it to the full path of the folder of dagster.yaml, as {repository}"
        )
    os.environ.setdefault("FLEXY_DAGSTER_STORAGE", str(storage))
    storage.mkdir(parents=True, exist_ok=True)
    bookkeeping = f"Dagster's bookkeeping (DAGSTER_HOME={os.environ['DAGSTER_HOME']})"
    with named_database_errors(bookkeeping), dg.DagsterInstance.get() as instance:
        end_dead_runs(instance)
        yield instance


def batches_in_progress(instance: dg.DagsterInstance) -> dict[str, set[str]]:
    """Return, by metric, the partitions that open Dagster runs, queued or started, are to score."""
    open_runs = instance.get_runs(dg.RunsFilter(statuses=[s for s in dg.DagsterRunStatus if s not in _FINISHED]))
    keys = instance.get_dynamic_partitions(SEED_BATCHES) if open_runs else []
    return {metric: {key for run in open_runs for key in _keys_to_score(run, metric, keys)} for metric in METRICS}


def _keys_to_score(run: dg.DagsterRun, metric: str, keys: Sequence[str]) -> Sequence[str]:
    """Return the partitions of which a Dagster run is to score `metric`; `keys` are all, in their order."""
    ops: Any = run.run_config.get("ops", {})
    if run.job_name in (names.BACKFILL_JOB, names.DEPRECATED_BACKFILL_JOB):
        configured = ops.get(names.backfill_op(metric), {}).get("config", {}).get("batches")
        return keys if configured is None else configured
    if run.job_name == names.SWEEP_JOB:
        prefix = run.tags.get(names.SWEEP_TAG)
        return [key for key in keys if key.rpartition("_")[0] == prefix]
    if dg.AssetKey(names.score_asset(metric)) not in (run.asset_selection or ()):
        return []
    start, end = run.tags.get(_RANGE_START_TAG), run.tags.get(_RANGE_END_TAG)
    if start in keys and end in keys:
        return keys[keys.index(start) : keys.index(end) + 1]
    return [run.tags[_PARTITION_TAG]] if _PARTITION_TAG in run.tags else []


def run_assets(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    assets: Sequence[dg.AssetsDefinition],
    batches: tuple[str, str] | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
) -> dg.ExecuteInProcessResult:
    """Run `assets`, over the partitions from the first to the last of `batches` if given; `config` is by asset name.

    Raises what an asset raises, and KeyboardInterrupt when interrupted.
    """
    tags = _own_tags()
    if batches:
        tags |= {_RANGE_START_TAG: batches[0], _RANGE_END_TAG: batches[1]}
    ops = {name: {"config": dict(values)} for name, values in (config or {}).items()}
    # Without the checks, which read the whole table: they run once, with the results.
    without_checks = dg.Definitions(assets=definitions.assets, resources=definitions.resources)
    job, keys = without_checks.resolve_implicit_global_asset_job_def(), [asset.key for asset in assets]
    try:
        return job.execute_in_process(QUIET_LOGGING | {"ops": ops}, instance, tags=tags, asset_selection=keys)
    except dg.DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None


def run_job(
    instance: dg.DagsterInstance, definitions: dg.Definitions, name: str, config: Mapping[str, Any] | None = None
) -> dg.ExecuteInProcessResult:
    """Run a job; a failed step (`step_failures`) stops only its dependents. Raises KeyboardInterrupt if interrupted."""
    result = definitions.resolve_job_def(name).execute_in_process(
        instance=instance,
        run_config=QUIET_LOGGING | dict(config or {}),
        tags=_own_tags(),
        raise_on_error=False,
    )
    if result.dagster_run.status == dg.DagsterRunStatus.CANCELED:
        raise KeyboardInterrupt
    return result


def _own_tags() -> dict[str, str]:
    """Return the tags of a Dagster run in this process: the process and, where there is one, the command."""
    command = click.get_current_context(silent=True)
    return {PROCESS_TAG: process_tag()} | ({names.COMMAND_TAG: command.command_path} if command else {})


def step_failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """Return the errors of the steps that failed, each in one line."""
    return [root_cause(event.step_failure_data.error) for event in result.filter_events(lambda e: e.is_step_failure)]


def root_cause(error: Any) -> str:
    """Return the message of the first error in a chain that Dagster recorded, in one line and without its class."""
    if error is None:
        return "no error is recorded"
    while error.cause is not None:
        error = error.cause
    message = " ".join(error.message.split())
    return message.partition(f"{error.cls_name}: ")[2] or message


def contiguous_ranges(selected: Sequence[str], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return the selected partition keys as (first, last) of ranges without a gap in the order of `keys`."""
    positions = {key: position for position, key in enumerate(keys)}
    ranges: list[tuple[str, str]] = []
    for key in sorted(selected, key=positions.__getitem__):
        if ranges and positions[ranges[-1][1]] + 1 == positions[key]:
            ranges[-1] = (ranges[-1][0], key)
        else:
            ranges.append((key, key))
    return ranges
