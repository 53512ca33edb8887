"""What the mini face models can do, on faces they were not trained on: `python -m benchmarks.mini_faces`.

Faces are found in drawn scenes, the one in the mask is swapped for the character's, and insightface's own classes say
whose it is then; so does, by rule, the drawing of what it should be. Prints each claim with its figure and bar, writes
benchmarks/results/mini_faces.json, and ends with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from resources.mini.evaluation import face_accuracy
from resources.mini.evaluation.face_accuracy import GALLERY
from resources.mini.faces import KINDS
from resources.models import registry
from resources.settings import Settings

BARS = {"improved": 0.95, "recognised": 0.90, "nearer": 0.90}


def measure(count: int) -> dict[str, Any]:
    """All figures, over `count` tasks; every sixth is a scene without a face, where there is nothing to swap."""
    swapper = registry.find_face_swapper(Settings.read({})).load()
    given = face_accuracy.held_out_faces(count)
    found = face_accuracy.measure_detection(swapper.finder, [task.scene for task in given])
    began = time.perf_counter()
    swaps = face_accuracy.measure_swaps(swapper, given)
    seconds = (time.perf_counter() - began) / count
    kinds = [KINDS[index % len(KINDS)] for index in range(count)]
    return {
        "tasks": count,
        "seconds_a_task": seconds,
        "detection": asdict(found),
        "swaps": face_accuracy.swap_shares([swap for swap in swaps if swap]),
        "by_kind": {
            kind: face_accuracy.swap_shares([s for s, k in zip(swaps, kinds, strict=True) if s and k == kind])
            for kind in dict.fromkeys(KINDS)
            if kind != "none"
        },
    }


def claims(result: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(claim, figure, bar, met) for each claim."""
    found, swapped = result["detection"], result["swaps"]
    rows = [
        ("faces found at an IoU of .5", f"{found['recall']:.3f}", "≥ 0.98", found["recall"] >= 0.98),
        ("false faces a scene", f"{found['false_faces']:.3f}", "≤ 0.02", found["false_faces"] <= 0.02),
    ]
    said = {
        "improved": "the cosine to the character rises",
        "recognised": f"recognised among {GALLERY} people",
        "nearer": "nearer to the drawing it should be",
    }
    rows += [(said[name], f"{swapped[name]:.3f}", f"≥ {bar}", swapped[name] >= bar) for name, bar in BARS.items()]
    rows.append(("pixels changed away from the face", f"{swapped['away']}", "0", swapped["changed_outside"] == 0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=252, help="tasks, one in six of them without a face")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mini_faces.json")
    options = parser.parse_args()
    result = measure(options.tasks)
    rows = claims(result)
    for claim, figure, bar, met in rows:
        print(f"{'ok  ' if met else 'MISS'}  {claim:40} {figure:>8}  {bar}")
    print(f"{'':8} swaps  cosine before  after  risen  recognised  nearer  mended  drawn")
    for kind, row in (result["by_kind"] | {"all": result["swaps"]}).items():
        print(
            f"{kind:8} {row['swaps']:5d} {row['before']:14.3f} {row['after']:6.3f} {row['risen']:6.3f}"
            f" {row['recognised']:11.3f} {row['nearer']:7.3f} {row['mended']:7.3f} {row['drawn']:6.3f}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{options.tasks} tasks, {result['seconds_a_task']:.2f} s each, the gallery's drawings included; {options.out}"
    )
    sys.exit(0 if all(row[3] for row in rows) else 1)


if __name__ == "__main__":
    main()
