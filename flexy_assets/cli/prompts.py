"""`flexy prompts`: find the prompts that images were made from."""

from collections import Counter
from pathlib import Path
from typing import Any

import click

from flexy_assets.cli.command import json_command
from flexy_assets.cli.session import Session
from resources.errors import BadInputError
from resources.metrics.sweep import METRICS


@click.group()
def prompts() -> None:
    """Find the prompts that images were made from."""


@prompts.command()
@click.argument("candidates", type=click.Path(path_type=Path))
@click.argument("sweep_ids", metavar="[SWEEP]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Write no prompts; embeddings that are computed are kept.")
@json_command
def recover(candidates: Path, sweep_ids: tuple[str, ...], dry_run: bool) -> dict[str, Any]:
    """Find each image's prompt among a file's.

    CANDIDATES holds the prompts of the sweep, each once: text, JSON, CSV or TSV. Without SWEEP, all sweeps are
    examined that lack prompts and have more than 16 images. A prompt is written where it is sure, and none is replaced.
    """
    from flexy_assets.scoring.missing_prompts import recover_missing_prompts
    from flexy_assets.scoring.work import Work
    from flexy_assets.storage.adoption import adopt_rows
    from flexy_assets.storage.prompts import find_title, read_run_images, record_prompts
    from resources.prompts import read_prompts

    candidate_prompts = list({prompt.text: prompt for prompt in read_prompts(candidates)}.values())
    if len(candidate_prompts) < 2:
        raise BadInputError(f"prompts {candidates}: one prompt, nothing to choose from: name all of the sweep's")
    session = Session()
    sweeps = [session.find_sweep(sweep_id).id for sweep_id in sweep_ids]
    settings = session.settings
    with session.migrate().begin(reading=True) as connection:
        if settings.prompt_column and find_title(connection, *settings.prompt_column):
            settings = settings.model_copy(update={"prompt_column": None})
    work = Work.from_settings(settings)
    adopt_rows(work.database, settings, seconds=float("inf"))
    with work.database.begin(reading=True) as connection:
        images = read_run_images(connection, settings, sweeps)
    lacking = Counter(str(image.run_id) for image in images if image.prompt is None)
    if not lacking:
        return {"images": 0, "recovered": 0, "text": "no sweep lacks prompts: name one of 16 images or fewer"}
    found = recover_missing_prompts(work, images, candidate_prompts)
    sure = [each for each in found if each.sure]
    if sure and not dry_run:
        rows = {each.image.image_id: (each.prompt if each.sure else None, each.confidence) for each in found}
        # A sweep of which nothing is sure stays as it was: the file may be another's.
        examined = {each.image.run_id for each in sure}
        missing = [image for image in images if image.prompt is None and image.run_id in examined]
        with work.database.begin() as connection:
            record_prompts(connection, {image.image_id: rows.get(image.image_id, (None, 0.0)) for image in missing})
    by_sweep = Counter(str(each.image.run_id) for each in sure)
    counts = {"images": lacking.total(), "recovered": len(sure), "doubtful": len(found) - len(sure)}
    counts |= {"unreadable": lacking.total() - len(found), "dry_run": dry_run}
    tables = {
        "sweeps": [{"run": run, "images": number, "recovered": by_sweep[run]} for run, number in lacking.items()],
        "rescorable": _rescorable(session, sure),
    }
    text = f"{len(sure)} of {lacking.total()} prompts {'would be ' * dry_run}recovered, {counts['doubtful']} doubtful"
    text += f", {counts['unreadable']} images unreadable" * bool(counts["unreadable"])
    lines = [f"  sweep {run[:8]}: {by_sweep[run]} of {number}" for run, number in lacking.items()]
    for entry in tables["rescorable"]:
        lines.append(f"{entry['images']} {entry['metric']} are of another text than the prompt: {entry['command']}")
    failed = f"no prompt is sure: is {candidates} the file that the sweep was made from, and is it whole?"
    return counts | tables | {"text": "\n".join([text, *lines]), "failed": "" if sure else failed}


def _rescorable(session: Session, recovered: list[Any]) -> list[dict[str, Any]]:
    """Return the metrics whose scores are of another text than the prompts recovered, with the command that helps.

    Of a CLIP score that is known; another metric's were computed before the prompt was known.
    """
    from flexy_assets.storage.prompts import PROMPT_METRICS
    from flexy_assets.storage.scores import request_rescore

    entries = []
    for name in PROMPT_METRICS:
        scored = [each for each in recovered if each.image.scores[name] is not None]
        scored = [each for each in scored if name != "clip_score" or each.other_text]
        if scored:
            sweeps = sorted({each.image.run_id for each in scored})
            with session.database.begin(reading=True) as connection:
                request = request_rescore(connection, METRICS[name], sweeps, False, session.settings, only_count=True)
            runs = " ".join(run.hex[:8] for run in sweeps)
            command = f"flexy rescore {name} {runs} --replace {request.replaced}"
            entries.append({"metric": name, "images": len(scored), "command": command})
    return entries
