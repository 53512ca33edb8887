"""Processes that start at once: forked from one that has imported Flexy, Dagster and the model libraries.

A process made here is one of its own, with its own number, signals and file descriptors; it has only been spared the
imports. `python -m tests.support.fork_server FD` is the parent; it has one thread and computes nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
MAX_REQUEST = 1 << 20
PRELOADED = (
    "resources.engines.sdxl",
    "resources.engines.instruct_pix2pix",
    "resources.scorers.aesthetic",
    "resources.scorers.clip",
    "resources.scorers.hps",
    "resources.images",
    "resources.settings",
    *("dagster", "alembic.command", "click", "jinja2", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("plotly.graph_objects", "scipy.stats", "sklearn.linear_model", "sqlalchemy"),
)
"""What takes long to import and starts no thread: without polars, and so without what imports it."""


class ForkedProcess:
    """A process in the likeness of `subprocess.Popen`; `stdout` and `stderr` are pipes unless others were given."""

    def __init__(self, pid: int, status: int, stdout: IO[Any] | None, stderr: IO[Any] | None) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        return self._read_status(0)

    def wait(self, timeout: float | None = None) -> int:
        if (status := self._read_status(timeout)) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def _read_status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 64) or b"-9")
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[Any, Any]:
        """What is written on standard output and error until the end; raises `TimeoutExpired`."""
        deadline = time.monotonic() + timeout
        pipes = {pipe.fileno(): pipe for pipe in (self.stdout, self.stderr) if pipe and not pipe.closed}
        written: dict[int, bytes] = dict.fromkeys(pipes, b"")
        is_open = set(pipes)
        while is_open:
            readable, _, _ = select.select(is_open, [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            for descriptor in readable:
                piece = os.read(descriptor, 1 << 16)
                written[descriptor] += piece
                if not piece:
                    is_open.discard(descriptor)
        self.wait(max(0, deadline - time.monotonic()))
        texts = [
            written[pipe.fileno()].decode() if pipe and not pipe.closed else None for pipe in (self.stdout, self.stderr)
        ]
        for pipe in pipes.values():
            pipe.close()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The parent of forked processes; they end with it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "FLEXY_MODELS": "mini"}
        command = [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> ForkedProcess:
        """Start `python -m module arguments` in the project's folder; `stdout` and `stderr` may be descriptors."""
        pipes = [os.pipe() if given is None else None for given in (stdout, stderr)]
        targets = [pipe[1] if pipe else given for pipe, given in zip(pipes, (stdout, stderr), strict=True)]
        status, status_target = os.pipe()
        request = json.dumps([module, arguments, dict(os.environ if environment is None else environment)])
        socket.send_fds(self._socket, [request.encode()], [*targets, status_target])
        os.close(status_target)
        for pipe in filter(None, pipes):
            os.close(pipe[1])
        pid = int(self._socket.recv(64) or b"0")
        if not pid:
            raise RuntimeError("the fork server has ended")
        readers = [os.fdopen(pipe[0], "rb", buffering=0) if pipe else None for pipe in pipes]
        return ForkedProcess(pid, status, *readers)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(30)


def _serve(channel: socket.socket) -> None:
    """Fork for each request until the other side closes; report each end."""
    for name in PRELOADED:
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"an import has started {threads - 1} threads: a fork would lose them"
    wakeup_reader, wakeup_writer = os.pipe()
    for descriptor in (wakeup_reader, wakeup_writer):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wakeup_writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # A Ctrl-C in the terminal is for the test session, which closes the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    statuses: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([channel, wakeup_reader], [], [])
        if wakeup_reader in readable:
            os.read(wakeup_reader, 4096)
            _report_ends(statuses)
        if channel not in readable:
            continue
        request, descriptors, _, _ = socket.recv_fds(channel, MAX_REQUEST, 3)
        if not request:
            for pid in statuses:
                os.kill(pid, signal.SIGKILL)
            return
        pid = os.fork()
        if not pid:
            for descriptor in (channel.detach(), wakeup_reader, wakeup_writer, *statuses.values(), descriptors[2]):
                os.close(descriptor)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os._exit(_run(*json.loads(request), descriptors[0], descriptors[1]))
        statuses[pid] = descriptors[2]
        os.close(descriptors[0])
        os.close(descriptors[1])
        channel.send(str(pid).encode())


def _report_ends(statuses: dict[int, int]) -> None:
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        descriptor = statuses.pop(pid)
        with suppress(BrokenPipeError):
            os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(descriptor)


def _run(module: str, arguments: list[str], environment: dict[str, str], stdout: int, stderr: int) -> int:
    """Run a module as `python -m` would, to the end of an interpreter; the exit status."""
    import atexit
    import threading
    import traceback

    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
