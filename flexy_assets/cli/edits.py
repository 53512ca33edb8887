"""`flexy compare` and `flexy select`: the best of N edits."""

from pathlib import Path
from typing import Any

import click

from flexy_assets.cli.command import NamesOption, OutputPath, editor_names, json_command
from flexy_assets.cli.session import Session
from resources.errors import BadInputError


@click.command()
@click.option("--image", type=click.Path(path_type=Path), help="The image to edit; or give --dataset.")
@click.option("--prompt", default="", help="The instruction to --image: what it should show.")
@click.option(
    "--dataset", type=click.Path(path_type=Path), help='JSON lines {"id", "image_path", "prompt"}, instead of --image.'
)
@click.option(
    "--out", type=OutputPath(folder=True), help="A folder for winners, candidates and report; by default none."
)
@click.option(
    "--editor", cls=NamesOption, names=editor_names, default="", help="Model that edits; by default the set's first of:"
)
@click.option("--steps", type=int, default=0, help="Steps of a full denoise; by default the editor's own.")
@click.option("--guidance", type=float, default=0.0, help="On the editor's scale; by default its own.")
@click.option(
    "--budget", "budgets", type=int, multiple=True, default=[8], show_default=True, help="Full denoises; repeatable."
)
@click.option(
    "--ttflux",
    type=click.Choice(["random", "zero_order"]),
    default="random",
    show_default=True,
    help="How it searches.",
)
@click.option(
    "--choose", type=click.Choice(["rank", "potential"]), default="rank", show_default=True, help="EACPS selects by it."
)
@click.option("--reproduce", is_flag=True, help="EACPS as published: seeds by arithmetic, whole denoises, potential.")
@click.option("--alpha", type=float, default=10, show_default=True, help="Weight of CONS in the potential.")
@click.option("--beta", type=float, default=3, show_default=True, help="Weight of LPIPS in the potential.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same candidates.")
@json_command
def compare(image: Path | None, dataset: Path | None, out: Path | None, **options: Any) -> dict[str, Any]:
    """Compare two edit searches at equal cost.

    EACPS and TTFLUX edit one image, or each image of a dataset, with the same number of denoising steps.
    """
    from flexy_assets.edits.command import run_comparison

    if (image is None) == (dataset is None):
        raise BadInputError("nothing to edit, or two things: give either --image with --prompt, or --dataset")
    session = Session()
    options |= {"image": str(image or ""), "tasks": str(dataset or ""), "budgets": list(options["budgets"])}
    return run_comparison(options, out, lambda: session.definitions, session.database)


@click.command()
@click.argument("candidates", type=click.Path(path_type=Path))
@click.option("--alpha", default="10", show_default=True, help="Weight of CONS.")
@click.option("--beta", default="3", show_default=True, help="Weight of LPIPS.")
@click.option(
    "--alternative",
    "alternatives",
    multiple=True,
    help="Other weights, as alpha=5,beta=1; repeatable; by default none.",
)
@json_command
def select(candidates: Path, **weights: Any) -> dict[str, Any]:
    """Select again among recorded candidates.

    CANDIDATES are JSON lines. The winner of each id has the highest PF + alpha·CONS − beta·LPIPS.
    """
    from flexy_assets.edits.select import select_recorded

    return select_recorded(candidates, **weights)
