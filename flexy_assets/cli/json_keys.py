"""The keys of each command's `--json` document, for the reference and for the tests that hold commands to them."""

from typing import Final

_SWEEP: Final = {
    "run": "Id of the sweep",
    "engine": "The model that makes its images",
    "target": "How many images it is to have",
}
_PLAN: Final = _SWEEP | {
    "planned": "How many of them are still to be made",
    "batches": "Its partitions",
}
_COMPUTED: Final = {
    "scores_computed": "How many scores were computed now",
    "filled": "The same by metric",
    "reason": "Why nothing was done, where nothing was",
}
_AGREEMENT: Final = (
    "By metric whose scores others made: `sampled`, `agreeing`, `mean_difference`, `spread`, `correlation`, `variant`"
    " (null where no scorer gives them), `tried`, `done`"
)
_RUN: Final = _SWEEP | {
    "images": "How many images it has",
    "steps": "The lowest and the highest of them",
    "guidance": "The same of guidance",
    "first": "When the first image was made, in UTC",
    "last": "When the last one was",
    "METRIC": "By the metric's column: `scored`, `missing`, `failed`",
    "images_made": "How many images were made now",
    "images_restored": "How many of them are lost ones again, bit for bit",
    "images_replaced": "How many of them differ from the lost ones",
    "images_missing": "How many have no row, or a file that is missing or not as recorded",
    "scores_computed": "How many scores were computed now",
    "csv": "Path of the table",
    "report": "Path of the report",
    "image_failures": "Why images could not be made: the last reason of each partition",
}

JSON_KEYS: Final[dict[str, dict[str, str]]] = {
    "demo": _RUN,
    "sweep new": _PLAN,
    "sweep extend": _PLAN
    | {"added": "How many images were added", "reason": "Why nothing was done, where nothing was"},
    "sweep run": _RUN,
    "sweep prune": {
        "lost": "How many images are missing or not as recorded",
        "removed": "How many rows were removed",
        "images": "A list of those without a plan: `image`, `run`, `image_path`, `reason`, `plan`",
        "reason": "Why nothing was removed, where nothing was",
    },
    "sweep weights": {
        "engine": "The engine as its rows name it",
        "weights": "What was recorded",
        "images": "How many images had none recorded",
    },
    "status": {
        "totals": "`images`, `runs`, and `complete`: images with every score",
        "metrics": "A list: `metric`, `scored`, `missing`, `failed`",
        "runs": "A list by sweep and engine: `run`, `engine`, `images`, `target`, `steps` and `guidance` (lowest and"
        " highest), `first` and `last` (times of its images), and by metric `scored`, `missing`, `failed`",
        "steps": "A list by eight steps: `steps`, `images`, `seconds` an image, and each metric's mean",
        "newest": "The ten newest images: `id`, settings, scores, `image_path`",
        "left_alone": "Images by engine whose scores are the other model set's to compute",
        "unknown_weights": "Images by engine of which nobody recorded the weights",
        "beside": "A list: `metric`, `scored`: scores kept beside a column",
        "image_roots": "A list: `prefix`, `folder`, `rows`, `sampled`, `found`, `example`",
        "lost": "`of`, `checked`, and `images`, a list of those missing or not as recorded: `image`, `run`,"
        " `image_path`, `reason`, `plan` (whether they can be made again)",
        "agreement": _AGREEMENT,
        "failures": "With `--failed`, a list: `image`, `run`, `engine`, `image_path`, `metric`, `attempts`, `given_up`,"
        " `error`, `tried_at`",
        "reason": "Why the rest is empty, where there is no sweep",
    },
    "backfill": _COMPUTED | {"agreement": _AGREEMENT},
    "rescore": _COMPUTED
    | {"replaces": "How many scores are there to be replaced", "retries": "How many failed ones are tried again"},
    "export": {"file": "Path of the CSV", "rows": "How many images are in it"},
    "report": {
        "file": "Path of the report",
        "images": "How many images it is about",
        "engines": "By engine: `lead` and `best` (`steps`, `guidance`, `predicted`, `low`, `high`, `seconds`),"
        " `region` (`steps`, `guidance`, `share`), `images`, and `reason` where no setting is named",
    },
    "compare": {
        "comparison": "Id of the comparison",
        "tasks": "How many edits were compared",
        "left_out": "Why lines of the dataset were skipped",
        "denoising_steps_run": "Steps that were run now",
        "spent": "A list by `method` and `budget`: `searches`, `candidates`, `nfe`, `least_nfe`, `most_nfe`, `seconds`,"
        " `scorer_seconds`",
        "winners": "A list: `id`, `method`, `budget`, `name`, `stage`, `seed`, `potential`, `pf`, `cons`, `lpips`,"
        " `image_path`",
        "metrics": "The rows of [edit_comparison](columns.md#edit_comparison)",
        "verdict": "Which search is better, in a sentence",
        "report": "Path of the report",
    },
    "select": {
        "winners": "A list: `id`, `seed`, `phase`, `potential`",
        "alternatives": "A list by other weights: `alpha`, `beta`, `changed` (how many winners), `ids`",
        "disagreements": "Recorded potentials that differ: `line`, `recorded`, `potential`",
        "notes": "Remarks on the file",
        "left_out": "Lines that were skipped: `line`, `reason`",
    },
    "inpaint import": {
        "tasks": "How many tasks are usable",
        "new": "How many of them are new",
        "changed": "How many were updated",
        "skipped": "A list: `id`, `entry`, `reason`",
        "verdicts": "How many tasks have each of the reviewers' verdicts",
        "notes": "Remarks on the source",
        "pictures_fetched": "Images that were stored now",
        "batches": "Partitions of the tasks",
    },
    "inpaint run": {
        "tasks": "How many tasks were asked for",
        "batches": "Their partitions",
        "selected": "A list: `id`, `image_path`, `potential`",
        "left": "By task without a selected image: the reason",
        "unanswered": "How many candidates the judge has not answered",
    },
    "inpaint push": {
        "created": "Predictions that are new",
        "replaced": "Predictions that replace an older one",
        "unchanged": "Predictions that were there",
        "unsent": "Predictions that could not be sent",
        "file": "Path of a file that Label Studio can import",
    },
    "inpaint review": {
        "reviewed": "How many images were reviewed, and how many of them are good",
        "left_out": "How many were not counted, by reason",
        "notes": "Remarks on verdicts",
        "agreement": "The rows of [label_review](columns.md#label_review)",
    },
    "prompts recover": {
        "images": "Images without a prompt",
        "recovered": "Prompts that are sure",
        "doubtful": "Images whose prompt is not sure",
        "unreadable": "Images that could not be read",
        "dry_run": "Whether nothing was written",
        "sweeps": "A list: `run`, `images`, `recovered`",
        "rescorable": "Scores of another text than the prompt: `metric`, `images`, `command`",
    },
    "models list": {
        "models": "A list: `name`, `kind`, `set`, `state`, `folder`, `gigabytes`, `memory`, `licence`, `commercial`,"
        " `gated`, `repo`, `revision`, `files`",
        "aliases": "FlexyFace's names of models",
    },
    "models fetch": {
        "fetched": "Models that were downloaded now",
        "already": "Models that were there",
        "bytes": "Bytes that were received",
    },
    "gallery": {"port": "The port as it was asked for"},
    "example": {"file": "Path of the tasks", "tasks": "How many there are"},
    "config": {"settings": "A list: `variable`, `value`, `source`, `purpose`"},
}
"""What each key holds, by the command's words after `flexy`; nested keys are in the text."""
