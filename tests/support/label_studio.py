"""A real Label Studio on this machine, for the tests of what speaks with it.

`make label-studio` installs it apart and, by running this file, prepares a database with one user: its first start
would take a minute for the migrations alone. A test starts from a copy.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import requests

INSTALLED = Path(__file__).parents[2] / ".venv" / "label-studio"
PREPARED = INSTALLED / "prepared"
TOKEN = "6d61646520666f72207468652074657374732e2e"
"""The user's legacy token, of forty hexadecimal digits as Label Studio makes them."""


def missing() -> str:
    """Why there is no Label Studio here, and what to do; "" where there is one."""
    there = (INSTALLED / ".installed").exists() and PREPARED.is_dir()
    return "" if there else f"no Label Studio in {INSTALLED}: run make label-studio"


def _command(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A command of Label Studio with its data in `folder`, and an environment in which it keeps to itself."""
    program = INSTALLED / "bin" / "label-studio"
    environment = {
        "HOME": str(folder),
        "PATH": os.environ.get("PATH", ""),
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "COLLECT_ANALYTICS": "False",
        "LATEST_VERSION_CHECK": "False",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "OMP_NUM_THREADS": "1",
    }
    return [str(program), *arguments, "--data-dir", str(folder)], environment


def prepare() -> None:
    """Make the database that servers start from: all tables, one user with `TOKEN`, legacy tokens allowed."""
    shutil.rmtree(PREPARED, ignore_errors=True)
    PREPARED.mkdir()
    user = ["--username", "reviewer@example.org", "--password", "reviewer", "--user-token", TOKEN]
    command, environment = _command(PREPARED, "init", "--quiet", *user, "--enable-legacy-api-token")
    done = subprocess.run(command, env=environment, cwd=PREPARED, capture_output=True, text=True, timeout=900)
    if done.returncode or "successfully initialized" not in done.stdout:
        shutil.rmtree(PREPARED, ignore_errors=True)
        raise SystemExit(f"Label Studio could not be prepared:\n{done.stdout}{done.stderr}")


@dataclass
class Server:
    """A server in a folder of its own, on loopback alone."""

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def create(self) -> None:
        shutil.copytree(PREPARED, self.data)

    def start(self, wait: bool = True) -> None:
        """Returns once it answers, or, without `wait`, at once."""
        where = ["--no-browser", "--internal-host", "127.0.0.1", "--port", str(self.port)]
        command, environment = _command(self.data, "start", *where)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=self.data, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 180
        while wait and not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Label Studio did not start:\n{(self.folder / 'log').read_text()[-4000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """An end without notice; what it had answered is on disk."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


if __name__ == "__main__":
    prepare()
