"""Benchmarks: each runs by name (`python -m benchmarks.NAME`), prints a table and writes JSON."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from resources.errors import BadInputError
from resources.files import check_output, write_atomically

T = TypeVar("T")

ROOT = Path(__file__).parent.parent

Claim = tuple[str, str, str, bool]
"""A claim, its figure, its threshold, and whether it is met."""


def argument_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the option --out, the JSON file, which is results/NAME.json by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=_output, default=ROOT / "benchmarks/results" / f"{name}.json", help="JSON file")
    return parser


def _output(path: str) -> Path:
    try:
        return check_output(Path(path))
    except BadInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def write_results(out: Path, results: Any) -> None:
    """Write the results as JSON, whole or not at all."""
    write_atomically(out, f"{json.dumps(results, indent=2, default=str)}\n".encode())


def at_least(claim: str, figure: float, threshold: float) -> Claim:
    """Return the claim that a figure is at least `threshold`."""
    return claim, f"{figure:.3f}", f"≥ {threshold}", figure >= threshold


def print_claims(claims: Sequence[Claim]) -> int:
    """Print the claims; return the exit status, 1 where one is not met."""
    widths = [max(len(claim[column]) for claim in claims) for column in (0, 1)]
    for claim, figure, threshold, met in claims:
        print(f"{'ok  ' if met else 'MISS'}  {claim:{widths[0]}}  {figure:{widths[1]}}  {threshold}")
    return int(not all(met for *_, met in claims))


def print_table(rows: Iterable[Mapping[str, Any]], *columns: str) -> None:
    """Print these columns of the rows as a Markdown table, numbers to three significant places."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
        return "–" if value is None else str(value)

    lines = [[cell(row[name]) for name in columns] for row in rows]
    heads = [name.replace("_", " ") for name in columns]
    print("", *(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines)), "", sep="\n", flush=True)


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print a line for each figure."""
    for name, figure in figures.items():
        print(f"{name:56} {figure:8.2f}" if isinstance(figure, float) else f"{name:56} {figure}", flush=True)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return a call's result and its seconds."""
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def run_python(module: str, *arguments: object, env: Mapping[str, str] | None = None, stderr: int | None = None) -> str:
    """Return what a Python module prints, run in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, stderr=stderr, text=True)
    return done.stdout


def environment_without(*prefixes: str) -> dict[str, str]:
    """Return this process' environment without the variables whose names begin so."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def require_postgres() -> None:
    """Raise `SystemExit` unless FLEXY_DATABASE_URL names a Postgres."""
    if not os.environ.get("FLEXY_DATABASE_URL", "").startswith("postgresql"):
        sys.exit("FLEXY_DATABASE_URL is missing: set it to a Postgres where a database may be created: postgresql://…")
