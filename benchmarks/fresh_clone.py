"""Times the first commands in a fresh clone: `python -m benchmarks.fresh_clone`.

Clones this repository's HEAD into a temporary folder and runs `make demo` twice and `make test`.
Prints each claim with its value and threshold and writes benchmarks/results/fresh_clone.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent
HEADER = "steps,guidance,clip_score,aesthetic_score,aes_v2_score,hps_v2_score,elapsed_ms,seed"


def run_timed(command: list[str], folder: Path) -> tuple[float, int, str]:
    """Return seconds, exit status and output of a command run without Flexy's variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLEXY_", "DAGSTER_", "VIRTUAL_ENV"))}
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return time.monotonic() - began, done.returncode, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-test", action="store_true", help="skip `make test`")
    options = parser.parse_args()
    rows: list[tuple[str, str, str, bool]] = []
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary, "flexy")
        subprocess.run(["git", "clone", "--quiet", PROJECT, clone], check=True)
        seconds, status, first = run_timed(["make", "demo"], clone)
        rows.append(("make demo, install included", f"{seconds:.0f} s", "≤ 480 s", seconds <= 480 and status == 0))
        seconds, status, again = run_timed(["make", "demo"], clone)
        idle = "0 images made, 0 scores computed" in again
        rows.append(("make demo again, says nothing was made", f"{seconds:.0f} s", "≤ 60 s", seconds <= 60 and idle))
        lines = (clone / ".flexy" / "assets" / "sweep.csv").read_text().splitlines()
        table = list(csv.DictReader(lines))
        order = [(int(row["steps"]), float(row["guidance"])) for row in table]
        right = lines[0] == HEADER and order == sorted(order) and all(all(row.values()) for row in table)
        rows.append(("CSV rows, right header, order and scores", str(len(table)), "≥ 96", right and len(table) >= 96))
        if not options.no_test:
            seconds, status, tests = run_timed(["make", "test"], clone)
            rows.append(("make test", f"{seconds:.0f} s", "≤ 720 s", seconds <= 720 and status == 0))
            print(tests[-600:])
        print(first[-800:])
    for claim, figure, bar, met in rows:
        print(f"{'ok  ' if met else 'MISS'}  {claim:44} {figure:10} {bar}")
    out = PROJECT / "benchmarks" / "results" / "fresh_clone.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({claim: figure for claim, figure, _, _ in rows}, indent=1) + "\n")
    sys.exit(0 if all(row[3] for row in rows) else 1)


if __name__ == "__main__":
    main()
