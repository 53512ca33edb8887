"""Runs assets in this process on the user's Dagster instance, so that what the command does shows in the UI."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from dagster._utils.error import SerializableErrorInfo

from flexy_assets.partitions import seed_batches
from resources.database import named_database_errors
from resources.metrics.sweep import METRICS
from resources.settings import Settings

PROJECT_FOLDER = Path(__file__).parent.parent
"""The folder of dagster.yaml, the embedded default's DAGSTER_HOME."""

BACKFILL_JOB = "backfill_scores"
"""The job that fills holes."""

QUIET_LOGGING: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""The command prints its own lines, not Dagster's."""

PROCESS_TAG = "flexy/process"
"""The process a run is made by: host, number and start."""


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The user's instance (`DAGSTER_HOME`), by default the embedded one below `FLEXY_HOME`."""
    storage = settings.home / "dagster"
    os.environ.setdefault("DAGSTER_HOME", str(PROJECT_FOLDER))
    os.environ.setdefault("FLEXY_DAGSTER_STORAGE", str(storage))
    storage.mkdir(parents=True, exist_ok=True)
    bookkeeping = f"Dagster's bookkeeping (DAGSTER_HOME={os.environ['DAGSTER_HOME']})"
    with named_database_errors(bookkeeping), dg.DagsterInstance.get() as instance:
        end_dead_runs(instance)
        yield instance


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Record as failed the runs whose process was killed, and free the pool slots they held; returns their ids."""
    ended = []
    open_runs = instance.get_runs(
        dg.RunsFilter(
            statuses=[
                dg.DagsterRunStatus.NOT_STARTED,
                dg.DagsterRunStatus.STARTING,
                dg.DagsterRunStatus.STARTED,
                dg.DagsterRunStatus.CANCELING,
            ]
        )
    )
    for run in open_runs:
        process = run.tags.get(PROCESS_TAG)
        # A run that was started again bears its parent's tags until it signs its own.
        if process and (not run.parent_run_id or run.run_id in process) and not _is_process_alive(process):
            instance.report_run_failed(run, "its process was killed; what it had committed stays, run it again")
            ended.append(run.run_id)
    # Also of runs whose end Dagster has seen itself: it would keep their slots a while longer.
    for run_id in instance.event_log_storage.get_concurrency_run_ids():
        holder = instance.get_run_by_id(run_id)
        if holder is None or (holder.is_finished and not _is_process_alive(holder.tags.get(PROCESS_TAG))):
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    return ended


def _is_process_alive(process: str | None) -> bool:
    """Whether the process a run is tagged with is there; one of another machine is taken to be."""
    if process is None:
        return False
    host, pid, start, *_ = process.split("/")
    return host != socket.gethostname() or _process_start_time(int(pid)) in (start, "")


def _process_start_time(pid: int) -> str | None:
    """When a process began: its number alone is given out again in time. None where there is none, "" if unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return None if state == "Z" else fields[18]
    except (FileNotFoundError, ProcessLookupError):
        pass
    # Other systems, and those that hide others' processes, tell only whether the number is in use.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def process_tag() -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{_process_start_time(os.getpid())}"


def io_manager_with_process_tag(tables: dg.IOManager) -> dg.IOManagerDefinition:
    """The IO manager; a run sets it up before all else, and in its tags there signs which process makes it.

    So its death is noticed, and its pool slot comes free, whatever it was at.
    """

    @dg.io_manager
    def io_manager(context: dg.InitResourceContext) -> dg.IOManager:
        if context.instance and context.run_id:
            tag = f"{process_tag()}/{context.run_id}"
            context.instance.add_run_tags(context.run_id, {PROCESS_TAG: tag})
        return tables

    return io_manager


