"""Searches spend their budget to the step, go on where they were stopped, and find more where there is more to find."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from flexy_assets.edits.comparison import bootstrap_interval
from flexy_assets.edits.search.eacps import Eacps, EacpsParameters, Previews, Reproduce, plan_previews
from flexy_assets.edits.search.protocol import Proposal, Search, SearchCandidate, Seeds, blended_noise
from flexy_assets.edits.search.selectors import CandidateScores, Potential
from flexy_assets.edits.search.ttflux import RandomSearch, ZeroOrderSearch
from resources.engines import EditNoise
from resources.errors import BadInputError

SEEDS = Seeds(0, "bear")
TOY = EacpsParameters(scouts=4, local_share=0.5, preview=0.25, keep=0.5, cross=0.0, t=0.4, strength=0.5)
"""What suits the world of these tests, in which a part-way preview tells much of the picture to come."""
PF = Potential({"pf": 1.0})


@dataclass
class World:
    """Pictures are points; one is the better, the further it lies the way its task wants. Neighbours are alike.

    A preview sees it through noise that goes as the path is run; the verifier is never quite right.
    """

    task: int = 0
    dimensions: int = 8
    at: dict[str, np.ndarray] = field(default_factory=dict)

    def noise(self, noise: EditNoise) -> np.ndarray:
        def draw(seed: int) -> np.ndarray:
            return np.random.default_rng(seed).standard_normal(self.dimensions, np.float32)

        return noise.apply_moves(draw(noise.seed), draw)

    def quality(self, name: str) -> float:
        wanted = np.random.default_rng(self.task).standard_normal(self.dimensions)
        point = self.at[name]
        return float(wanted @ point / np.linalg.norm(wanted) / np.linalg.norm(point))

    def make(self, proposal: Proposal) -> SearchCandidate:
        if proposal.start_step == 0:
            share = proposal.strength
            parent = self.at[proposal.parent] if share < 1 and proposal.parent else 0
            self.at[proposal.name] = np.sqrt(1 - share**2) * parent + share * self.noise(proposal.noise)
        doubt = 0.05 + 0.3 * (1 - proposal.stop_step / proposal.num_steps)
        luck = np.random.default_rng(zlib.crc32(f"{self.task} {proposal.name} {proposal.stop_step}".encode()))
        pf = self.quality(proposal.name) + doubt * luck.standard_normal()
        return SearchCandidate(proposal.name, proposal.stop_step, proposal.nfe, {"pf": pf})


def rounds(
    search: Search, make: Callable[[Proposal], SearchCandidate], made: Sequence[SearchCandidate] = ()
) -> Iterator[list[Proposal]]:
    """Answers what is asked until nothing is."""
    made = list(made)
    while proposals := search.ask(made):
        yield proposals
        made += map(make, proposals)


def proposals(search: Search, make: Callable[[Proposal], SearchCandidate] | None = None) -> list[Proposal]:
    return [proposal for each in rounds(search, make or World().make) for proposal in each]


def run(search: Search, world: World) -> tuple[list[SearchCandidate], SearchCandidate]:
    made = [world.make(proposal) for each in rounds(search, world.make) for proposal in each]
    winner = search.select(made)
    assert winner is not None
    return made, winner


def unscored(proposal: Proposal) -> SearchCandidate:
    return SearchCandidate(proposal.name, proposal.stop_step, proposal.nfe, {"pf": None})


def some_searches(count: int) -> list[tuple[int, int, Search]]:
    """Steps, denoises and a search with these and settings at random."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        steps, denoises = int(rng.integers(1, 31)), int(rng.integers(1, 13))
        parameters = EacpsParameters(
            scouts=int(rng.integers(1, 9)),
            local_share=float(rng.uniform(0, 0.99)),
            preview=float(rng.uniform(0.01, 0.99)),
            keep=float(rng.uniform(0.05, 1)),
            m_global=int(rng.integers(1, 5)),
            k_local=int(rng.integers(1, 5)),
            cross=float(rng.uniform(0, 0.5)),
            t=float(rng.uniform(0, 0.99)),
            strength=float(rng.uniform(0.01, 1)),
        )
        common = (SEEDS, steps, steps * denoises)
        zero_order = ZeroOrderSearch(*common, neighbours=int(rng.integers(1, 6)))
        eacps = (Eacps(*common, PF, each) for each in (parameters, replace(parameters, local_share=0.0)))
        found += [(steps, denoises, each) for each in (RandomSearch(*common), zero_order, *eacps)]
    return found


# The budget


