"""A comparison's settings: what they name, and what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flexy_assets.edits.plan import Comparison
from flexy_assets.edits.search.eacps import EacpsParameters
from flexy_assets.edits.search.protocol import SearchCandidate
from flexy_assets.edits.search.selectors import edit_potential
from resources.errors import BadInputError

PLAN = Comparison("mini_instruct", 4, 2.0, "a set", budgets=(8,), eacps=EacpsParameters(m_global=2, k_local=2))


def test_the_same_settings_name_the_same_comparison_and_others_another() -> None:
    again = Comparison.from_json(json.loads(json.dumps(PLAN.to_json())))
    assert again == PLAN and again.run_id == PLAN.run_id
    others = [replace(PLAN, seed=1), replace(PLAN, tasks="b"), replace(PLAN, eacps=EacpsParameters(t=0.5))]
    assert len({plan.run_id for plan in (PLAN, *others)}) == 4


def test_reproduce_draws_the_published_seeds() -> None:
    plan = replace(PLAN, reproduce=True, seed=1000)
    search = plan.search("eacps", 8 * 4, "bear", position=3)
    first = search.ask([])
    assert [p.noise.seed for p in first] == [1000 + 3 * 4 + i for i in range(4)]
    scores = [{"pf": float(i % 3), "cons": 0.5, "lpips": 0.1} for i in range(4)]
    made = [SearchCandidate(p.name, p.stop_step, p.nfe, s) for p, s in zip(first, scores, strict=True)]
    second = search.ask(made)
    assert [p.noise.seed for p in second] == [(1014 + 1) * 100_000 + j for j in (0, 1)] + [
        (1013 + 1) * 100_000 + j for j in (0, 1)
    ]
    assert sum(p.nfe for p in (*first, *second)) == 8 * 4
    assert search.selector == edit_potential()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"budgets": ()}, "budgets"),
        ({"budgets": (0,)}, "budgets"),
        ({"steps": 0}, "invalid steps 0"),
        ({"ttflux": "best"}, "must be random or zero_order"),
        ({"choose": "luck"}, "must be rank or potential"),
        ({"alpha": float("nan")}, "alpha"),
        ({"batch_size": 0}, "invalid batch_size 0"),
        ({"reproduce": True, "budgets": (4, 8)}, "must exceed the 4 local variants"),
    ],
)
def test_invalid_settings_are_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        replace(PLAN, **change)
