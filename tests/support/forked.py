"""`Popen` and `run` as in `subprocess`, for Python: forks of a process that has imported the large libraries.

What starts is a process of its own, with its own number, signals and descriptors; it has only been spared the imports.
Variables that a library reads while it is imported (`HF_HOME`, say) are those of the test session, not of `env`.

`python -m tests.support.forked FD` is the process that forks. It has one thread and computes nothing.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, TimeoutExpired
from typing import IO, Any

from tests.support import shortcuts

ROOT = Path(__file__).parents[2]
MAX_REQUEST_BYTES = 1 << 20
PRELOADED = (
    "resources.engines.sdxl",
    "resources.engines.instruct_pix2pix",
    "resources.scorers.aesthetic",
    "resources.scorers.clip",
    "resources.scorers.hps",
    "resources.images",
    *("dagster", "alembic.command", "click", "jinja2", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("scipy.stats", "sklearn.linear_model", "sklearn.preprocessing", "sqlalchemy"),
)
"""What takes long to import and starts no thread: without polars, and so without what imports it."""


class Popen:
    """A forked process in the likeness of `subprocess.Popen`, of the command line `python -m …` or `python -c …`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: str | Path = ROOT,
        env: Mapping[str, str] | None = None,
        stdin: Any = DEVNULL,
        stdout: Any = None,
        stderr: Any = None,
        text: bool = False,
        start_new_session: bool = False,
    ) -> None:
        program, *arguments = map(str, command)
        assert program == sys.executable and arguments[0] in ("-m", "-c"), command
        ours: list[int | None] = []
        theirs: list[int] = []
        opened: list[int] = []
        for number, given in enumerate((stdin, stdout, stderr)):
            if given == PIPE:
                pipe = os.pipe()
                ours.append(pipe[number == 0])
                theirs.append(pipe[number != 0])
                opened.append(theirs[-1])
            elif given == DEVNULL:
                ours.append(None)
                theirs.append(os.open(os.devnull, os.O_RDWR))
                opened.append(theirs[-1])
            else:
                ours.append(None)
                theirs.append(number if given is None else given if isinstance(given, int) else given.fileno())
        self._status, status = os.pipe()
        environment = dict(os.environ if env is None else env)
        request = json.dumps([arguments, str(cwd), environment, start_new_session]).encode()
        self.pid = _server().fork(request, [*theirs, status])
        for descriptor in (*opened, status):
            os.close(descriptor)
        self.returncode: int | None = None
        modes = ("w", "r", "r") if text else ("wb", "rb", "rb")
        files: list[IO[Any] | None] = [
            None if descriptor is None else os.fdopen(descriptor, mode)
            for descriptor, mode in zip(ours, modes, strict=True)
        ]
        self.stdin, self.stdout, self.stderr = files
        self._text = text

    def poll(self) -> int | None:
        return self._read_status(0)

    def wait(self, timeout: float | None = None) -> int:
        if (status := self._read_status(timeout)) is None:
            raise TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def _read_status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 64) or b"-9")
            os.close(self._status)
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Return what is written on standard output and error until the end; raises `TimeoutExpired`."""
        if self.stdin and not self.stdin.closed:
            if input:
                self.stdin.write(input)
            self.stdin.close()
        written: list[Any] = [None, None]

        def read(place: int, pipe: IO[Any]) -> None:
            with suppress(ValueError, OSError):
                written[place] = pipe.read()

        pipes = [(place, pipe) for place, pipe in enumerate((self.stdout, self.stderr)) if pipe and not pipe.closed]
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in pipes]
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise TimeoutExpired(f"process {self.pid}", timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        for _, pipe in pipes:
            pipe.close()
        return written[0], written[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: Sequence[str | Path],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> CompletedProcess[Any]:
    if capture_output:
        options |= {"stdout": PIPE, "stderr": PIPE}
    if input is not None:
        options["stdin"] = PIPE
    process = Popen(command, **options)
    try:
        out, err = process.communicate(input, timeout)
    finally:
        process.kill()
    done = CompletedProcess(command, process.wait(), out, err)
    if check:
        done.check_returncode()
    return done


class _ForkServer:
    """The process that forks; what it has forked ends with it."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLEXY_", "DAGSTER_"))}
        command = [sys.executable, "-m", "tests.support.forked", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._lock = threading.Lock()

    def fork(self, request: bytes, descriptors: Sequence[int]) -> int:
        with self._lock:
            socket.send_fds(self._channel, [request], descriptors)
            pid = int(self._channel.recv(64) or b"0")
        if not pid:
            raise RuntimeError("the process that forks has ended")
        return pid

    def close(self) -> None:
        self._channel.close()
        with suppress(TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()


@cache
def _server() -> _ForkServer:
    server = _ForkServer()
    atexit.register(server.close)
    return server


def _serve(channel: socket.socket) -> None:
    """Fork for each request until the other side closes; report each end."""
    for name in PRELOADED:
        importlib.import_module(name)
    shortcuts.apply()
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
        request, descriptors, _, _ = socket.recv_fds(channel, MAX_REQUEST_BYTES, 4)
        if not request:
            for pid in statuses:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        *streams, status = descriptors
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for descriptor in (channel.detach(), wakeup_reader, wakeup_writer, *statuses.values(), status):
                os.close(descriptor)
            os._exit(_run(*json.loads(request), streams))
        statuses[pid] = status
        for descriptor in streams:
            os.close(descriptor)
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


def _run(arguments: list[str], folder: str, environment: dict[str, str], new_session: bool, streams: list[int]) -> int:
    """Run a module or a program as `python -m` or `python -c` would, to the end of an interpreter; the exit status."""
    if new_session:
        os.setsid()
    for target, source in enumerate(streams):
        os.dup2(source, target)
        os.close(source)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    kind, what, *others = arguments
    status = 0
    try:
        if kind == "-m":
            sys.argv = [what, *others]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [kind, *others]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
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
