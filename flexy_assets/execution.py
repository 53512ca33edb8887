"""Runs assets in this process on the user's Dagster instance, so that what the command does shows in the UI."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from resources.database import told_of
from resources.settings import Settings

PROJECT = Path(__file__).parent.parent
"""The folder of dagster.yaml, the embedded default's DAGSTER_HOME."""

PROCESS_TAG = "flexy/process"
"""The process a run is made by: host, number and start."""


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The user's instance (`DAGSTER_HOME`), by default the embedded one below `FLEXY_HOME`."""
    storage = settings.home / "dagster"
    os.environ.setdefault("DAGSTER_HOME", str(PROJECT))
    os.environ.setdefault("FLEXY_DAGSTER_STORAGE", str(storage))
    storage.mkdir(parents=True, exist_ok=True)
    bookkeeping = f"Dagster's bookkeeping (DAGSTER_HOME={os.environ['DAGSTER_HOME']})"
    with told_of(bookkeeping), dg.DagsterInstance.get() as instance:
        end_dead_runs(instance)
        yield instance


def end_dead_runs(instance: dg.DagsterInstance) -> None:
    """Record as failed the command's runs whose process was killed, and free the pool slots they held."""
    open_runs = instance.get_runs(
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED]
        )
    )
    for run in open_runs:
        process = run.tags.get(PROCESS_TAG)
        # A run that the UI started again bears its parent's tags, but Dagster looks after it.
        if process and not run.parent_run_id and not _alive(process):
            instance.report_run_failed(run, "its process was killed; what it had committed stays, run it again")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _alive(process: str) -> bool:
    """Whether the process a run is tagged with is there; one of another machine is taken to be."""
    host, _, here = process.partition("/")
    return host != socket.gethostname() or here == _identity(int(here.partition("/")[0]))


def _identity(pid: int) -> str | None:
    """Number and start of a process, None where there is none: the number alone is given out again in time."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return None if state == "Z" else f"{pid}/{fields[18]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return None
    # Other systems tell only whether the number is in use.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return f"{pid}/"


def process_tag() -> str:
    return f"{socket.gethostname()}/{_identity(os.getpid())}"


def run_assets(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    assets: Sequence[dg.AssetsDefinition],
    batches: tuple[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """One run of `assets`, over the partitions from the first to the last of `batches` where there are any.

    An error in an asset is raised here as it was there, an interruption as KeyboardInterrupt.
    """
    tags = {PROCESS_TAG: process_tag()}
    if batches:
        tags |= {ASSET_PARTITION_RANGE_START_TAG: batches[0], ASSET_PARTITION_RANGE_END_TAG: batches[1]}
    run_config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    if config:
        run_config["ops"] = {asset.op.name: {"config": dict(config)} for asset in assets}
    try:
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[asset.key for asset in assets],
            run_config=run_config,
            tags=tags,
            raise_on_error=True,
        )
    except dg.DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None


def ranges(wanted: Sequence[str], keys: Sequence[str]) -> list[tuple[str, str]]:
    """`wanted` partition keys as (first, last) of stretches without a gap in `keys`' order."""
    place = {key: index for index, key in enumerate(keys)}
    stretches: list[list[str]] = []
    for key in sorted(wanted, key=place.__getitem__):
        if stretches and place[stretches[-1][-1]] + 1 == place[key]:
            stretches[-1].append(key)
        else:
            stretches.append([key])
    return [(stretch[0], stretch[-1]) for stretch in stretches]
