"""A nightly backfill of FlexyFace's table by Dagster's daemon: `python -m benchmarks.night`.

2,000 images in four runs, 1,865 with CLIP score and aesthetic V1, without the columns of V2 and HPS. Dagster's
daemon runs on deploy/postgres/dagster.yaml with a nightly schedule of every minute; the first tick must fill exactly
135 + 135 + 2,000 + 2,000 scores and change nothing that was there, the second must start no run, and the CSV must equal
psql's. Uses the Postgres of FLEXY_DATABASE_URL, on which it creates temporary databases. Prints a
table and writes benchmarks/results/night.json.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks import argument_parser, print_figures, require_postgres, run_python, write_results
from tests.support import flexyface
from tests.support.databases import empty
from tests.support.service import Service, environment, nightly_ticks, wait

STATUS_COLUMNS = {"metrics_status", "metrics_updated_at"}
"""What FlexyFace reads of how far the scores of an image are, and Flexy keeps true."""


def measure(service: Service) -> dict[str, Any]:
    before = service.table()
    began = time.monotonic()
    service.start()
    with dg.DagsterInstance.get() as instance:
        wait(lambda: [run for run in service.runs(instance) if run.is_finished], 400, service)
        seconds = time.monotonic() - began
        after = service.table()
        written = {
            name: sum(row[name] is not None and before[key].get(name) is None for key, row in after.items())
            for name in service.missing()
        }
        changed = sum(
            row[name] is not None and after[key][name] != row[name]
            for key, row in before.items()
            for name in row.keys() - STATUS_COLUMNS
        )
        wait(lambda: [run for run in service.runs(instance, "results") if run.is_finished], 200, service)
        scoring, first = service.runs(instance), len(instance.get_runs())
        number = len(nightly_ticks(instance))
        second = wait(lambda: nightly_ticks(instance)[number:], 100, service)[-1]
        more = len(instance.get_runs()) - first
    exported = service.home / "scores.csv"
    run_python("flexy_assets.cli.app", "export", "--out", exported, env=service.environment)
    url = service.database.url.render_as_string(hide_password=False)
    psql = flexyface.export_by_psql(url)
    return {
        "written": written,
        "existing values changed": changed,
        "computed more than once": service.attempts() != {1},
        "runs that scored": len(scoring),
        "runs in all, with the results": first,
        "seconds from the daemon's start to the last score": round(seconds, 1),
        "the second tick": second.skip_reason,
        "runs after the second tick": more,
        "the CSV is psql's, byte for byte": psql == exported.read_bytes(),
        "its lines": psql.count(b"\n"),
    }


def main() -> None:
    options = argument_parser(__doc__, "night").parse_args()
    require_postgres()
    with tempfile.TemporaryDirectory() as folder, empty(Path(folder)) as results, empty(Path(folder)) as bookkeeping:
        home = Path(folder)
        flexyface.bring(results, home / "pictures")
        urls = (database.url.render_as_string(hide_password=False) for database in (results, bookkeeping))
        os.environ |= environment(home, *urls) | {"FLEXY_NIGHTLY": "* * * * *"}
        service = Service(home, results, dict(os.environ))
        try:
            figures = measure(service)
        finally:
            service.stop()
            bookkeeping.engine.dispose()
    print_figures(figures)
    write_results(options.out, figures)


if __name__ == "__main__":
    main()
