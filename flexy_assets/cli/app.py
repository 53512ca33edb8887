"""`flexy`: a thin hand on the same assets the Dagster UI shows."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import click

from resources.errors import BadInputError, FlexyError
from resources.files import describe_os_error
from resources.settings import Settings

DEMO = {"images": 120, "steps": "4:40:4", "guidance": "0.5:12", "sampling": "even", "batch_size": 40}


def _command(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Adds --json, prints what the command returns, and turns an error into one line and its exit status.

    The command returns {"text": what a person reads, "failed": what went wrong, if anything did, …}; the rest
    is the JSON document.
    """

    @click.option("--json", "as_json", is_flag=True, help="One JSON document and nothing else on standard output.")
    @wraps(function)
    def run(as_json: bool, **options: Any) -> None:
        try:
            answer = function(**options)
        except FlexyError as error:
            _fail(str(error), error.status)
        except OSError as error:
            _fail(f"cannot use {error.filename or 'a file'}: {describe_os_error(error)}", FlexyError.status)
        except KeyboardInterrupt:
            _fail("stopped: what was made stays, the same command goes on from there", 130)
        text, failed = answer.pop("text"), answer.pop("failed", None)
        click.echo(json.dumps(answer) if as_json else text)
        if failed:
            _fail(failed, FlexyError.status)

    return run


def _fail(message: str, status: int) -> NoReturn:
    # An error of a database or a library may run over several lines; its cause is in the first words.
    click.echo(f"flexy: {' '.join(message.split())}", err=True)
    sys.exit(status)


class _OneLineGroup(click.Group):
    """Says what is wrong with a command line in one line too; click itself takes four."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        try:
            sys.exit(super().main(*arguments, **options | {"standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "flexy"
            _fail(f"{error.format_message().rstrip('.')}: see {command} --help", BadInputError.status)


@click.group(cls=_OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make images at many settings, score them, and learn which settings are best."""


@main.command()
@_command
def demo() -> dict[str, Any]:
    """A sweep of the mini model from plan to report; run again, it does only what is missing."""
    return _announce(_sweep(_plan(DEMO)))


@main.group()
def sweep() -> None:
    """Plan and run sweeps."""


@sweep.command("new")
@click.option("--engine", required=True, help="Which model makes the images.")
@click.option("--images", type=int, required=True, help="How many images the run is to have.")
@click.option("--steps", default="4:60", show_default=True, help="LOW:HIGH or LOW:HIGH:STRIDE.")
@click.option("--guidance", default="", show_default="0.5:12", help="LOW:HIGH or LOW:HIGH:STRIDE.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A text file, one prompt a line.")
@click.option("--negative-prompt", help="What the images should not show.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed plans the same images.")
@click.option("--sampling", default="uniform", show_default=True, help="uniform or even.")
@click.option("--size", type=int, default=0, help="Pixels along each side; the engine's own by default.")
@click.option("--batch-size", type=int, default=100, show_default=True, help="Images a batch (partition).")
@_command
def sweep_new(prompts: Path | None, size: int, **options: Any) -> dict[str, Any]:
    """Plan a sweep, or top one up: the same settings name the same run."""
    plan = _plan(options | {"prompts_file": str(prompts) if prompts else "", "width": size, "height": size})
    return plan | {
        "text": f"run {plan['run']}: {plan['planned']} of {plan['target']} images still to be made,"
        f" in {len(plan['batches'])} batches\nmake and score them: flexy sweep run {plan['run'][:8]}"
    }


@sweep.command("run")
@click.argument("run")
@_command
def sweep_run(run: str) -> dict[str, Any]:
    """Make and score what RUN (its id or the beginning of it) lacks, then the tables and the report."""
    return _announce(_sweep(_find(run)))


