"""A million rows of FlexyFace's tables, in two thousand batches: `python -m benchmarks.million`.

Measures, on the Postgres of FLEXY_DATABASE_URL (a temporary database is created on it), the work of a nightly
backfill: assigning batches to rows without one (once), the sensor's tick, the query for missing scores, and planning
the backfill, from the start of the tick to the run request with every batch and every partition added to Dagster; and
the export against psql's. A quarter of each score is missing, at random. Times are the worst of three; memory is what
the process grew by. Prints a table and writes benchmarks/results/million.json.
"""

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from benchmarks import argument_parser, print_figures, require_postgres, timed, write_results
from flexy_assets.scoring.work import Work
from flexy_assets.storage import status
from flexy_assets.storage.adoption import adopt_rows
from flexy_assets.storage.export import export_csv
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.scores import count_missing_scores
from flexy_assets.sweep import jobs
from resources.database import Database
from resources.images import ImageStore
from resources.models.slot import ModelSlot
from resources.settings import Settings
from sensors import new_images
from tests.support import flexyface
from tests.support.databases import empty

RUN = "(lpad((n % 10)::text, 8, '1') || '-0000-4000-8000-000000000000')::uuid"

RUNS = f"""
INSERT INTO bench_runs (id, prompt, prompt_length, status, created_at)
SELECT {RUN}, 'Parameter sweep', 15, 'done', TIMESTAMPTZ '2025-11-27' + n * INTERVAL '1 hour'
FROM generate_series(0, 9) AS n
"""

COLUMNS = "ALTER TABLE bench_run_results ADD COLUMN prompt TEXT, ADD aes_v2_score FLOAT, ADD hps_v2_score FLOAT"

ROWS = f"""
INSERT INTO bench_run_results (
    id, run_id, engine, steps, guidance, width, height, seed, elapsed_ms, tf32_enabled, image_path, prompt, created_at,
    clip_score, aesthetic_score, aes_v2_score, hps_v2_score)
SELECT gen_random_uuid(), {RUN}, 'mini_sdxl',
    4 + n % 57, 0.5 + n % 12, 512, 512, n, 1000 + n % 999, true, 'images/' || n || '.png',
    'a photograph of something, number ' || n, TIMESTAMPTZ '2025-11-28' + n * INTERVAL '1 second',
    CASE WHEN random() < 0.75 THEN random() END, CASE WHEN random() < 0.75 THEN 1 + 9 * random() END,
    CASE WHEN random() < 0.75 THEN 1 + 9 * random() END, CASE WHEN random() < 0.75 THEN random() END
FROM generate_series(0, :rows - 1) AS n
"""


def worst_seconds(what: Callable[[], Any], times: int = 3) -> float:
    """Return the seconds of the slowest of several calls."""
    return max(timed(what)[1] for _ in range(times))


def memory_growth(what: Callable[[], Any]) -> float:
    """Return the megabytes by which a call increases the process' peak memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    what()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure(database: Database, home: Path, rows: int) -> dict[str, float | bool]:
    settings = Settings.read({"FLEXY_HOME": str(home), "FLEXY_DATABASE_URL": "sqlite://"})
    images = ImageStore(str(home))
    with database.begin() as connection:
        for statement in (*flexyface.table_statements("postgresql"), COLUMNS):
            connection.exec_driver_sql(statement)
        connection.execute(sa.text(RUNS))
        connection.execute(sa.text(ROWS), {"rows": rows})
    migrated = worst_seconds(lambda: migrate(database), times=1)
    adopted = worst_seconds(lambda: adopt_rows(database, settings, seconds=3600), times=1)
    # What Postgres does by itself within a minute of such a change.
    with database.session() as connection:
        connection.exec_driver_sql("VACUUM ANALYZE bench_run_results")

    def missing() -> dict[str, dict[str, int]]:
        with database.begin(reading=True) as connection:
            return count_missing_scores(connection, settings)

    def plan(instance: dg.DagsterInstance) -> None:
        request = jobs.request_backfill(instance, database, images, settings)
        assert isinstance(request, dg.RunRequest), request
        batches = request.run_config["ops"]["backfill_hps_v2_score"]["config"]["batches"]
        assert len(batches) == rows // settings.batch_size

    def tick(instance: dg.DagsterInstance) -> None:
        context = dg.build_sensor_context(instance, resources={"work": Work(database, images, ModelSlot(), settings)})
        new_images(settings)(context)

    with dg.DagsterInstance.local_temp(str(home)) as instance:
        figures = {
            "our tables and columns beside theirs, s": migrated,
            "rows without a batch get one, s": adopted,
            "the plan of a backfill, every batch new to Dagster, s": worst_seconds(lambda: plan(instance), times=1),
            "the plan of a backfill, s": worst_seconds(lambda: plan(instance)),
            "the sensor's tick, s": worst_seconds(lambda: tick(instance)),
            "what is missing, s": worst_seconds(missing),
            "memory the plan takes, MB": memory_growth(lambda: plan(instance)),
        }
    with database.begin(reading=True) as connection:
        for metric, batches in missing().items():
            lacking = sa.text(f"SELECT count(*) FROM bench_run_results WHERE {metric} IS NULL")
            assert connection.scalar(lacking) == sum(batches.values()), metric
        reading = worst_seconds(lambda: status.read_status(connection, settings), times=1)
    exporting = worst_seconds(lambda: export_csv(database, home / "scores.csv"), times=1)
    psql, by_hand = timed(lambda: flexyface.export_by_psql(database.url.render_as_string(hide_password=False)))
    # Images of equal settings have no order.
    same = sorted(psql.splitlines()) == sorted((home / "scores.csv").read_bytes().splitlines())
    times = {"flexy status, s": reading, "export, s": exporting, "export by psql, s": by_hand}
    return figures | times | {"the exported rows are psql's": same}


def main() -> None:
    parser = argument_parser(__doc__, "million")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    require_postgres()
    with tempfile.TemporaryDirectory() as folder, empty(Path(folder)) as database:
        figures = measure(database, Path(folder), options.rows)
    print(f"{options.rows:,} rows, a quarter of each score missing")
    print_figures(figures)
    write_results(options.out, {"rows": options.rows, **figures})


if __name__ == "__main__":
    main()