def test_every_search_spends_its_budget_to_the_step() -> None:
    for steps, denoises, search in some_searches(100):
        asked = proposals(search)
        assert sum(proposal.nfe for proposal in asked) == steps * denoises, search
        assert all(0 <= proposal.start_step < proposal.stop_step <= proposal.num_steps <= steps for proposal in asked)


def test_failed_scores_do_not_change_the_cost() -> None:
    for steps, denoises, search in some_searches(30):
        assert sum(proposal.nfe for proposal in proposals(search, unscored)) == steps * denoises


def test_a_candidate_is_begun_once_and_carried_on_where_it_stood_after_its_parent_was_finished() -> None:
    for steps, _, search in some_searches(60):
        stood: dict[str, int] = {}
        finished: set[str] = set()
        for each in rounds(search, World().make):
            assert len({proposal.name for proposal in each}) == len(each)
            for proposal in each:
                assert stood.get(proposal.name, 0) == proposal.start_step
                assert proposal.parent is None or proposal.parent in finished
                # What an engine does with the strength is what was paid for.
                assert round(steps * proposal.strength) == proposal.num_steps
                assert proposal.strength == 1 or proposal.parent
            stood |= {proposal.name: proposal.stop_step for proposal in each}
            finished |= {proposal.name for proposal in each if proposal.finishes}


