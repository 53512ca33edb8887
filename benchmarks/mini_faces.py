"""Quality of the mini face models on held-out people: `python -m benchmarks.mini_faces`.

Faces are detected in drawn scenes, the one in the mask is swapped for the character's, and the result is evaluated
with insightface's own classes and against the drawing with the right face. Prints each claim with its value and
threshold, writes benchmarks/results/mini_faces.json, and ends with status 1 where a threshold is missed.
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

THRESHOLDS = {"improved": 0.95, "recognised": 0.90, "nearer": 0.90}


def measure(count: int) -> dict[str, Any]:
    """Return all results over `count` tasks; every sixth is a scene without a face."""
    swapper = registry.find_face_swapper(Settings.read({})).load()
    tasks = face_accuracy.held_out_faces(count)
    detection = face_accuracy.measure_detection(swapper.finder, [task.scene for task in tasks])
    start = time.perf_counter()
    swaps = face_accuracy.measure_swaps(swapper, tasks)
    seconds = (time.perf_counter() - start) / count
    kinds = [KINDS[index % len(KINDS)] for index in range(count)]
    return {
        "tasks": count,
        "seconds_per_task": seconds,
        "detection": asdict(detection),
        "swaps": face_accuracy.swap_shares([swap for swap in swaps if swap]),
        "by_kind": {
            kind: face_accuracy.swap_shares([s for s, k in zip(swaps, kinds, strict=True) if s and k == kind])
            for kind in dict.fromkeys(KINDS)
            if kind != "none"
        },
    }


def claims(result: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return (claim, value, threshold, met) for each claim."""
    detection, swapped = result["detection"], result["swaps"]
    rows = [
        ("faces detection at an IoU of .5", f"{detection['recall']:.3f}", "≥ 0.98", detection["recall"] >= 0.98),
        ("false faces per scene", f"{detection['false_faces']:.3f}", "≤ 0.02", detection["false_faces"] <= 0.02),
    ]
    claim_of = {
        "improved": "the cosine to the character rises",
        "recognised": f"recognised among {GALLERY} people",
        "nearer": "nearer to the drawing with the right face",
    }
    rows += [
        (claim_of[name], f"{swapped[name]:.3f}", f"≥ {threshold}", swapped[name] >= threshold)
        for name, threshold in THRESHOLDS.items()
    ]
    rows.append(
        ("pixels changed away from the face", f"{swapped['changed_outside']}", "0", swapped["changed_outside"] == 0)
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=252, help="tasks, one in six of them without a face")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mini_faces.json")
    options = parser.parse_args()
    result = measure(options.tasks)
    rows = claims(result)
    for claim, figure, threshold, met in rows:
        print(f"{'ok  ' if met else 'MISS'}  {claim:40} {figure:>8}  {threshold}")
    print(f"{'':8} swaps  cosine before  after  improved  recognised  nearer  corrected  nearest")
    for kind, row in (result["by_kind"] | {"all": result["swaps"]}).items():
        print(
            f"{kind:8} {row['swaps']:5d} {row['before']:14.3f} {row['after']:6.3f} {row['improved']:9.3f}"
            f" {row['recognised']:11.3f} {row['nearer']:7.3f} {row['corrected']:10.3f} {row['nearest']:8.3f}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.tasks} tasks, {result['seconds_per_task']:.2f} s each with the gallery's drawings; {options.out}")
    sys.exit(0 if all(row[3] for row in rows) else 1)


if __name__ == "__main__":
    main()