@main.command()
@click.option("--failed", is_flag=True, help="Also each score that failed, with its reason.")
@_command
def status(failed: bool) -> dict[str, Any]:
    """Totals; per metric, run and steps what is scored, missing and failed; and the newest images."""
    from flexy_assets.reporting import text_tables
    from flexy_assets.storage import status
    from flexy_assets.storage.migrate import migrate

    database = _database()
    migrate(database)
    with database.begin(reading=True) as connection:
        found = status.read_status(connection, Settings.read())
        if failed:
            found["failures"] = status.failed_scores(connection)
    tables = text_tables.status_tables(found) | ({"failures": found["failures"]} if failed else {})
    shown = [f"{name}\n{text_tables.format_text_table(table)}" for name, table in tables.items() if table]
    if not found["runs"]:
        return found | {"text": "no runs yet: flexy demo, or flexy sweep new"}
    return found | {"text": "\n\n".join([text_tables.status_summary(found), *shown])}


@main.command()
@_command
def heal() -> dict[str, Any]:
    """Fill every score that is missing, as the nightly schedule does; then the tables and the report."""
    import dagster as dg

    from flexy_assets.execution import dagster_instance
    from flexy_assets.sweep import jobs
    from resources.images import ImageStore

    settings = Settings.read()
    with dagster_instance(settings) as instance:
        request = jobs.request_backfill(instance, _database(), ImageStore(settings.images), settings)
        if isinstance(request, dg.SkipReason):
            return {"scores_computed": 0, "text": request.skip_message}
        return _filled(instance, jobs.backfill_scores.name, request.run_config)


@main.command()
@click.argument("metric")
@click.argument("runs", nargs=-1)
@click.option("--failed", is_flag=True, help="Only scores that failed: try them again. Nothing is replaced.")
@click.option("--replace", type=int, help="How many scores are to be replaced; nothing is done without that number.")
@_command
def rescore(metric: str, runs: tuple[str, ...], failed: bool, replace: int | None) -> dict[str, Any]:
    """Compute METRIC again, of RUNS or of all: a score stays until its new one is measured."""
    from flexy_assets.execution import dagster_instance
    from flexy_assets.storage import queries
    from flexy_assets.sweep import jobs

    if metric not in queries.METRICS:
        raise BadInputError(f"{metric!r} is no metric: use one of {', '.join(queries.METRICS)}")
    settings, wanted = Settings.read(), [_run(run).id for run in runs]
    database = _database()
    jobs.adopt_rows(database, settings)
    with database.begin(reading=True) as connection:
        known = queries.METRICS[metric]
        asked = queries.request_rescore(connection, known, wanted, failed, settings, only_count=True)
    counts = {"replaces": asked.replaced, "retries": asked.retried}
    if asked.replaced != (replace or 0):
        text = f"would replace {asked.replaced} scores of {metric} and try {asked.retried} failed ones again"
        if replace is not None:
            raise BadInputError(f"{text}, not {replace}: say --replace {asked.replaced}")
        return counts | {"scores_computed": 0, "text": f"{text}: say --replace {asked.replaced}"}
    config = {"metric": metric, "runs": [str(run) for run in wanted], "failed": failed, "replaces": asked.replaced}
    with dagster_instance(settings) as instance:
        return counts | _filled(instance, jobs.rescore_scores.name, {"ops": {"rescore": {"config": config}}})


