"""EACPS against TTFLUX on edits of the drawn world, by ground truth: `python -m benchmarks.edits`.

Each of 200 held-out edits is searched by both methods at 4 and at 8 full denoises, and by EACPS at 24 with a local
stage and with fresh seeds only, which isolates the local stage (`--local-only --tasks 600 --seed 7` measures nothing
else; `--local-only --large 8 --set scouts=4` measures it at 8). Claims: at equal cost EACPS's gain over TTFLUX is
above 0 with its 95 % interval, EACPS at 4 is not worse than TTFLUX at 8, and both methods' NFE are equal to the step.
Also shown is the selector's share, by selecting among TTFLUX's own candidates as EACPS does. EACPS's settings were
tuned on other edits. Resumes in --home. Prints a table and writes benchmarks/results/edits.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import argument_parser, write_results
from flexy_assets.edits import comparison, metrics, results, sources
from flexy_assets.edits.assets import EditConfig
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.edits.search.runner import SearchRunner
from flexy_assets.edits.search.selectors import Potential, Selector, rank_candidates
from flexy_assets.edits.tasks import read_tasks
from flexy_assets.reporting.text_tables import format_text_table
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.migrate import migrate
from resources.mini.edits import write_edit_example
from resources.settings import Settings


def run_searches(work: Work, plan: Comparison, folder: Path, methods: Sequence[str]) -> pl.DataFrame:
    """Run these methods' searches, or resume them; return their `edit_scores`."""
    tasks, _ = read_tasks(folder / "edits.jsonl")
    rows = sources.task_rows(plan, tasks, sources.copy_sources(work.store, folder, tasks))
    with work.database.begin() as connection:
        edits.save_comparison(connection, plan.run_id, plan.to_json(), rows)
    for method in methods:
        searching = SearchRunner(work, plan, method, rows)
        searching.run(lambda _: None)
        candidates = searching.candidates()
        winners = list(searching.winners(candidates))
        with work.database.begin() as connection:
            edits.record_selections(connection, winners)
        metrics.score_independent(work, rows, winners)
        metrics.score_ground_truth(work, rows, candidates)
    with work.database.begin(reading=True) as connection:
        return results.with_potential(edits.edit_scores_table(connection, [plan.run_id], metrics.EDIT_METRICS), plan)


def reselect_winners(scores: pl.DataFrame, selector: Selector) -> pl.DataFrame:
    """Return the winners that `selector` selects among the same candidates."""
    finished = scores.filter(pl.col("stop_step") == pl.col("num_steps"))
    return pl.concat(
        search[rank_candidates(selector, search.to_dicts())[0]]
        for search in finished.partition_by("task_id", "method", "budget", maintain_order=True)
    ).with_columns(chosen=pl.lit(True))


def compare_winners(ours: pl.DataFrame, budget: int, theirs: pl.DataFrame, rival_budget: int) -> list[dict[str, Any]]:
    """Return the comparison of two sets of winners by ground truth and independent metrics."""
    both = pl.concat(
        [
            results.select_winners(ours).filter(budget=budget).with_columns(method=pl.lit("ours")),
            results.select_winners(theirs).filter(budget=rival_budget).with_columns(method=pl.lit("theirs")),
        ]
    )
    metrics = [metric for metric in results.compared_metrics(both) if metric.role != "selecting"]
    return comparison.compare_methods(both, metrics, "ours", "theirs", [(budget, rival_budget)]).to_dicts()


def main() -> None:
    parser = argument_parser(__doc__, "edits")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=4, help="seed of the edits")
    parser.add_argument("--budgets", type=int, nargs=2, default=(4, 8), help="full denoises")
    parser.add_argument("--large", type=int, default=24, help="full denoises for the local stage")
    parser.add_argument("--local-only", action="store_true", help="measure the local stage and nothing else")
    parser.add_argument("--home", type=Path, help="folder of a run to resume")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of flexy compare")
    options = parser.parse_args()
    if options.large in options.budgets and not options.local_only:
        parser.error("--large is among --budgets already: name another, or --local-only")
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, options.home or Path(temporary))


def measure(options: argparse.Namespace, home: Path) -> None:
    settings = Settings.read({"FLEXY_HOME": str(home), "FLEXY_MODELS": "mini"})
    work = Work.from_settings(settings)
    migrate(work.database)
    Path(settings.images).mkdir(parents=True, exist_ok=True)
    folder = home / f"edits{options.seed}"
    write_edit_example(folder, options.tasks, options.seed)
    settings_of_search = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in options.set)}
    plan = EditConfig(budgets=list(options.budgets), **settings_of_search).plan(
        settings, f"{options.tasks} of seed {options.seed}"
    )
    larger = replace(plan, budgets=(options.large,))
    fresh = replace(larger, eacps=replace(plan.eacps, local_share=0.0))
    began = time.perf_counter()
    large = run_searches(work, larger, folder, METHODS[:1])
    without = run_searches(work, fresh, folder, METHODS[:1])
    nfe, (less, more), (most,) = dict(zip(plan.budgets, plan.nfe, strict=True)), plan.budgets, larger.nfe
    best, best_fresh = (reselect_winners(table, Potential({"truth": 1.0})) for table in (large, without))
    pairs: dict[str, list[dict[str, Any]]] = {
        f"the local stage at {options.large} against fresh seeds": compare_winners(large, most, without, most),
        "the same, selected by ground truth among all": compare_winners(best, most, best_fresh, most),
    }
    searches, levels = [large, without.with_columns(method=pl.lit("fresh"))], []
    if not options.local_only:
        scores = run_searches(work, plan, folder, METHODS)
        eacps, ttflux = (scores.filter(method=method) for method in METHODS)
        reranked = reselect_winners(ttflux, plan.selector)
        searches.append(scores)
        levels = results.winner_levels(scores).filter(pl.col("role") != "selecting").to_dicts()
        pairs |= {
            f"EACPS at {ours} against TTFLUX at {theirs}": compare_winners(eacps, nfe[ours], ttflux, nfe[theirs])
            for ours, theirs in ((more, more), (less, more), (less, less))
        }
        by_eacps = compare_winners(reranked, nfe[more], ttflux, nfe[more])
        pairs["TTFLUX's candidates selected as EACPS selects, against selected by pf"] = by_eacps
        by_search = compare_winners(eacps, nfe[more], reranked, nfe[more])
        pairs["EACPS against TTFLUX's candidates selected as EACPS selects"] = by_search
    spent = results.denoising_cost(pl.concat(searches)).to_dicts()
    seconds = time.perf_counter() - began
    print(f"{options.tasks} edits, {plan.editor}, {plan.steps} steps, {seconds:.0f} s\n{plan.eacps}")
    for title, rows in {"spent": spent, "levels": levels, **pairs}.items():
        if rows:
            print(f"\n{title}\n{format_text_table(rows)}")
    local = large.filter(pl.col("parent").is_not_null())
    likeness = local.select(pl.mean("parent_cons"), pl.mean("parent_lpips"), pl.mean("lpips")).row(0)
    print("variants: CLIP {:.3f} and LPIPS {:.3f} from their parents, LPIPS {:.3f} from the source".format(*likeness))
    results_by_part = {"spent": spent, "levels": levels, "comparisons": pairs, "likeness": likeness}
    write_results(options.out, {"settings": plan.to_json(), **results_by_part})


if __name__ == "__main__":
    main()
