"""Quality of the mini editor by the rule of its drawn world: `python -m benchmarks.mini_edits`.

Every edit is held out from training. Prints each claim with its value and threshold, and how values vary with kind,
steps, guidances and seed; writes benchmarks/results/mini_edits.json, and ends with status 1 where a threshold is
missed. Guidances are tuned on other edits and seeds than they are evaluated on.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks import Claim, argument_parser, at_least, print_claims, timed, write_results
from benchmarks.mini_quality import difference
from flexy_assets.reporting.text_tables import format_text_table
from resources.mini.edits import CHANGES
from resources.mini.evaluation import accuracy
from resources.models import registry
from resources.settings import Settings

STEPS = (4, 8, 12, 20)
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 6.0)
IMAGE_GUIDANCES = (1.0, 1.5, 2.5, 4.0)
ATTEMPTS = 8
THRESHOLDS = {"carried_out": 0.60, "preserved": 0.80}


def measure(count: int, tuning: int, searched: int) -> dict[str, Any]:
    """Return all results: `count` edits per setting, `tuning` to tune guidances, `searched` with `ATTEMPTS` each."""
    settings = Settings.read({})
    model, entry = registry.find_editor("mini_instruct", settings), registry.MODELS["mini_instruct"]
    editor, steps, guidance = model.load(), entry.steps, entry.guidance

    tuning_edits = accuracy.held_out_edits(tuning, turn=1)
    grid = []
    for image_guidance in IMAGE_GUIDANCES:
        candidate_editor = replace(model, options={**model.options, "image_guidance": image_guidance}).load()
        for text_guidance in GUIDANCES:
            shares = accuracy.edit_accuracy(candidate_editor, tuning_edits, steps, text_guidance, first_seed=1_000_000)
            grid.append({"guidance": text_guidance, "image_guidance": image_guidance} | shares)
    result: dict[str, Any] = {
        "steps": steps,
        "guidance": guidance,
        "image_guidance": editor.image_guidance,
        "by_guidances": grid,
        "best_guidances": max(grid, key=lambda row: row["score"]),
    }

    edits = accuracy.held_out_edits(count)
    truths, seconds = timed(lambda: accuracy.edit_truths(editor, edits, steps, guidance, first_seed=0))
    single = [attempts[0] for attempts in truths]
    result["seconds_per_edit"] = seconds / count
    result["edits"] = accuracy.edit_shares(single)
    result["by_kind"] = {
        kind: accuracy.edit_shares([t for t, edit in zip(single, edits, strict=True) if edit.kind == kind])
        for kind in CHANGES
    }
    result["by_steps"] = {tried: accuracy.edit_accuracy(editor, edits, tried, guidance) for tried in STEPS}

    attempts_by_edit, seconds = timed(
        lambda: accuracy.edit_truths(editor, edits[:searched], steps, guidance, 2_000_000, tries=ATTEMPTS)
    )
    result["seconds_per_edit_in_batch"] = seconds / (searched * ATTEMPTS)
    scores = np.array([[t.score for t in tries] for tries in attempts_by_edit])
    result["tries"] = {
        "edits": searched,
        "single": accuracy.edit_shares([t for tries in attempts_by_edit for t in tries]),
        "best": accuracy.edit_shares([max(tries, key=lambda t: t.score) for tries in attempts_by_edit]),
        "spread_within_an_edit": float(scores.std(axis=1).mean()),
        "spread_between_edits": float(scores.mean(axis=1).std()),
        "gain": difference(scores.max(axis=1), scores.mean(axis=1)),
    }
    return result


def claims(result: Mapping[str, Any]) -> list[Claim]:
    """Return (claim, value, threshold, met) for each claim."""
    rows = [at_least(f"edits: {name.replace('_', ' ')}", result["edits"][name], t) for name, t in THRESHOLDS.items()]
    gain = result["tries"]["gain"]
    shown = f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
    rows.append((f"score: the best of {ATTEMPTS} against one", shown, "interval above 0", gain["low"] > 0))
    return rows


def table(result: Mapping[str, Any]) -> str:
    """Return one line of results per kind, steps, guidances and attempts."""
    shares: dict[str, Mapping[str, float]] = dict(result["by_kind"])
    shares |= {f"{steps} steps": row for steps, row in result["by_steps"].items()}
    for row in result["by_guidances"]:
        shares[f"guidance {row['guidance']}, image guidance {row['image_guidance']}"] = row
    shares |= {"one attempt": result["tries"]["single"], f"the best of {ATTEMPTS} attempts": result["tries"]["best"]}
    names = ("carried_out", "preserved", "both", "score")
    return format_text_table([{"": name} | {share: row[share] for share in names} for name, row in shares.items()])


def main() -> None:
    parser = argument_parser(__doc__, "mini_edits")
    parser.add_argument("--edits", type=int, default=240, help="edits per setting")
    parser.add_argument("--tuning", type=int, default=48, help="edits to tune guidances on")
    parser.add_argument("--searched", type=int, default=60, help=f"edits with {ATTEMPTS} attempts")
    options = parser.parse_args()
    result = measure(options.edits, options.tuning, options.searched)
    rows = claims(result)
    status = print_claims(rows)
    print(table(result))
    write_results(options.out, result)
    print(
        f"{options.edits} edits per setting, {result['seconds_per_edit']:.2f} s each at {result['steps']} steps,"
        f" {result['seconds_per_edit_in_batch']:.2f} s in batches of {ATTEMPTS}; {options.out}"
    )
    sys.exit(status)


if __name__ == "__main__":
    main()