def batches_in_progress(instance: dg.DagsterInstance) -> dict[str, set[str]]:
    """By metric, the batches that a run which has not ended yet, queued or started, is to score."""
    open_runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    keys = instance.get_dynamic_partitions(seed_batches.name or "") if open_runs else []
    found: dict[str, set[str]] = {metric: set() for metric in METRICS}
    for run in open_runs:
        for metric in METRICS:
            found[metric].update(_batches_of_run(run, metric, keys))
    return found


def _batches_of_run(run: dg.DagsterRun, metric: str, keys: Sequence[str]) -> Sequence[str]:
    """The batches of which a run is to score `metric`."""
    ops: Any = run.run_config.get("ops", {})
    if run.job_name == BACKFILL_JOB:
        named = ops.get(f"backfill_{metric}", {}).get("config", {}).get("batches")
        return keys if named is None else named
    if dg.AssetKey(f"{metric}s") not in (run.asset_selection or ()):
        return []
    start, end = (run.tags.get(tag) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
    if start in keys and end in keys:
        return keys[keys.index(start) : keys.index(end) + 1]
    return [run.tags[PARTITION_NAME_TAG]] if PARTITION_NAME_TAG in run.tags else []


def run_assets(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    assets: Sequence[dg.AssetsDefinition],
    batches: tuple[str, str] | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
) -> dg.ExecuteInProcessResult:
    """One run of `assets`, over the partitions from the first to the last of `batches` where there are any.

    `config` is by the asset's name.

    An error in an asset is raised here as it was there, an interruption as KeyboardInterrupt.
    """
    tags = {PROCESS_TAG: process_tag()}
    if batches:
        tags |= {ASSET_PARTITION_RANGE_START_TAG: batches[0], ASSET_PARTITION_RANGE_END_TAG: batches[1]}
    run_config: dict[str, Any] = dict(QUIET_LOGGING)
    if config:
        run_config["ops"] = {name: {"config": dict(values)} for name, values in config.items()}
    # Without the checks, which look at the whole table: they come once, with the results.
    alone = dg.Definitions(assets=definitions.assets, resources=definitions.resources)
    try:
        return alone.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[asset.key for asset in assets],
            run_config=run_config,
            tags=tags,
            raise_on_error=True,
        )
    except dg.DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None


def run_job(
    instance: dg.DagsterInstance, definitions: dg.Definitions, name: str, config: Mapping[str, Any] | None = None
) -> dg.ExecuteInProcessResult:
    """One run of a job; a step that fails does not stop those that need nothing of it. See `failures`.

    An interruption is raised as KeyboardInterrupt.
    """
    result = definitions.resolve_job_def(name).execute_in_process(
        instance=instance,
        run_config=QUIET_LOGGING | dict(config or {}),
        tags={PROCESS_TAG: process_tag()},
        raise_on_error=False,
    )
    if result.dagster_run.status == dg.DagsterRunStatus.CANCELED:
        raise KeyboardInterrupt
    return result


def step_failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """Why steps of a run failed, each in one line."""
    return [root_cause(event.step_failure_data.error) for event in result.filter_events(lambda e: e.is_step_failure)]


def root_cause(error: SerializableErrorInfo | None) -> str:
    """What was wrong in the first place, in one line and without the exception's name."""
    while error is not None and error.cause is not None:
        error = error.cause
    if error is None:
        return "no reason is recorded"
    message = " ".join(error.message.split())
    return message.partition(f"{error.cls_name}: ")[2] or message


def contiguous_ranges(wanted: Sequence[str], keys: Sequence[str]) -> list[tuple[str, str]]:
    """`wanted` partition keys as (first, last) of stretches without a gap in `keys`' order."""
    place = {key: index for index, key in enumerate(keys)}
    stretches: list[list[str]] = []
    for key in sorted(wanted, key=place.__getitem__):
        if stretches and place[stretches[-1][-1]] + 1 == place[key]:
            stretches[-1].append(key)
        else:
            stretches.append([key])
    return [(stretch[0], stretch[-1]) for stretch in stretches]
