"""`flexy demo` and `flexy sweep`: plan a sweep, make and score its images."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from flexy_assets.cli.command import (
    NamesOption,
    echo_alias,
    engine_names,
    json_command,
    parse_numbers,
    scheduler_names,
)
from flexy_assets.cli.session import Session
from flexy_assets.reporting.formatting import format_count
from resources.errors import BadInputError, FlexyError
from resources.metrics.sweep import METRICS

if TYPE_CHECKING:
    from flexy_assets.sweep.generation import GenerationOutcome

SAMPLINGS = ("uniform", "even", "paired")
DEMO = {"images": 120, "steps": "4:40:4", "guidance": "0.5:12", "sampling": "even", "batch_size": 40}


@click.command()
@json_command
def demo() -> dict[str, Any]:
    """Run a small sweep from plan to report.

    It uses the embedded models. Run it again to complete what is missing.
    """
    session = Session()
    return _summarize(session, _run_sweep(session, _plan_sweep(session, DEMO)))


@click.group()
def sweep() -> None:
    """Plan and run sweeps."""


@sweep.command("new")
@click.option("--engine", cls=NamesOption, names=engine_names, required=True, help="The model that makes the images:")
@click.option("--images", type=int, help="Number of images it is to have; or give --hours.")
@click.option("--hours", type=float, help="Hours to make images in, instead of --images.")
@click.option("--steps", default="", show_default="the engine's, or 4:60", help="LOW:HIGH, LOW:HIGH:STRIDE or 4,8,16.")
@click.option("--guidance", default="", show_default="the engine's, or 0.5:12", help="The same, or values: 1.5,3,7.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="File of prompts: text, JSON, CSV, TSV; by default the engine's own.",
)
@click.option(
    "--negative-prompt",
    "negative_prompts",
    multiple=True,
    help="What not to show; several are compared; by default nothing.",
)
@click.option(
    "--negative-prompts", "negative_file", type=click.Path(path_type=Path), help="A file of them; by default none."
)
@click.option(
    *("--scheduler", "schedulers"),
    cls=NamesOption,
    names=scheduler_names,
    default="",
    help="By default the engine's; or of:",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed plans the same images.")
@click.option(
    *("--sampling",),
    type=click.Choice(SAMPLINGS),
    default="uniform",
    show_default=True,
    help="How settings are spread.",
)
@click.option("--size", "sizes", default="", help="Pixels, as 512 or 512,768x1024; by default the engine's own.")
@click.option("--batch-size", type=int, default=100, show_default=True, help="Images in a partition.")
@json_command
def sweep_new(
    images: int | None,
    hours: float | None,
    prompts: Path | None,
    negative_prompts: tuple[str, ...],
    negative_file: Path | None,
    **options: Any,
) -> dict[str, Any]:
    """Plan a sweep, or extend one.

    The same settings name the same sweep; a larger number of images extends it.
    """
    if (images is None) == (hours is None):
        raise BadInputError("cannot plan a sweep: give either --images or --hours")
    echo_alias(options["engine"])
    options |= {"images": images} if hours is None else {"hours": hours}
    options["negative_prompts"] = [*negative_prompts, *(each.text for each in _read_negative_prompts(negative_file))]
    plan = _plan_sweep(Session(), options | {"prompts_file": str(prompts) if prompts else ""})
    return plan | {"text": f"sweep {plan['run']}: {_describe_next(plan)}"}


@sweep.command("extend")
@click.argument("sweep_id", metavar="SWEEP")
@click.option("--images", type=int, default=40, show_default=True, help="How many more.")
@click.option(
    "--weight", "weights", multiple=True, metavar="METRIC=N", help="Weight in the overall score; by default equal."
)
@json_command
def sweep_extend(sweep_id: str, images: int, weights: tuple[str, ...]) -> dict[str, Any]:
    """Plan more images around the best settings.

    SWEEP is its id or the beginning of it. Steps and guidance are chosen where they tell most about the best settings,
    by the scores so far; prompts and seeds are as in a paired sweep. While images of an extension are still to be made,
    no more are added.
    """
    session = Session()
    row = session.find_sweep(sweep_id)
    numbers = parse_numbers("weight", weights)
    plan = _plan_sweep(session, {"extend": str(row.id), "images": images, "weights": numbers})
    added = plan["target"] - (row.target or 0)
    counted = format_count(added, "image")
    text = f"{counted} added" if added else "images of its last extension are still to be made: none added"
    return (
        plan
        | {"added": added}
        | ({} if added else {"reason": text})
        | {"text": f"sweep {plan['run']}: {text}; {_describe_next(plan)}"}
    )


@sweep.command("run")
@click.argument("sweep_id", metavar="SWEEP")
@json_command
def sweep_run(sweep_id: str) -> dict[str, Any]:
    """Make and score the images a sweep lacks.

    SWEEP is its id or the beginning of it. The tables and the report are made at the end.
    """
    session = Session()
    return _summarize(session, _run_sweep(session, _find_plan(session, sweep_id)))


@sweep.command("weights")
@click.argument("engine")
@click.argument("weights")
@json_command
def sweep_weights(engine: str, weights: str) -> dict[str, Any]:
    """Record which weights made adopted images.

    WEIGHTS is a name, as in SG161222/RealVisXL_V4.0, or `current` for those that the engine has now. It is written to
    ENGINE's images whose weights are unknown: the analysis never pools two sets of weights.
    """
    from flexy_assets.storage.migrate import migrate
    from flexy_assets.storage.runs import record_weights
    from resources.models import registry

    session = Session()
    if weights == "current":
        weights = registry.find_engine(engine, session.settings).fingerprint
    if not 1 <= len(weights) <= 200 or not weights.isprintable():
        raise BadInputError(f"invalid weights {weights[:20]!r}: must be a name of at most 200 characters")
    migrate(session.database)
    with session.database.begin() as connection:
        images = record_weights(connection, engine, weights)
    return {
        "engine": engine,
        "weights": weights,
        "images": images,
        "text": f"{format_count(images, 'image')} of {engine}: {weights}",
    }


@sweep.command("prune")
@click.argument("sweep_ids", metavar="[SWEEP]...", nargs=-1)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_command
def sweep_prune(sweep_ids: tuple[str, ...], yes: bool) -> dict[str, Any]:
    """Remove rows whose picture is gone.

    Of the named sweeps or of all: the rows, with scores, of images whose file is missing or not the one recorded and
    that have no plan to be made from again.
    """
    from flexy_assets.storage import runs, status

    session = Session()
    database = session.migrate()
    session.store.check()
    with database.begin(reading=True) as connection:
        lost = status.find_lost_images(connection, session.store, sys.maxsize)
    sweeps = {str(session.find_sweep(sweep_id).id) for sweep_id in sweep_ids}
    gone = [image for image in lost["images"] if not image["plan"] and (not sweeps or image["run"] in sweeps)]
    answer: dict[str, Any] = {"lost": len(lost["images"]), "removed": 0, "images": gone}
    if not gone:
        reason = f"no image of {lost['of']:,} is gone without a plan: nothing is removed"
        return answer | {"reason": reason, "text": reason}
    if len(lost["images"]) == lost["of"]:
        raise BadInputError(f"no image of {lost['of']:,} is there: check that {session.store} holds the images")
    question = f"remove the rows of {format_count(len(gone), 'image')} of {lost['of']:,}, with all scores"
    if not yes and not (sys.stdin.isatty() and click.confirm(f"{gone[0]['reason']}\n{question}?", err=True)):
        return answer | {"reason": f"would {question}: use --yes", "text": f"would {question}: use --yes"}
    with database.begin() as connection:
        answer["removed"] = runs.delete_images(connection, [UUID(image["image"]) for image in gone])
    return answer | {"text": f"{format_count(answer['removed'], 'row')} removed"}


def _read_negative_prompts(file: Path | None) -> tuple[Any, ...]:
    from resources.prompts import read_prompts

    return read_prompts(file) if file else ()


def _describe_next(plan: dict[str, Any]) -> str:
    return (
        f"{plan['planned']:,} of {format_count(plan['target'], 'image')} to make,"
        f" in {format_count(len(plan['batches']), 'partition')}\n"
        f"make and score them: flexy sweep run {plan['run'][:8]}"
    )


def _plan_sweep(session: Session, config: dict[str, Any]) -> dict[str, Any]:
    """Materialise `sweep_plan` with this configuration and return the plan; see `_find_plan`."""
    from flexy_assets.execution import dagster_instance, run_assets
    from flexy_assets.sweep import assets

    # Checked before the database and the run are created: an invalid plan leaves no trace.
    checked = assets.SweepConfig(**config)
    if not checked.extend:
        checked.sweep(session.settings)
    assets.plan_images(session.migrate(), checked, session.settings)
    with dagster_instance(session.settings) as instance:
        run_assets(instance, session.definitions, [assets.sweep_plan], config={"sweep_plan": config})
    return _find_plan(session, str(session.work.results["sweep_plan"].run_id))


def _find_plan(session: Session, sweep_id: str) -> dict[str, Any]:
    """Return a planned sweep by the beginning of its id: id, target, partitions and the number of images it lacks."""
    from flexy_assets.sweep import generation
    from flexy_assets.sweep.plan import Sweep

    row = session.find_sweep(sweep_id)
    if not row.plan:
        raise BadInputError(f"cannot run sweep {sweep_id!r}: it has no plan: plan one with flexy sweep new")
    plan = Sweep.from_json(row.plan).rows(0, row.target or 0)
    planned = len(generation.images_to_generate(session.database, session.store, plan))
    batches = plan["batch"].unique(maintain_order=True).to_list()
    return {"run": str(row.id), "engine": row.engine, "target": row.target, "planned": planned, "batches": batches}


def _run_sweep(session: Session, plan: dict[str, Any]) -> dict[str, Any]:
    """Materialise everything below `sweep_plan` for the sweep's partitions, then the tables and the report."""
    from flexy_assets.execution import contiguous_ranges, dagster_instance, run_assets
    from flexy_assets.partitions import SEED_BATCHES
    from flexy_assets.storage import status
    from flexy_assets.sweep import assets

    batched = [assets.generated_images, assets.clip_embeddings, *assets.SCORE_ASSETS]
    with dagster_instance(session.settings) as instance:
        # A database may know batches that this Dagster instance has never seen.
        instance.add_dynamic_partitions(SEED_BATCHES, plan["batches"])
        for batches in contiguous_ranges(plan["batches"], instance.get_dynamic_partitions(SEED_BATCHES)):
            run_assets(instance, session.definitions, batched, batches=batches)
        if failures := session.update_results(instance):
            raise FlexyError("; ".join(failures))
    with session.database.begin(reading=True) as connection:
        entry = next(e for e in status.status_by_sweep(connection) if e["run"] == plan["run"])
    images: Collection[GenerationOutcome] = session.work.results.get("generated_images", {}).values()
    tables, scores_computed = session.settings.tables, sum(session.scores_computed().values())
    for kind in ("made", "restored", "replaced"):
        entry[f"images_{kind}"] = sum(getattr(outcome, kind) for outcome in images)
    entry |= {"images_missing": _find_plan(session, plan["run"])["planned"], "scores_computed": scores_computed}
    entry |= {"csv": str(tables / "sweep.csv"), "report": str(tables / "sweep_report.html")}
    return entry | {"image_failures": [outcome.failed[-1] for outcome in images if outcome.failed]}