@main.command()
@click.argument("runs", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The CSV file to write.")
@_command
def export(runs: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Write FlexyFace's CSV of the images that have all four scores, of RUNS or of all runs."""
    from flexy_assets.storage.export import export_csv
    from flexy_assets.storage.migrate import migrate

    database = _database()
    migrate(database)
    rows = export_csv(database, out, [_run(run).id for run in runs])
    return {"file": str(out), "rows": rows, "text": f"{rows} rows in {out}"}


@main.command()
@click.argument("runs", nargs=-1)
@click.option("--engine", "engines", multiple=True, help="Of this engine alone; may be said again.")
@click.option(
    "--weight", "weights", multiple=True, metavar="METRIC=N", help="What a metric weighs in the overall score."
)
@click.option("--least-gain", "gains", multiple=True, metavar="METRIC=N", help="What one more step must bring.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The HTML file to write.")
@_command
def report(
    runs: tuple[str, ...], engines: tuple[str, ...], weights: tuple[str, ...], gains: tuple[str, ...], out: Path
) -> dict[str, Any]:
    """Write the report on RUNS or on all runs, by weights of your own; the assets stay as they are."""
    from flexy_assets.storage import queries
    from flexy_assets.storage.migrate import migrate
    from flexy_assets.sweep import analysis
    from flexy_assets.sweep.report import build as page
    from resources.images import ImageStore

    wishes, settings, database = (_numbers(weights), _numbers(gains)), Settings.read(), _database()
    migrate(database)
    with database.begin(reading=True) as connection:
        scores = queries.scores_table(connection, settings, [_run(run).id for run in runs])
    scores = analysis.select_images(scores, engines)
    page.write_sweep_report(out, scores, analysis.AnalysisTables.of(scores, *wishes), ImageStore(settings.images).read)
    return {"file": str(out), "images": len(scores), "text": f"report on {len(scores):,} images in {out}"}


def _numbers(said: tuple[str, ...]) -> dict[str, float]:
    """`METRIC=N` by metric. Raises `BadInputError` for what is none."""
    found = {}
    for each in said:
        name, _, number = each.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise BadInputError(f"{each!r} is no METRIC=N: say clip_score=2, for instance") from None
    return found


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=3400, show_default=True, help="0 for any that is free.")
@_command
def gallery(port: int) -> dict[str, Any]:
    """Serve a page on this machine to try single images, look at those there are and compare two; Ctrl-C ends it."""
    from flexy_assets.gallery.app import serve_gallery

    def on_ready(address: str) -> None:
        click.echo(f"the gallery is at {address}: Ctrl-C ends it", err=True)

    serve_gallery(port, _definitions(), _database(), Settings.read(), on_ready)
    return {"port": port, "text": "the gallery is closed: what was made stays"}


@main.command()
@click.argument("what", type=click.Choice(["edits", "faces"]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tasks", type=click.IntRange(1, 10_000), default=24, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same tasks.")
@_command
def example(what: str, folder: Path, tasks: int, seed: int) -> dict[str, Any]:
    """Draw tasks of the mini models' world into FOLDER: EDITS for flexy compare, FACES for flexy labels."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInputError(f"{folder} is there already: name an empty or a new folder")
    if what == "edits":
        from resources.mini.edits import write_edit_example

        file = write_edit_example(folder, tasks, seed)
        then = f"flexy compare --dataset {file} --out {folder / 'results'}"
    else:
        from resources.mini import faces

        file = faces.write_face_example(folder, tasks, seed)
        then = f"flexy labels import {file} && flexy labels run"
    return {"file": str(file), "tasks": tasks, "text": f"{tasks} tasks in {file}\nuse them: {then}"}


@main.command()
@click.option("--image", type=click.Path(path_type=Path), help="The picture to edit.")
@click.option("--prompt", default="", help="What the edit should show.")
@click.option("--dataset", type=click.Path(path_type=Path), help='JSON lines: {"id", "image_path", "prompt"}.')
@click.option("--out", type=click.Path(path_type=Path), help="A folder for winners, candidates and the report.")
@click.option("--editor", default="", help="Which model edits; the first of flexy models by default.")
@click.option("--steps", type=int, default=0, help="Denoising steps of a full denoise; the editor's own by default.")
@click.option("--guidance", type=float, default=0.0, help="In the editor's scale; its own by default.")
@click.option("--budget", "budgets", type=int, multiple=True, default=[8], show_default=True, help="Full denoises.")
@click.option("--ttflux", default="random", show_default=True, help="random or zero_order.")
@click.option("--choose", default="rank", show_default=True, help="What EACPS chooses by: rank or potential.")
@click.option("--reproduce", is_flag=True, help="EACPS as published: seeds by arithmetic, whole denoises, potential.")
@click.option("--alpha", type=float, default=10, show_default=True, help="Weight of CONS in the potential.")
@click.option("--beta", type=float, default=3, show_default=True, help="Weight of LPIPS in the potential.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same candidates.")
@_command
def compare(image: Path | None, dataset: Path | None, out: Path | None, **options: Any) -> dict[str, Any]:
    """Edit by EACPS and by TTFLUX at equal cost, and say which gave the better edits; --budget may be repeated."""
    from flexy_assets.edits.command import run_comparison

    if (image is None) == (dataset is None):
        raise BadInputError("give either --image with --prompt, or --dataset")
    options |= {"image": str(image or ""), "tasks": str(dataset or ""), "budgets": list(options["budgets"])}
    return run_comparison(options, out, _definitions, _database())


@main.command()
@click.argument("candidates", type=click.Path(path_type=Path))
@click.option("--alpha", default="10", show_default=True, help="Weight of CONS.")
@click.option("--beta", default="3", show_default=True, help="Weight of LPIPS.")
@click.option("--alternative", "alternatives", multiple=True, help="Other weights, as in alpha=5,beta=1; repeatable.")
@_command
def select(candidates: Path, **weights: Any) -> dict[str, Any]:
    """Choose again among the recorded CANDIDATES (JSON lines): the highest PF + alpha·CONS − beta·LPIPS of each id."""
    from flexy_assets.edits.select import select_recorded

    return select_recorded(candidates, **weights)


@main.group()
def labels() -> None:
    """Put characters' faces right in the tasks of a Label Studio project, and send the results back."""


@labels.command("import")
@click.argument("export", required=False, type=click.Path(path_type=Path))
@click.option("--project", type=int, help="A project on your Label Studio (LABEL_STUDIO_URL), by its number.")
@click.option("--task-id", "task_ids", multiple=True, help="Only the task of this data.id; repeatable.")
@click.option("--batch-size", type=int, default=50, show_default=True, help="Tasks a batch (partition).")
@_command
def labels_import(export: Path | None, project: int | None, **options: Any) -> dict[str, Any]:
    """Bring tasks from EXPORT (Label Studio's JSON) or from a project; run again, it fetches what is missing."""
    from flexy_assets.inpaint.command import import_label_tasks

    options |= {"export": str(export or ""), "project": project, "task_ids": list(options["task_ids"])}
    return import_label_tasks(options, _definitions, _database())


@labels.command("run")
@click.option("--task-id", "task_ids", multiple=True, help="Only the task of this data.id; repeatable.")
@click.option("--editor", default="", help="What refines faces after the swap (see flexy models).")
@click.option("--budget", type=int, default=4, show_default=True, help="Full denoises a task; 0 only swaps.")
@click.option("--widen", type=float, default=0.0, help="By what share of its longer side to work beyond the mask.")
@click.option("--steps", type=int, default=0, help="Of a full denoise; the editor's own by default.")
@click.option("--guidance", type=float, default=0.0, help="The editor's own by default.")
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Weight of consistency.")
@click.option("--beta", type=float, default=1.0, show_default=True, help="Weight of quality.")
@click.option("--gamma", type=float, default=2.0, show_default=True, help="Weight of identity.")
@click.option("--seed", type=int, default=0, show_default=True)
@_command
def labels_run(task_ids: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Swap, refine, judge and choose the faces of the imported tasks, batch by batch; it goes on where it stood."""
    from flexy_assets.inpaint.command import run_inpainting

    return run_inpainting(task_ids, options, _definitions, _database())


@labels.command("push")
@click.option("--model-version", default="", help="As which predictions are sent; flexy/EDITOR by default.")
@click.option("--file-only", is_flag=True, help="Send nothing: only write the file that Label Studio can import.")
@_command
def labels_push(model_version: str, file_only: bool) -> dict[str, Any]:
    """Send what was chosen back to Label Studio as predictions, each once."""
    from flexy_assets.inpaint.command import push_to_label_studio

    return push_to_label_studio({"model_version": model_version, "send": not file_only}, _definitions, _database())


@labels.command("review")
@_command
def labels_review() -> dict[str, Any]:
    """Read people's verdicts back, and say how well the potential and each score agree with them."""
    from flexy_assets.inpaint.command import review_agreement

    return review_agreement(_definitions, _database())


@main.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document and nothing else on standard output.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """The models there are: which are here, what they take, under what licence."""
    if context.invoked_subcommand is None:
        context.invoke(models_list, as_json=as_json)


_HOW_TO_GET_ONE = (
    "get a missing one: flexy models fetch NAME; one to bring: name the folder of its files in FLEXY_MODEL_REGISTRY"
)


@models.command("list")
@_command
def models_list() -> dict[str, Any]:
    """List the models of both sets, as flexy models alone does."""
    from resources.models.catalogue import format_model_table, list_models

    rows = list_models(Settings.read())
    return {"models": rows, "text": f"{format_model_table(rows)}\n{_HOW_TO_GET_ONE}"}


@models.command("fetch")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_command
def models_fetch(names: tuple[str, ...]) -> dict[str, Any]:
    """Bring models of the set full from the Hugging Face hub, with what they need; it goes on where it was."""
    from resources.models.fetch import fetch_models

    brought = list(fetch_models(names, Settings.read()))
    came = {model.name: model.received for model in brought if model.received is not None}
    return {
        "fetched": list(came),
        "already": [model.name for model in brought if model.name not in came],
        "bytes": sum(came.values()),
        "text": "\n".join(map(str, brought)),
    }


def _database() -> Any:
    from resources.database import Database

    return Database(Settings.read().database_url)


def _plan(options: dict[str, Any]) -> dict[str, Any]:
    """Materialise `sweep_plan` with these options."""
    from flexy_assets.execution import dagster_instance, run_assets
    from flexy_assets.sweep import assets

    settings = Settings.read()
    # Checked before a run is begun: what cannot be planned should leave no trace.
    assets.SweepConfig(**options).sweep(settings)
    with _database().begin(reading=True):
        pass
    with dagster_instance(settings) as instance:
        result = run_assets(instance, _definitions(), [assets.sweep_plan], config={"sweep_plan": options})
    metadata = result.asset_materializations_for_node("sweep_plan")[0].metadata
    return _find(str(metadata["run"].value))


def _run(run: str) -> Any:
    """The run whose id begins with `run`."""
    from flexy_assets.storage import queries
    from flexy_assets.storage.migrate import migrate

    database = _database()
    migrate(database)
    with database.begin(reading=True) as connection:
        known = queries.sweeps(connection)
    wanted = run.lower().replace("-", "")
    found = [k for k in known if wanted and k.id.hex.startswith(wanted)]
    if len(found) != 1:
        cause = "is the beginning of several runs" if found else "does not exist"
        raise BadInputError(f"run {run!r} {cause}: flexy status lists the runs")
    return found[0]


def _find(name: str) -> dict[str, Any]:
    """The planned run whose id begins with `name`: its id, target, batches and how many images it still lacks."""
    from flexy_assets.sweep import generation
    from flexy_assets.sweep.plan import Sweep

    run = _run(name)
    if not run.plan:
        raise BadInputError(f"run {name!r} was not planned by flexy sweep new: its images cannot be made again here")
    plan = Sweep.from_json(run.plan).rows(0, run.target or 0)
    return {
        "run": str(run.id),
        "engine": run.engine,
        "target": run.target,
        "planned": len(generation.images_to_generate(_database(), plan)),
        "batches": plan["batch"].unique(maintain_order=True).to_list(),
    }


def _sweep(plan: dict[str, Any]) -> dict[str, Any]:
    """Materialise everything below `sweep_plan` for a run's batches, then the tables and the report."""
    from flexy_assets.execution import contiguous_ranges, dagster_instance, run_assets, run_job, step_failures
    from flexy_assets.storage import status
    from flexy_assets.sweep import assets

    settings = Settings.read()
    batched = [assets.generated_images, assets.clip_embeddings, *assets.SCORE_ASSETS]
    database = _database()
    images, scores, failed = 0, 0, []
    with dagster_instance(settings) as instance:
        # A database may know batches that this Dagster instance has never seen.
        instance.add_dynamic_partitions("seed_batches", plan["batches"])
        for stretch in contiguous_ranges(plan["batches"], instance.get_dynamic_partitions("seed_batches")):
            result = run_assets(instance, _definitions(), batched, batches=stretch)
            images += _added(result, "generated_images")
            failed += _last_failures(result)
            scores += sum(_added(result, asset.op.name) for asset in assets.SCORE_ASSETS)
        if broken := step_failures(run_job(instance, _definitions(), "results")):
            raise FlexyError("; ".join(broken))
    with database.begin(reading=True) as connection:
        entry = next(e for e in status.status_by_sweep(connection) if e["run"] == plan["run"])
    return entry | {
        "images_made": images,
        "scores_computed": scores,
        "csv": str(settings.tables / "sweep.csv"),
        "report": str(settings.tables / "sweep_report.html"),
        "image_failures": failed,
    }


def _filled(instance: Any, job: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job that fills scores, then the results; says how many it filled and what went wrong."""
    from flexy_assets.execution import run_job, step_failures
    from flexy_assets.sweep import assets

    result = run_job(instance, _definitions(), job, config)
    keys = {assets.asset_key_of(metric).to_user_string(): name for name, metric in assets.METRICS.items()}
    filled: Counter[str] = Counter()
    for event in result.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        name = keys.get(materialization.asset_key.to_user_string())
        if name:
            filled[name] += assets.materialized_count(materialization.metadata)
    failed = step_failures(result) or step_failures(run_job(instance, _definitions(), "results"))
    each = ", ".join(f"{count} {name}" for name, count in filled.items() if count)
    text = f"{filled.total()} scores computed" + (f": {each}" if each else "")
    return {"scores_computed": filled.total(), "filled": dict(filled), "text": text, "failed": "; ".join(failed)}


def _last_failures(result: Any) -> list[str]:
    """Why images of the run's batches could not be made: each batch's last reason."""
    events = result.asset_materializations_for_node("generated_images")
    reasons = {event.partition: event.metadata.get("last failure") for event in events}
    return [str(reason.value) for reason in reasons.values() if reason]


def _added(result: Any, asset: str) -> int:
    """What a run's batches say they added; each batch's last event counts."""
    from flexy_assets.sweep.assets import materialized_count

    batches = {event.partition: event.metadata for event in result.asset_materializations_for_node(asset)}
    return sum(map(materialized_count, batches.values()))


def _announce(entry: dict[str, Any]) -> dict[str, Any]:
    from flexy_assets.storage import queries, status

    lines = [
        f"run {entry['run'][:8]}: {entry['images_made']} images made, {entry['scores_computed']} scores computed now;"
        f" {entry['images']} of {entry['target']} images are there",
        f"CSV     {entry['csv']}",
        f"report  {entry['report']}",
        "see the lineage and every batch: make ui",
    ]
    if entry["image_failures"]:
        unmade = entry["target"] - entry["images"]
        reason = entry["image_failures"][-1]
        failed = f"{unmade} image{'s' * (unmade > 1)} could not be made: {reason}: run again"
        return entry | {"text": "\n".join(lines), "failed": failed}
    lacking = {m: entry[m]["missing"] + entry[m]["failed"] for m in queries.METRICS}
    if not any(lacking.values()):
        return entry | {"text": "\n".join(lines)}
    with _database().begin(reading=True) as connection:
        reason = status.last_failure(connection, UUID(entry["run"])) or "they were not offered to a scorer"
    missing = ", ".join(f"{count} {metric}" for metric, count in lacking.items() if count)
    failed = f"scores are missing ({missing}): {reason}: mend that and run again; flexy status counts them"
    return entry | {"text": "\n".join(lines), "failed": failed}


def _definitions() -> Any:
    from flexy_assets.definitions import build_definitions

    return build_definitions(Settings.read())


if __name__ == "__main__":
    main()
