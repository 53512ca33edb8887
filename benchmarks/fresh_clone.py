"""Times the first commands in a fresh clone: `python -m benchmarks.fresh_clone`.

Clones this repository's HEAD into a temporary folder and runs `make demo` twice and `make test`.
Prints each claim with its value and threshold and writes benchmarks/results/fresh_clone.json.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import ROOT, Claim, argument_parser, environment_without, print_claims, timed, write_results

HEADER = "steps,guidance,clip_score,aesthetic_score,aes_v2_score,hps_v2_score,elapsed_ms,seed"


def make(target: str, clone: Path) -> tuple[float, int, str]:
    """Return seconds, exit status and output of `make` run without Flexy's variables."""
    environment = environment_without("FLEXY_", "DAGSTER_", "VIRTUAL_ENV")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done, seconds = timed(lambda: subprocess.run(["make", target], cwd=clone, env=environment, text=True, **pipes))
    return seconds, done.returncode, done.stdout


def main() -> None:
    parser = argument_parser(__doc__, "fresh_clone")
    parser.add_argument("--no-test", action="store_true", help="skip `make test`")
    options = parser.parse_args()
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary, "flexy")
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        seconds, status, first = make("demo", clone)
        claims.append(("make demo, install included", f"{seconds:.0f} s", "≤ 480 s", seconds <= 480 and status == 0))
        seconds, status, again = make("demo", clone)
        idle = "0 images made, 0 scores computed" in again
        claims.append(("make demo again, says nothing was made", f"{seconds:.0f} s", "≤ 60 s", seconds <= 60 and idle))
        lines = (clone / ".flexy" / "assets" / "sweep.csv").read_text().splitlines()
        rows = list(csv.DictReader(lines))
        order = [(int(row["steps"]), float(row["guidance"])) for row in rows]
        right = lines[0] == HEADER and order == sorted(order) and all(all(row.values()) for row in rows)
        claims.append(("CSV rows, right header, order and scores", str(len(rows)), "≥ 96", right and len(rows) >= 96))
        if not options.no_test:
            seconds, status, tests = make("test", clone)
            claims.append(("make test", f"{seconds:.0f} s", "≤ 720 s", seconds <= 720 and status == 0))
            print(tests[-600:])
        print(first[-800:])
    write_results(options.out, {claim: figure for claim, figure, *_ in claims})
    sys.exit(print_claims(claims))


if __name__ == "__main__":
    main()