def _summarize(session: Session, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of a sweep that was run, with the text for a person and what is still missing."""
    from flexy_assets.storage import status

    there = entry["target"] - entry["images_missing"]
    lost = f" ({entry['images_restored']:,} of them lost before, bit for bit)" if entry["images_restored"] else ""
    lost += f" ({entry['images_replaced']:,} of them unlike the lost ones)" if entry["images_replaced"] else ""
    text = (
        f"sweep {entry['run'][:8]}: {format_count(entry['images_made'], 'image')} made{lost},"
        f" {format_count(entry['scores_computed'], 'score')} computed now;"
        f" {there:,} of {format_count(entry['target'], 'image')} there\n"
        f"CSV     {entry['csv']}\nreport  {entry['report']}\n"
        "lineage and every partition: make ui"
    )
    if entry["image_failures"]:
        missing_images = entry["images_missing"]
        failed = f"{missing_images} image{'s' * (missing_images > 1)} could not be made: {entry['image_failures'][-1]}"
        return entry | {"text": text, "failed": f"{failed}: run again"}
    missing = {metric: entry[metric]["missing"] + entry[metric]["failed"] for metric in METRICS}
    if not any(missing.values()):
        return entry | {"text": text}
    with session.database.begin(reading=True) as connection:
        reason = status.last_failure(connection, UUID(entry["run"])) or "no scorer has tried them"
    counts = ", ".join(f"{count} {metric}" for metric, count in missing.items() if count)
    failed = f"scores are missing ({counts}): {reason}: fix this and run again; flexy status counts them"
    return entry | {"text": text, "failed": failed}