@pytest.mark.parametrize(
    ("steps", "budget", "words"),
    [(20, 0, "multiple of 20"), (20, 19, "multiple of 20"), (20, 50, "multiple of 20"), (0, 20, "invalid steps 0")],
)
@pytest.mark.parametrize("kind", [RandomSearch, ZeroOrderSearch, Eacps])
def test_a_budget_that_cannot_be_spent_to_the_step_is_refused(kind: Any, steps: int, budget: int, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        kind(SEEDS, steps, budget)


# Resuming


def test_a_search_interrupted_anywhere_proposes_exactly_the_missing_candidates() -> None:
    rng = np.random.default_rng(1)
    for _, _, search in some_searches(5):
        world = World()
        made, winner = run(search, world)
        asked = {(proposal.name, proposal.stop_step): proposal for proposal in proposals(search)}
        for stop in range(len(made) + 1):
            # Rows come back from a database in any order.
            kept = [made[index] for index in rng.permutation(stop)]
            missing = {(each.name, each.stop_step) for each in made[stop:]}
            again = [proposal for each in rounds(search, world.make, kept) for proposal in each]
            assert {(proposal.name, proposal.stop_step) for proposal in again} == missing
            assert all(proposal == asked[proposal.name, proposal.stop_step] for proposal in again)
        assert search.select([made[index] for index in rng.permutation(len(made))]) == winner


def test_a_round_half_made_is_finished_before_the_next_is_asked_for() -> None:
    search = Eacps(SEEDS, 20, 160, PF, TOY)
    first, *_ = rounds(search, World().make)
    made = [World().make(proposal) for proposal in first]
    assert search.ask(made[1:]) == first[:1]
    assert search.ask(made[::2]) == first[1::2]


# Seeds


def test_searches_share_their_first_seeds_unless_told_otherwise() -> None:
    drawn = {
        kind: {proposal.name: proposal.noise for proposal in proposals(search) if proposal.stage == "global"}
        for kind, search in {
            "ttflux": RandomSearch(SEEDS, 20, 160),
            "eacps": Eacps(SEEDS, 20, 160, PF, TOY),
            "apart": Eacps(replace(SEEDS, stream="eacps"), 20, 160, PF, TOY),
        }.items()
    }
    shared = drawn["ttflux"].keys() & drawn["eacps"].keys()
    assert len(shared) >= 5
    assert all(drawn["ttflux"][name] == drawn["eacps"][name] for name in shared)
    assert not set(drawn["ttflux"].values()) & set(drawn["apart"].values())


def test_seeds_differ_between_tasks_and_never_change() -> None:
    # A comparison begun with one version of Flexy is finished with the next.
    drawn = [SEEDS("g0"), Seeds(1, "bear")("g0"), Seeds(0, "hat")("g0"), SEEDS("l0")]
    assert drawn == [444778621, 1252965519, 1551753133, 1691389291]
    drawn = [Seeds(base, f"task {task}")(f"g{index}") for base in (0, 1) for task in range(200) for index in range(8)]
    assert len(set(drawn)) == len(drawn)
    assert min(drawn) >= 0 and max(drawn) < 2**31


# The global stage


def test_the_hopeless_are_stopped_and_the_others_carried_on() -> None:
    search = Eacps(SEEDS, 20, 120, PF, EacpsParameters(scouts=4, local_share=0.5, preview=0.25, keep=0.45))
    looked, kept, *_ = rounds(search, World().make)
    assert {proposal.stop_step for proposal in looked} == {5}
    assert {(proposal.start_step, proposal.stop_step) for proposal in kept} == {(5, 20)}
    world = World()
    order = sorted(looked, key=lambda proposal: -(world.make(proposal).scores["pf"] or 0))
    assert [proposal.name for proposal in kept] == [proposal.name for proposal in order[: len(kept)]]
    # For the price of five: nothing is gained where as many are finished.
    assert len(looked) > 5 > len(kept)


@pytest.mark.parametrize(("count", "steps"), [(1, 20), (2, 20), (4, 20), (8, 20), (8, 7), (5, 1), (3, 13), (4, 28)])
@pytest.mark.parametrize(("preview", "keep"), [(0.25, 0.5), (0.5, 0.25), (0.1, 0.9), (0.3, 1.0)])
def test_previews_are_the_nearest_that_cost_the_same(count: int, steps: int, preview: float, keep: float) -> None:
    found = plan_previews(count, steps, preview, keep)
    assert found.continued * steps + (found.seeds - found.continued) * found.stop_step == count * steps

    def distance(stage: Previews) -> float:
        return (abs(stage.stop_step / steps - preview) if stage.seeds > stage.continued else 0) + abs(
            stage.continued / stage.seeds - keep
        )

    others = [
        Previews(seeds, until, kept)
        for kept in range(1, count + 1)
        for until in range(1, steps)
        for seeds in range(kept + 1, count * steps + 1)
        if kept * steps + (seeds - kept) * until == count * steps
    ]
    assert all(distance(found) <= distance(other) + 1e-12 for other in others)
    if keep == 1:
        assert found == Previews(count, steps, count)


# The local stage


def test_variants_are_near_their_parents_and_the_better_ones_become_parents() -> None:
    search = Eacps(SEEDS, 20, 320, PF, replace(TOY, m_global=2, k_local=2, t=0.7))
    world = World()
    noises: dict[str, EditNoise] = {}
    scores: dict[str, float] = {}
    generations = 0
    for each in rounds(search, world.make):
        local = [proposal for proposal in each if proposal.stage == "local"]
        best = sorted(scores, key=lambda name: -scores[name])[:2]
        for proposal in local:
            assert proposal.parent in best
            *before, (t, seed) = proposal.noise.moves
            assert EditNoise(proposal.noise.seed, tuple(before)) == noises[proposal.parent]
            assert (t, seed) == (0.7, SEEDS(proposal.name))
            assert proposal.strength == 0.5
            generations = max(generations, len(proposal.noise.moves))
        if local:
            assert len(local) == 4 and {proposal.parent for proposal in local} == set(best)
        for proposal in each:
            noises[proposal.name] = proposal.noise
            if proposal.finishes:
                scores[proposal.name] = world.make(proposal).scores["pf"] or 0
    assert generations > 1


def test_a_variant_lies_half_way_between_its_parent_and_another_of_the_best() -> None:
    search = Eacps(SEEDS, 20, 480, PF, EacpsParameters(m_global=2, k_local=2, cross=0.5, t=0.9))
    world = World(dimensions=4096)
    scores: dict[str, float] = {}
    points: dict[str, np.ndarray] = {}
    for each in rounds(search, world.make):
        best = sorted(scores, key=lambda name: -scores[name])
        for place, proposal in enumerate(proposal for proposal in each if proposal.stage == "local"):
            parent = best[place % 2]
            mate = [name for name in best if name != parent][place // 2]
            assert proposal.parent == parent
            here = world.noise(proposal.noise)
            alike = [cosine(here, points[name]) for name in (parent, mate)]
            middle = points[parent] + points[mate]
            assert cosine(here, middle) == pytest.approx(0.9, abs=0.03)
            assert alike[0] == pytest.approx(alike[1], abs=0.06)
        for proposal in each:
            scores[proposal.name] = world.make(proposal).scores["pf"] or 0
            points[proposal.name] = world.noise(proposal.noise)
    assert len(scores) == 24 and sum(name.startswith("l") for name in scores) == 10


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_a_mixture_of_a_noise_and_itself_is_that_noise() -> None:
    noise = EditNoise(1, ((0.0, 2), (0.0, 3), (0.6, 4)))
    assert blended_noise(noise, noise, 0.3).weights == pytest.approx({3: 0.6, 4: 0.8})
    assert blended_noise(EditNoise(1), EditNoise(2), 0.0) == EditNoise(1)


def test_a_strength_of_one_varies_the_noise_alone() -> None:
    search = Eacps(SEEDS, 20, 240, PF, replace(TOY, strength=1.0))
    local = [proposal for proposal in proposals(search) if proposal.stage == "local"]
    assert len(local) == 4
    assert all(proposal.strength == 1 and proposal.num_steps == 20 and proposal.noise.moves for proposal in local)


def gains(one: Callable[[Seeds], Search], other: Callable[[Seeds], Search], tasks: int = 60) -> np.ndarray:
    """How much truly better the first search's winner is, task by task."""
    found = []
    for task in range(tasks):
        truths = []
        for make in (one, other):
            world = World(task)
            _, winner = run(make(Seeds(0, f"task {task}")), world)
            truths.append(world.quality(winner.name))
        found.append(truths[0] - truths[1])
    return np.array(found)


def eacps(denoises: int, **settings: Any) -> Callable[[Seeds], Search]:
    return lambda seeds: Eacps(seeds, 20, 20 * denoises, PF, replace(TOY, **settings))


def random_search(denoises: int) -> Callable[[Seeds], Search]:
    return lambda seeds: RandomSearch(seeds, 20, 20 * denoises)


@pytest.mark.parametrize(
    "settings", [{}, {"strength": 1.0, "t": 0.6}, {"t": 0.0}, {"keep": 1.0}, {"cross": 0.5, "t": 0.9, "strength": 1.0}]
)
def test_where_neighbours_are_alike_the_local_stage_beats_fresh_seeds(settings: dict[str, float]) -> None:
    low, _ = bootstrap_interval(gains(eacps(16, **settings), eacps(16, **settings, local_share=0.0)))
    assert low is not None and low > 0


def test_previews_beat_whole_denoises_of_fresh_seeds() -> None:
    low, _ = bootstrap_interval(gains(eacps(8, local_share=0.0), eacps(8, local_share=0.0, keep=1.0)))
    assert low is not None and low > 0


@pytest.mark.parametrize("denoises", [4, 8])
def test_eacps_beats_random_search_at_the_same_budget(denoises: int) -> None:
    low, _ = bootstrap_interval(gains(eacps(denoises), random_search(denoises)))
    assert low is not None and low > 0


def test_without_previews_and_local_stage_it_is_random_search() -> None:
    assert not gains(eacps(8, local_share=0.0, keep=1.0), random_search(8), tasks=20).any()


# Zero-order search


def test_the_base_moves_only_to_a_better_neighbour() -> None:
    search = ZeroOrderSearch(SEEDS, 20, 20 * 20, neighbours=4)
    world, scores, moves = World(), {}, 0
    noises: dict[str, EditNoise] = {}
    for each in rounds(search, world.make):
        for proposal in each:
            if scores:
                best = max(scores, key=lambda name: scores[name])
                assert proposal.parent == best
                assert proposal.noise == EditNoise(
                    noises[best].seed, (*noises[best].moves, (0.95, SEEDS(proposal.name)))
                )
                moves += best != "g0"
        for proposal in each:
            scores[proposal.name], noises[proposal.name] = world.make(proposal).scores["pf"] or 0, proposal.noise
    assert moves and len(scores) == 20


def test_the_base_stays_where_no_neighbour_beats_it() -> None:
    search = ZeroOrderSearch(SEEDS, 20, 20 * 20)
    _, *neighbours = rounds(search, observed({"g0": 1.0} | {f"n{index}": 0.9 for index in range(1, 20)}))
    assert {proposal.parent for each in neighbours for proposal in each} == {"g0"}


# Choosing


def observed(scores: dict[str, float | None]) -> Callable[[Proposal], SearchCandidate]:
    return lambda proposal: SearchCandidate(
        proposal.name, proposal.stop_step, proposal.nfe, {"pf": scores.get(proposal.name)}
    )


def test_a_candidate_without_a_score_wins_only_if_none_has_one() -> None:
    search = RandomSearch(SEEDS, 10, 40)

    def chosen(scores: dict[str, float | None]) -> str:
        winner = search.select([observed(scores)(proposal) for proposal in proposals(search)])
        assert winner is not None
        return winner.name

    assert chosen({"g0": None, "g1": -3.0, "g2": -2.0}) == "g2"
    assert chosen({"g1": float("nan"), "g3": -9.0}) == "g3"
    assert chosen({}) == "g0"
    assert chosen({"g1": 1.0, "g2": 1.0}) == "g1"


def test_nothing_is_varied_or_carried_on_for_want_of_a_score() -> None:
    search = Eacps(SEEDS, 20, 160, PF, replace(TOY, m_global=2))
    scored: dict[str, float | None] = {"g4": 1.0, "g5": 0.5}
    _, kept, *local = rounds(search, observed(scored))
    assert [proposal.name for proposal in kept][:2] == ["g4", "g5"]
    assert {proposal.parent for each in local for proposal in each} == {"g4", "g5"}


def test_a_preview_is_never_the_winner() -> None:
    search = Eacps(SEEDS, 20, 160, PF, TOY)
    first, *_ = rounds(search, World().make)
    assert search.select([World().make(proposal) for proposal in first]) is None

    def praising(proposal: Proposal) -> SearchCandidate:
        scores: CandidateScores = {"pf": 1.0 if proposal.finishes else 100.0}
        return SearchCandidate(proposal.name, proposal.stop_step, proposal.nfe, scores)

    made = [praising(proposal) for proposal in proposals(search, praising)]
    winner = search.select(made)
    assert winner is not None and winner.scores["pf"] == 1.0


# As published


def test_reproduce_draws_the_published_seeds_and_chooses_by_the_published_sum() -> None:
    rng = np.random.default_rng(3)
    for first_seed in (0, 40, 4_294_967_295):
        search = Reproduce(first_seed, num_samples=4)
        scores = {
            seed: {"pf": 100 * rng.normal(0.25, 0.02), "cons": rng.normal(0.9, 0.05), "lpips": rng.normal(0.3, 0.1)}
            for seed in range(first_seed, first_seed + 4)
        }
        # The same by hand.
        value = {s: scores[s]["pf"] + 10 * scores[s]["cons"] - 3 * scores[s]["lpips"] for s in scores}
        parents = sorted(value, key=lambda s: -value[s])[:2]
        children = [(parent + 1) * 100000 + j for parent in parents for j in (0, 1)]
        for seed in children:
            scores[seed] = {"pf": 26.0 + rng.normal(), "cons": 0.9, "lpips": 0.2}
            value[seed] = scores[seed]["pf"] + 10 * 0.9 - 3 * 0.2
        best = max(value, key=lambda s: value[s])

        drawn: dict[str, Proposal] = {}

        def make(proposal: Proposal, drawn: dict[str, Proposal] = drawn, scores: Any = scores) -> SearchCandidate:
            drawn[proposal.name] = proposal
            return SearchCandidate(proposal.name, proposal.stop_step, proposal.nfe, scores[proposal.noise.seed])

        stage1, stage2 = rounds(search, make)
        assert [proposal.noise for proposal in stage1] == [EditNoise(first_seed + i) for i in range(4)]
        assert [proposal.noise for proposal in stage2] == [EditNoise(seed) for seed in children]
        assert [drawn[proposal.parent or ""].noise.seed for proposal in stage2] == [p for p in parents for _ in (0, 1)]
        assert {proposal.stage for proposal in stage1} == {"stage1"}
        assert {proposal.stage for proposal in stage2} == {"stage2"}
        assert sum(proposal.nfe for proposal in (*stage1, *stage2)) == search.budget == 8 * 20
        winner = search.select([make(proposal) for proposal in (*stage1, *stage2)])
        assert winner is not None and drawn[winner.name].noise.seed == best


# Refusals


@pytest.mark.parametrize(
    "setting",
    [
        {"scouts": 0},
        {"local_share": 1.0},
        {"cross": 0.6},
        {"local_share": -0.1},
        {"preview": 0.0},
        {"preview": 1.0},
        {"keep": 0.0},
        {"keep": 1.1},
        {"m_global": 0},
        {"k_local": 0},
        {"t": 1.0},
        {"t": -0.1},
        {"strength": 0.0},
        {"strength": 1.1},
        {"strength": float("nan")},
    ],
)
def test_invalid_parameters_are_named(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(BadInputError) as caught:
        EacpsParameters(**setting)
    assert str(caught.value).startswith(f"invalid {name} {value} for EACPS: must be ")


def test_zero_order_and_reproduce_reject_invalid_settings() -> None:
    for make in (
        lambda: ZeroOrderSearch(SEEDS, 20, 40, neighbours=0),
        lambda: ZeroOrderSearch(SEEDS, 20, 40, t=1.0),
        lambda: Reproduce(0, num_samples=0),
        lambda: Reproduce(-1, num_samples=4),
    ):
        with pytest.raises(BadInputError):
            make()
