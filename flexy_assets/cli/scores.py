"""`flexy status`, `backfill`, `rescore`, `export` and `report`: what the tables hold, and the scores they lack."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from flexy_assets.cli.command import OutputPath, json_command, parse_numbers, print_tables
from flexy_assets.cli.session import Session
from flexy_assets.reporting.formatting import format_count
from resources.errors import BadInputError
from resources.metrics.sweep import METRICS


@click.command()
@click.option("--failed", is_flag=True, help="Also list each score that failed, with its error.")
@json_command
def status(failed: bool) -> dict[str, Any]:
    """Count images and scores, list the newest.

    Scores are counted as scored, missing and failed, by metric, by sweep and by steps.
    """
    from flexy_assets.storage import status
    from flexy_assets.sweep.status_tables import status_summary, status_tables

    session = Session()
    with session.migrate().begin(reading=True) as connection:
        counts = status.read_status(connection, session.settings)
        counts["image_roots"] = status.count_image_roots(connection, session.store)
        counts["lost"] = status.find_lost_images(connection, session.store)
        if failed:
            counts["failures"] = status.failed_scores(connection)
    if not counts["runs"]:
        reason = "no sweeps yet: flexy demo, or flexy sweep new"
        return counts | {"reason": reason, "text": reason}
    counts["agreement"] = session.agreement()
    tables = status_tables(counts) | ({"failures": _failure_table(counts["failures"])} if failed else {})
    return counts | {"text": f"{status_summary(counts)}\n\n{print_tables(tables)}"}


def _failure_table(failures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a person looks for; the ids are in --json."""
    return [
        {"image": each["image_path"] or each["image"], "metric": each["metric"]}
        | {"attempts": f"{each['attempts']}, given up" if each["given_up"] else str(each["attempts"])}
        | {"error": each["error"]}
        for each in failures
    ]


@click.command()
@click.option(
    "--beside", multiple=True, metavar="METRIC", help="Keep Flexy's scores beside this column; repeatable; none."
)
@json_command
def backfill(beside: tuple[str, ...]) -> dict[str, Any]:
    """Compute every missing score.

    The nightly schedule does the same. The tables and the report are made at the end. A column whose existing scores
    none of the scorers computes is left as it is, with status 2.

    With --beside METRIC, nothing is written to the table: Flexy's own scores of all images are kept in image_scores, as
    METRIC_flexy, and are exported as a column of their own.
    """
    import dagster as dg

    from flexy_assets.execution import dagster_instance
    from flexy_assets.sweep import jobs

    session = Session()
    with dagster_instance(session.settings) as instance:
        if beside:
            jobs.check_columns(beside)
            config = {"ops": {"score_beside": {"config": {"metrics": list(beside)}}}}
            return _run_scoring_job(session, instance, jobs.backfill_beside.name, config)
        request = jobs.request_backfill(instance, session.database, session.store, session.settings)
        if isinstance(request, dg.RunRequest):
            answer = _run_scoring_job(session, instance, jobs.backfill_scores.name, request.run_config)
        else:
            answer = {"scores_computed": 0, "reason": request.skip_message, "text": request.skip_message}
    answer["agreement"] = session.agreement()
    if refusals := session.refusals():
        if not answer.get("failed"):
            answer["failed_status"] = BadInputError.status
        if not answer["scores_computed"]:
            answer["text"] = "0 scores computed"
        answer["failed"] = "; ".join(filter(None, (answer.get("failed"), *refusals)))
    return answer


