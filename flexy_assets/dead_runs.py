"""Dagster runs whose process was killed: each run is tagged with its process, so that a dead one can be ended."""

import os
import socket
from pathlib import Path

import dagster as dg

PROCESS_TAG = "flexy/process"  # the process that executes a Dagster run: host, process id, start time and run id


def process_tag() -> str:
    """Return this process as host/id/start time: an id alone is reused in time."""
    return f"{socket.gethostname()}/{os.getpid()}/{_process_start_time(os.getpid())}"


def io_manager_with_process_tag(tables: dg.IOManager) -> dg.IOManagerDefinition:
    """Return the IO manager; it tags the Dagster run with its process, because a run sets it up before all else."""

    @dg.io_manager
    def io_manager(context: dg.InitResourceContext) -> dg.IOManager:
        if context.instance and context.run:
            tag = f"{process_tag()}/{context.run.run_id}"
            context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: tag})
        return tables

    return io_manager


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Record as failed the runs whose process is dead, free the pool slots they held, and return their ids."""
    ended = []
    open_statuses = [dg.DagsterRunStatus[name] for name in ("NOT_STARTED", "STARTING", "STARTED", "CANCELING")]
    for run in instance.get_runs(dg.RunsFilter(statuses=open_statuses)):
        process = run.tags.get(PROCESS_TAG)
        # A retry has its parent's tags until it sets its own.
        if process and (not run.parent_run_id or run.run_id in process) and not _is_process_alive(process):
            instance.report_run_failed(run, "its process was killed; completed work is kept: run it again")
            ended.append(run.run_id)
    # Also of runs that Dagster itself has seen end: it would hold their slots a while longer.
    for run_id in instance.event_log_storage.get_concurrency_run_ids():
        holder = instance.get_run_by_id(run_id)
        if holder is None or (holder.is_finished and not _is_process_alive(holder.tags.get(PROCESS_TAG))):
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    return ended


def _is_process_alive(process: str | None) -> bool:
    """Return whether a tagged process is running; one on another machine counts as running."""
    if process is None:
        return False
    host, pid, start, *_ = process.split("/")
    return host != socket.gethostname() or _process_start_time(int(pid)) in (start, "")


def _process_start_time(pid: int) -> str | None:
    """Return when a process started; None if there is no such process, "" if the time is unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return None if state == "Z" else fields[18]
    except (FileNotFoundError, ProcessLookupError):
        pass
    # Other systems, and those that hide others' processes, tell only whether the id is in use.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
