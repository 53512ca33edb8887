"""`Popen` and `run` as in `subprocess`, for Python: forks of a process that has imported the large libraries.

What starts is a process of its own, with its own number, signals and descriptors; it has only been spared the imports.
Variables that a library reads while it is imported are those of the test session, not of `env`; but the hub's library
is imported again for those of its own (`HF_HOME`, say), where it is imported after the start.
What it starts by its own `sys.executable` or by multiprocessing (a code server, a run worker) is forked as well.

`python -m tests.support.forked FOLDER` is the process that forks, one for a test session. It has one thread and
computes nothing. It listens at `FOLDER/socket`; `FOLDER/python` is a program that asks it as a Python interpreter would
be asked, passes its signals on and ends as the forked process ends.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, TimeoutExpired
from typing import IO, Any

from tests.support import shortcuts

ROOT = Path(__file__).parents[2]
PYTHON = str(Path(sys.prefix, "bin", "python"))
FOLDER = "TEST_FORK_SERVER"
"""The variable that names the folder of the session's process that forks."""
MAX_REQUEST_BYTES = 1 << 20
MAX_DESCRIPTORS = 64
PRELOADED = (
    "resources.engines.sdxl",
    "resources.engines.instruct_pix2pix",
    "resources.scorers.aesthetic",
    "resources.scorers.clip",
    "resources.scorers.hps",
    "resources.images",
    *("resources.models.registry", "flexy_assets.cli.app", "flexy_assets.execution"),
    *("dagster", "dagster._daemon.cli", "dagster._cli.api", "dagster._grpc.server", "dagster_postgres", "psycopg2"),
    *(
        "dagster._daemon.daemon",
        "dagster._core.workspace.load",
        "alembic.command",
        "click",
        "jinja2",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ),
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
        assert program in (sys.executable, PYTHON) and arguments[0] in ("-m", "-c"), command
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
        environment = dict(os.environ if env is None else env)
        request = [[0, 1, 2], arguments, str(cwd), environment, start_new_session]
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(f"{start_server()}/socket")
        socket.send_fds(self._server, [json.dumps(request).encode()], theirs)
        self.pid = int(self._server.recv(64) or b"0")
        if not self.pid:
            raise RuntimeError("the process that forks has ended")
        for descriptor in opened:
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
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            self.returncode = int(self._server.recv(64) or b"-9")
            self._server.close()
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


def start_server() -> str:
    """Start the process that forks, unless this test session has one; return its folder. It ends with this process."""
    if not (folder := os.environ.get(FOLDER)):
        folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="flexy-forks-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        program = Path(folder, "python")
        program.write_text(f"#!{PYTHON} -IS\n{_PROGRAM}")
        program.chmod(0o700)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("FLEXY_", "DAGSTER_"))}
        command = [PYTHON, "-m", "tests.support.forked", folder]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=PIPE, stdout=PIPE)
        atexit.register(server.kill)
        assert server.stdout and server.stdout.readline(), "the process that forks does not start"
    return folder


_PROGRAM = """
import json, os, signal, socket, sys

descriptors = []
for number in map(int, os.listdir("/proc/self/fd")):
    try:
        os.fstat(number)
        descriptors.append(number)
    except OSError:
        pass
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect(os.path.join(os.path.dirname(sys.argv[0]), "socket"))
request = [descriptors, sys.argv[1:], os.getcwd(), dict(os.environ), False]
socket.send_fds(server, [json.dumps(request).encode()], descriptors)
pid = int(server.recv(64) or b"0")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.kill(pid, number))
for number in descriptors:
    os.close(number)
status = int(server.recv(64) or b"-9")
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def _serve(folder: str) -> None:
    """Fork for each request, until standard input closes.

    A request's connection gets the number and at last the exit status of what was forked, which ends with it.
    """
    for name in PRELOADED:
        importlib.import_module(name)
    shortcuts.apply()
    shortcuts.freeze()
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"an import has started {threads - 1} threads: a fork would lose them"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{folder}/socket")
    listener.listen(64)
    print("listening", flush=True)
    wakeup_reader, wakeup_writer = os.pipe()
    for descriptor in (wakeup_reader, wakeup_writer):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wakeup_writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # A Ctrl-C in the terminal is for the test session, which closes standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes: dict[socket.socket, int] = {}
    while True:
        readable, _, _ = select.select([0, listener, wakeup_reader, *processes], [], [])
        if wakeup_reader in readable:
            os.read(wakeup_reader, 4096)
            _report_ends(processes)
        for connection in processes.keys() & set(readable):
            os.kill(processes[connection], signal.SIGKILL)
        if 0 in readable:
            for pid in processes.values():
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if listener not in readable:
            continue
        connection = listener.accept()[0]
        request, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        pid = os.fork() if request else 0
        if request and not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for each in (listener, connection, *processes):
                each.close()
            os.close(wakeup_reader)
            os.close(wakeup_writer)
            targets, *how = json.loads(request)
            _move(descriptors, targets)
            sys.executable = f"{folder}/python"
            multiprocessing.set_executable(sys.executable)
            os._exit(_run(*how))
        for descriptor in descriptors:
            os.close(descriptor)
        if not request:
            connection.close()
            continue
        processes[connection] = pid
        with suppress(OSError):  # the client may have ended
            connection.send(str(pid).encode())


def _move(descriptors: Sequence[int], targets: Sequence[int]) -> None:
    """Give the received descriptors the numbers they had where they came from; standard ones that lack are empty."""
    free = max([*descriptors, *targets, 2]) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, free) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, target in zip(moved, targets, strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    for target in {0, 1, 2} - set(targets):
        empty = os.open(os.devnull, os.O_RDWR)
        os.dup2(empty, target)
        if empty != target:
            os.close(empty)


def _report_ends(processes: dict[socket.socket, int]) -> None:
    while processes:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if not ended:
            return
        connection = next(connection for connection, pid in processes.items() if pid == ended)
        with suppress(OSError):
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        del processes[connection]
        connection.close()


def _run(arguments: list[str], folder: str, environment: dict[str, str], new_session: bool) -> int:
    """Run a module or a program as `python -m` or `python -c` would, to the end of an interpreter; the exit status."""
    if new_session:
        os.setsid()
    os.chdir(folder)
    ours = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    if any(ours.get(name) != environment.get(name) for name in ours.keys() | environment if name.startswith("HF_")):
        _forget("huggingface_hub")
    if Path(folder) != ROOT and Path(folder, "resources").is_dir():
        # A copy of the project.
        sys.path[:] = [folder, *(path for path in sys.path if path not in ("", str(ROOT)))]
        _forget("flexy_assets", "resources", "sensors")
    kind = next((argument for argument in arguments if argument in ("-m", "-c")), None)
    if kind is None:
        os.execv(PYTHON, [PYTHON, *arguments])
    # Options of the interpreter stand before, such as -u; what is forked has those of the process that forks.
    what, *others = arguments[arguments.index(kind) + 1 :]
    status = 0
    try:
        if kind == "-m":
            sys.modules.pop(what, None)  # runpy would warn of a module that is imported
            sys.argv = [what, *others]
            # What was imported before the fork is run again as the program, without runpy's warning.
            sys.modules.pop(what, None)
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


def _forget(*packages: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


if __name__ == "__main__":
    _serve(sys.argv[1])