@click.command(
    help="Compute the scores of a metric again.\n\nOf the named sweeps or of all. A score stays until its new one is"
    f" measured. METRIC is one of {', '.join(METRICS)}."
)
@click.argument("metric")
@click.argument("sweep_ids", metavar="[SWEEP]...", nargs=-1)
@click.option("--failed", is_flag=True, help="Only scores that failed: try them again. Nothing is replaced.")
@click.option("--replace", type=int, help="Number of scores to replace; any other replaces none.")
@json_command
def rescore(metric: str, sweep_ids: tuple[str, ...], failed: bool, replace: int | None) -> dict[str, Any]:
    from flexy_assets.execution import dagster_instance
    from flexy_assets.storage.adoption import adopt_rows
    from flexy_assets.storage.scores import request_rescore
    from flexy_assets.sweep import jobs

    if metric not in METRICS:
        raise BadInputError(f"unknown metric {metric!r}: choose from {', '.join(METRICS)}")
    session = Session()
    sweeps = [session.find_sweep(sweep_id).id for sweep_id in sweep_ids]
    adopt_rows(session.database, session.settings)
    with session.database.begin(reading=True) as connection:
        request = request_rescore(connection, METRICS[metric], sweeps, failed, session.settings, only_count=True)
    counts = {"replaces": request.replaced, "retries": request.retried}
    if request.replaced != (replace or 0):
        replaced = format_count(request.replaced, "score")
        text = f"would replace {replaced} of {metric} and retry {request.retried} that failed"
        if replace is not None:
            raise BadInputError(f"{text}, not {replace}: use --replace {request.replaced}")
        reason = f"{text}: use --replace {request.replaced}"
        return counts | {"scores_computed": 0, "reason": reason, "text": reason}
    config = {"metric": metric, "runs": list(map(str, sweeps)), "failed": failed, "replaces": request.replaced}
    ops = {"ops": {"rescore": {"config": config}}}
    with dagster_instance(session.settings) as instance:
        return counts | _run_scoring_job(session, instance, jobs.rescore_scores.name, ops)


def _run_scoring_job(session: Session, instance: Any, job: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job that computes scores, then the results; return the number of scores by metric and what failed."""
    from flexy_assets.execution import run_job, step_failures

    failed = step_failures(run_job(instance, session.definitions, job, config))
    computed = session.scores_computed()
    failed = failed or session.update_results(instance)
    each = ", ".join(f"{count} {name}" for name, count in computed.items() if count)
    total = sum(computed.values())
    text = f"{format_count(total, 'score')} computed" + (f": {each}" if each else "")
    return {"scores_computed": total, "filled": computed, "text": text, "failed": "; ".join(failed)}


@click.command()
@click.argument("sweep_ids", metavar="[SWEEP]...", nargs=-1)
@click.option("--out", type=OutputPath(), required=True, help="The CSV file to write.")
@json_command
def export(sweep_ids: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Write the scored images as CSV.

    FlexyFace's columns, of the images that have all four scores, of the named sweeps or of all.
    """
    from flexy_assets.storage.export import export_csv

    session = Session()
    sweeps = [session.find_sweep(sweep_id).id for sweep_id in sweep_ids]
    rows = export_csv(session.migrate(), out, sweeps, allow_empty=False)
    return {"file": str(out), "rows": rows, "text": f"{format_count(rows, 'row')} in {out}"}


@click.command()
@click.argument("sweep_ids", metavar="[SWEEP]...", nargs=-1)
@click.option("--engine", "engines", multiple=True, help="Only images of this engine; repeatable; by default all.")
@click.option(
    "--weight", "weights", multiple=True, metavar="METRIC=N", help="Weight in the overall score; by default equal."
)
@click.option(
    "--least-gain",
    "gains",
    multiple=True,
    metavar="METRIC=N",
    help="Least gain one more step is worth; by default .001 CLIP score, .02 SD.",
)
@click.option("--out", type=OutputPath(), required=True, help="The HTML file to write.")
@json_command
def report(
    sweep_ids: tuple[str, ...], engines: tuple[str, ...], weights: tuple[str, ...], gains: tuple[str, ...], out: Path
) -> dict[str, Any]:
    """Write a report as one HTML file.

    On the named sweeps or on all, with the weights given here. The assets stay as they are.
    """
    from flexy_assets.storage.embeddings import read_stored_vectors
    from flexy_assets.storage.makers import suspect_metrics
    from flexy_assets.storage.scores import read_scores
    from flexy_assets.sweep import analysis
    from flexy_assets.sweep.report import build

    session, preferences = Session(), (parse_numbers("weight", weights), parse_numbers("least gain", gains))
    database = session.migrate()
    with database.begin(reading=True) as connection:
        sweeps = [session.find_sweep(sweep_id).id for sweep_id in sweep_ids]
        scores = read_scores(connection, session.settings, sweeps)
        suspect = suspect_metrics(connection, session.settings)
    scores = analysis.select_images(scores, engines)
    if scores.is_empty():
        raise BadInputError("nothing to report on: no image is of these sweeps and engines: see flexy status")
    tables = analysis.AnalysisTables.of(scores, *preferences, suspect)
    build.write_sweep_report(out, scores, tables, session.store.read, partial(read_stored_vectors, database))
    text = f"report on {format_count(len(scores), 'image')} in {out}"
    return {"file": str(out), "images": len(scores), "engines": analysis.describe_advice(tables.spots), "text": text}
