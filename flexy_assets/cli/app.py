"""The entry point of `flexy`: the group of all commands and their deprecated names."""

import click

from flexy_assets.cli import edits, inpaint, models, prompts, scores, sweep
from flexy_assets.cli.command import OneLineGroup, deprecated_alias


@click.group(
    cls=OneLineGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command takes --json. Exit status: 0 done, 1 the work failed, 2 invalid usage or input,"
    " 130 interrupted. What was completed before a failure is kept.",
)
@click.version_option(package_name="flexy", prog_name="flexy", message="%(prog)s %(version)s")
def main() -> None:
    """Generate images at many settings, score them, and find the best settings."""


for command in (
    sweep.demo,
    sweep.sweep,
    *(scores.status, scores.backfill, scores.rescore, scores.export, scores.report),
    *(edits.compare, edits.select),
    inpaint.inpaint,
    prompts.prompts,
    *(models.models, models.gallery, models.example, models.config),
):
    main.add_command(command)
main.add_command(deprecated_alias(scores.backfill, "heal", "flexy backfill"))
main.add_command(deprecated_alias(inpaint.inpaint, "labels", "flexy inpaint"))

if __name__ == "__main__":
    main()
