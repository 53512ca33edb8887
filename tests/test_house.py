"""The layout's rules: who imports whom, one name for one thing, and the field's words."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCTS = ("sweep", "edits", "inpaint", "gallery")
DAGSTER_MODULES = ("assets.py", "checks.py", "jobs.py", "app.py")
"""The modules of a product that bind it to Dagster, and the gallery's server, which starts jobs."""

# From the top down: a layer imports those after it.
LAYERS = ("cli", PRODUCTS, ("scoring", "reporting"), "storage")

ALLOWED_PRODUCT_IMPORTS = {
    "inpaint": ("edits.search", "edits.metrics"),
    # A trial is an image of a sweep.
    "gallery": ("sweep.try_image", "sweep.plan", "sweep.jobs"),
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Return the modules a source file imports anywhere in it, inside functions too."""
    modules = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the package that is meant"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def breaches(paths: Iterator[Path], *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in sorted(imported(path))
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    ]


def test_resources_import_neither_assets_nor_sensors() -> None:
    assert breaches(sources("resources"), "flexy_assets", "sensors") == []


def test_assets_do_not_import_sensors() -> None:
    """But for `definitions.py`, which binds all that there is."""
    modules = (path for path in sources("flexy_assets") if path.name != "definitions.py")
    assert breaches(modules, "sensors") == []


def test_each_layer_imports_only_those_below() -> None:
    found = []
    for index, layer in enumerate(LAYERS):
        above = [name for upper in LAYERS[:index] for name in ([upper] if isinstance(upper, str) else upper)]
        for package in [layer] if isinstance(layer, str) else layer:
            found += breaches(sources(f"flexy_assets/{package}"), *(f"flexy_assets.{name}" for name in above))
    assert found == []


def test_no_product_imports_another_but_for_the_named_exceptions() -> None:
    found = []
    for product in PRODUCTS:
        others = [f"flexy_assets.{other}" for other in PRODUCTS if other != product]
        allowed = tuple(f"flexy_assets.{name}" for name in ALLOWED_PRODUCT_IMPORTS.get(product, ()))
        found += [
            breach
            for breach in breaches(sources(f"flexy_assets/{product}"), *others)
            if not breach.split(" imports ")[1].startswith(allowed or ("-",))
        ]
    assert found == []


def test_modules_beside_the_assets_need_neither_dagster_nor_torch() -> None:
    plain = (
        path for product in PRODUCTS for path in sources(f"flexy_assets/{product}") if path.name not in DAGSTER_MODULES
    )
    assert breaches(plain, "dagster", "torch") == []


def test_only_storage_has_sql() -> None:
    allowed = ROOT / "resources" / "database.py", ROOT / "flexy_assets" / "storage"
    others = (
        path
        for path in sources("flexy_assets", "resources", "sensors")
        if not any(path.is_relative_to(place) for place in allowed)
    )
    assert breaches(others, "sqlalchemy", "alembic", "psycopg2", "sqlite3") == []


def test_no_two_packages_import_each_other() -> None:
    """Packages of `flexy_assets`; its plain modules bind packages together and are left out."""
    packages = {path.parent.name for path in (ROOT / "flexy_assets").glob("*/__init__.py")}
    uses = {
        package: {
            module.split(".")[1]
            for path in sources(f"flexy_assets/{package}")
            for module in imported(path)
            if module.startswith("flexy_assets.") and module.split(".")[1] in packages - {package}
        }
        for package in packages
    }

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        queue = [start]
        while queue:
            new = uses[queue.pop()] - seen
            seen |= new
            queue += new
        return seen

    assert [package for package in sorted(packages) if package in reachable(package)] == []


def test_a_public_name_is_defined_once() -> None:
    """Classes and functions; not of the modules that declare assets, jobs and commands, which share names."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sources("flexy_assets", "resources", "sensors"):
        if path.name in ("assets.py", "jobs.py", "command.py", "env.py") or "versions" in path.parts:
            continue
        # Commands share the names of what they start; a metric's scorer is named by its module.
        if any(path.is_relative_to(ROOT / place) for place in ("flexy_assets/cli", "resources/metrics")):
            continue
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


RETIRED_NAMES = {
    *("wishes", "holes", "strangers", "put_right", "put_tasks_right", "to_bring", "brought", "welcomes", "retouches"),
    *("said", "told", "ask_again", "hold_out", "tell_the_truth", "by_rule", "given_up", "impatient", "give_up"),
    *("materialized_count", "heal", "alone_for", "hush"),
}
"""Names of earlier versions that said nothing to an engineer of the field, as whole identifiers."""

RETIRED_PHRASES = re.compile(
    r"\b(whom|whoever|thereof|cannot be told|can be told|cannot tell|the night fills|flexy heal|is no metric"
    r"|is no range|is no model set|mend that|put right|what was made stays|it moves, not one way|at the most tried)\b",
    re.IGNORECASE,
)


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


@pytest.mark.parametrize("package", ["flexy_assets", "resources", "sensors"])
def test_no_identifier_is_a_retired_word(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sources(package)
        if "mini" not in path.parts
        for line, name in identifiers(path)
        if name.strip("_").lower() in RETIRED_NAMES
    ]
    assert found == []


@pytest.mark.parametrize("place", ["README.md", "docs", "deploy", "notebooks", "flexy_assets", "resources", "sensors"])
def test_no_text_has_a_retired_phrase(place: str) -> None:
    suffixes = (".py", ".j2", ".js", ".md", ".ipynb")
    files = [path for path in [ROOT / place, *(ROOT / place).rglob("*")] if path.suffix in suffixes]
    found = [
        f"{path.relative_to(ROOT)}:{number} {match[0]}"
        for path in sorted(files)
        if "mini" not in path.parts and "vendor" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in RETIRED_PHRASES.finditer(line)
    ]
    assert found == []
