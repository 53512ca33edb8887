"""A project with one more file: what a user's own metric does, without a change to this one."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.support import forked


def project_with_metric(folder: Path, product: str, name: str, source: str) -> Path:
    """Return a copy of the project of links with `source` as `resources/metrics/PRODUCT/NAME.py`."""
    package = Path("resources", "metrics", product)
    (folder / package).mkdir(parents=True)
    for part in (package, *package.parents):
        for entry in (ROOT / part).iterdir():
            if not (folder / part / entry.name).exists() and entry.name[0] != "." and entry.name != "__pycache__":
                (folder / part / entry.name).symlink_to(entry)
    (folder / package / f"{name}.py").write_text(source)
    return folder


def run_python(project: Path, *arguments: str) -> str:
    """Return what Python prints in the project; raises AssertionError with its errors where it fails."""
    command = [sys.executable, *arguments]
    process = forked.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout
