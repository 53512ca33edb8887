"""Quality of the mini face models on held-out people: `python -m benchmarks.mini_faces`.

Faces are detected in drawn scenes, the one in the mask is swapped for the character's, and the result is evaluated
with insightface's own classes and against the drawing with the right face. Prints each claim with its value and
threshold, writes benchmarks/results/mini_faces.json, and ends with status 1 where a threshold is missed.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks import Claim, argument_parser, at_least, print_claims, timed, write_results
from flexy_assets.reporting.text_tables import format_text_table
from resources.mini.evaluation import face_accuracy
from resources.mini.evaluation.face_accuracy import GALLERY
from resources.mini.faces import KINDS
from resources.models import registry
from resources.settings import Settings

COLUMNS = ("swaps", "before", "after", "improved", "recognised", "nearer", "corrected", "nearest")


def measure(count: int) -> dict[str, Any]:
    """Return all results over `count` tasks; every sixth is a scene without a face."""
    swapper = registry.find_face_swapper(Settings.read({})).load()
    tasks = face_accuracy.held_out_faces(count)
    detection = face_accuracy.measure_detection(swapper.finder, [task.scene for task in tasks])
    swaps, seconds = timed(lambda: face_accuracy.measure_swaps(swapper, tasks))
    kinds = [KINDS[index % len(KINDS)] for index in range(count)]
    return {
        "tasks": count,
        "seconds_per_task": seconds / count,
        "detection": asdict(detection),
        "swaps": face_accuracy.swap_shares([swap for swap in swaps if swap]),
        "by_kind": {
            kind: face_accuracy.swap_shares([s for s, k in zip(swaps, kinds, strict=True) if s and k == kind])
            for kind in dict.fromkeys(KINDS)
            if kind != "none"
        },
    }


def claims(result: Mapping[str, Any]) -> list[Claim]:
    """Return (claim, value, threshold, met) for each claim."""
    detection, swaps = result["detection"], result["swaps"]
    false_faces, outside = detection["false_faces"], swaps["changed_outside"]
    return [
        at_least("faces detection at an IoU of .5", detection["recall"], 0.98),
        ("false faces per scene", f"{false_faces:.3f}", "≤ 0.02", false_faces <= 0.02),
        at_least("the cosine to the character rises", swaps["improved"], 0.95),
        at_least(f"recognised among {GALLERY} people", swaps["recognised"], 0.9),
        at_least("nearer to the drawing with the right face", swaps["nearer"], 0.9),
        ("pixels changed away from the face", str(outside), "0", outside == 0),
    ]


def main() -> None:
    parser = argument_parser(__doc__, "mini_faces")
    parser.add_argument("--tasks", type=int, default=252, help="tasks, one in six of them without a face")
    options = parser.parse_args()
    result = measure(options.tasks)
    rows = claims(result)
    status = print_claims(rows)
    kinds = result["by_kind"] | {"all": result["swaps"]}
    # Before and after are the cosines to the character.
    print(format_text_table([{"kind": kind} | {name: row[name] for name in COLUMNS} for kind, row in kinds.items()]))
    write_results(options.out, result)
    print(f"{options.tasks} tasks, {result['seconds_per_task']:.2f} s each with the gallery's drawings; {options.out}")
    sys.exit(status)


if __name__ == "__main__":
    main()
