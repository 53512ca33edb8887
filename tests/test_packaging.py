"""What is imported is declared, and the wheel works without the repository."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("flexy_assets", "resources", "sensors")


def imported_modules() -> Iterator[tuple[Path, str]]:
    """Every module that the packages import, wherever in a file the import stands."""
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield file, str(node.module)


def normalized(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_everything_imported_is_declared() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # Figures are drawn as plotly's in notebooks alone.
    groups = configuration["dependency-groups"]
    dependencies = configuration["project"]["dependencies"] + groups["notebooks"] + groups["references"]
    declared = {normalized(re.split(r"[<>=!\[ ;]", each)[0]) for each in dependencies}
    # Of the group references, which the environment lacks.
    not_installed = {"aesthetics_predictor": ["simple-aesthetics-predictor"]}
    distributions = not_installed | importlib.metadata.packages_distributions()
    third_party = {
        (module.split(".")[0], str(file.relative_to(ROOT)))
        for file, module in imported_modules()
        if module.split(".")[0] not in {*sys.stdlib_module_names, *PACKAGES}
    }
    undeclared = [
        (module, file)
        for module, file in sorted(third_party)
        if not declared & {normalized(each) for each in distributions.get(module, [module])}
    ]
    assert undeclared == []


def test_no_private_module_of_dagster_is_imported() -> None:
    assert [each for each in imported_modules() if re.match(r"dagster\w*\._", each[1])] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources by the setuptools that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "dagster.yaml"):
        shutil.copy(ROOT / name, source)
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True, timeout=200)
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files - packed == set()
    assert any(name.endswith("licenses/LICENSE") for name in packed)


@pytest.mark.slow
def test_the_wheel_alone_runs_the_command_and_loads_the_definitions(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("no uv beside this Python: make installs it")
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel]
    subprocess.run(install, check=True, timeout=100)
    # The dependencies are those of this environment; a .pth file within it, as of an editable install, is not read.
    site = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("FLEXY_", "DAGSTER_", "PYTHON"))
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            [environment / "bin" / command[0], *command[1:]],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    program = "import resources, flexy_assets.definitions; print(resources.__file__)"
    assert run("python", "-c", program).strip() == str(site / "resources" / "__init__.py")
    assert "Commands:" in run("flexy", "--help")
    assert run("flexy", "--version").startswith("flexy ")
    states = {row["name"]: row["state"] for row in json.loads(run("flexy", "models", "--json"))["models"]}
    assert states["mini_sdxl"] == states["mini_clip"] == "embedded"
    # Dagster's configuration comes with the wheel, and its files lie below FLEXY_HOME.
    assert json.loads(run("flexy", "backfill", "--json"))["scores_computed"] == 0
    assert (tmp_path / ".flexy" / "dagster").is_dir()
