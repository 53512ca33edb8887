"""Measures edits: what searches choose by, what had no part in the choice, and in the drawn world the truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from flexy_assets.scoring.missing_scores import CHUNK_IMAGES
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.edits import CandidateRow, EditTaskRow
from flexy_assets.storage.embeddings import read_image_vectors, record_image_embeddings
from flexy_assets.storage.scores import ScoredImage, record_outcomes
from resources.errors import FlexyError
from resources.models import registry
from resources.models.compute import HalvingBatches
from resources.scorers import layout

SELECTING_METRICS: Final = ("pf", "pf_gain", "cons", "lpips", "layout")
"""What searches choose by: 100 × the cosine of picture and prompt, and how much more that is than the source's; the
cosine of picture and source, their LPIPS, and how well their edges agree."""

SIMILARITY_METRICS: Final = ("parent_cons", "parent_lpips")
"""How alike a variant and its parent are, by the same two measures."""

INDEPENDENT_METRICS: Final = ("hps_v2_score", "aes_v2_score")
"""What no search has seen."""

JUDGED_METRICS: Final = ("judge_following", "judge_consistency", "judge_overall")
"""What a vision-language judge says, where one is configured, 0 to 10: `resources.judges.questions`."""

GROUND_TRUTH_METRICS: Final = {"carried_out": "carried_out", "preserved": "preserved", "truth": "score"}
"""By rule, in the drawn world: is the prompt fulfilled, is the rest as it was, and both as one mark from 0 to 1.

Each with the part of `resources.mini.edits.EditTruth` that it is.
"""

EDIT_METRICS: Final = (
    *SELECTING_METRICS,
    *SIMILARITY_METRICS,
    *INDEPENDENT_METRICS,
    *JUDGED_METRICS,
    *GROUND_TRUTH_METRICS,
)

ImageReference = EditTaskRow | CandidateRow
"""What has a picture."""

MetricOutcome = tuple[str, CandidateRow, Any]
"""A metric, whose it is, and its value or the `FlexyError` why there is none."""


def score_selecting(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Measure what searches choose by, and likeness, of the candidates that lack it.

    Each chunk is committed before the next is begun. What cannot be measured is recorded with its reason.
    """
    by_id = {task.id: task for task in tasks}
    finished = {(c.task, c.method, c.budget, c.name): c for c in candidates if c.finished}

    def others(
        chunk: Sequence[CandidateRow], of_source: str, of_parent: str
    ) -> list[tuple[str, CandidateRow, ImageReference]]:
        """Whom each is compared with, and as which metric."""
        parents = ((c, finished.get((c.task, c.method, c.budget, c.parent or ""))) for c in chunk)
        sources: list[tuple[str, CandidateRow, ImageReference]] = [(of_source, c, by_id[c.task]) for c in chunk]
        return sources + [(of_parent, c, parent) for c, parent in parents if parent]

    for chunk in candidates_without_score(candidates, "pf"):
        began = time.perf_counter()
        pairs = others(chunk, "cons", "parent_cons")
        seen = _vectors(work, [*chunk, *(other for _, _, other in pairs)])
        said = work.embed_prompts({by_id[c.task].prompt for c in chunk})
        wishes = [said[by_id[c.task].prompt] for c in chunk]
        fits = map_in_batches(
            CHUNK_IMAGES, cosine_similarities, [(seen[c.id], wish) for c, wish in zip(chunk, wishes, strict=True)]
        )
        gains = map_in_batches(
            CHUNK_IMAGES, _gains, [(seen[c.id], seen[c.task], wish) for c, wish in zip(chunk, wishes, strict=True)]
        )
        alike = map_in_batches(
            CHUNK_IMAGES, cosine_similarities, [(seen[c.id], seen[other.id]) for _, c, other in pairs]
        )
        found: list[MetricOutcome] = [
            (metric, c, value if isinstance(value, FlexyError) else 100 * value)
            for metric, values in (("pf", fits), ("pf_gain", gains))
            for c, value in zip(chunk, values, strict=True)
        ]
        found += [(metric, c, value) for (metric, c, _), value in zip(pairs, alike, strict=True)]
        record_metric_outcomes(work, work.fingerprint("clip"), found, began)

    for chunk in candidates_without_score(candidates, "lpips"):
        began = time.perf_counter()
        pairs = others(chunk, "lpips", "parent_lpips")
        model = work.slot.get(work.model("lpips"))
        pictures = read_images(work, [*chunk, *(other for _, _, other in pairs)], model.prepare)
        compared = [(pictures[c.id], pictures[other.id]) for _, c, other in pairs]
        values = map_in_batches(model.batch_size, model.distances, compared)
        record_metric_outcomes(
            work, work.fingerprint("lpips"), [(m, c, v) for (m, c, _), v in zip(pairs, values, strict=True)], began
        )

    for chunk in candidates_without_score(candidates, "layout"):
        began = time.perf_counter()
        sources = [by_id[c.task] for c in chunk]
        lines = read_images(work, [*chunk, *sources], layout.edge_maps)
        compared = [(lines[c.id], lines[source.id]) for c, source in zip(chunk, sources, strict=True)]
        values = map_in_batches(CHUNK_IMAGES, layout.layout_agreements, compared)
        record_metric_outcomes(
            work, layout.LAYOUT_FINGERPRINT, [("layout", c, v) for c, v in zip(chunk, values, strict=True)], began
        )


def score_independent(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Measure by what had no part in the choice: HPS v2.1 against the prompt, and aesthetic V2."""
    prompts = {task.id: task.prompt for task in tasks}
    for chunk in candidates_without_score(candidates, "aes_v2_score"):
        seen = _vectors(work, chunk)
        head = work.slot.get(work.model("aesthetic_v2"))
        marks = map_in_batches(
            CHUNK_IMAGES,
            lambda vectors, head=head: head.score_embeddings(np.stack(vectors)),
            [(seen[c.id],) for c in chunk],
        )
        record_metric_outcomes(
            work, work.fingerprint("aesthetic_v2"), [("aes_v2_score", c, v) for c, v in zip(chunk, marks, strict=True)]
        )
    for chunk in candidates_without_score(candidates, "hps_v2_score"):
        hps = work.slot.get(work.model("hps"))
        pictures = read_images(work, chunk, hps.prepare)
        values = map_in_batches(hps.batch_size, hps.scores, [(pictures[c.id], prompts[c.task]) for c in chunk])
        record_metric_outcomes(
            work, work.fingerprint("hps"), [("hps_v2_score", c, v) for c, v in zip(chunk, values, strict=True)]
        )


def score_with_judge(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Have the judge, if one is configured, read the candidates that it has not answered for, one by one."""
    from resources.judges import make_judge, questions

    asked = make_judge(work.settings, work.slot)
    if asked is None:
        return
    by_id = {task.id: task for task in tasks}
    for candidate in candidates:
        if candidate.scores.get(JUDGED_METRICS[-1]) is not None:
            continue
        task = by_id[candidate.task]
        pictures = read_images(work, [task, candidate], lambda picture: picture)
        source, edited = pictures[task.id], pictures[candidate.id]
        lost = next((picture for picture in (source, edited) if isinstance(picture, FlexyError)), None)
        found: list[Any] = [lost] * 3
        if not lost:
            edit = asked.ask(questions.editing_question(task.prompt), [source, edited])
            looks = asked.ask(questions.quality_question(), [edited])
            silent = FlexyError(edit.error or looks.error or "the judge did not answer")
            found = [silent] * 3
            if edit.values:
                found[:2] = [edit.values["prompt_following"], edit.values["consistency"]]
            if edit.values and looks.values:
                found[2] = questions.overall_score(edit.values, looks.values)
        outcomes = [(metric, candidate, value) for metric, value in zip(JUDGED_METRICS, found, strict=True)]
        record_metric_outcomes(work, asked.fingerprint, outcomes)


def score_ground_truth(work: Work, tasks: Sequence[EditTaskRow], candidates: Sequence[CandidateRow]) -> None:
    """Judge finished candidates of the drawn world by its rule."""
    from resources.mini.edits import edit_truth

    by_id = {task.id: task for task in tasks}
    for chunk in candidates_without_score([c for c in candidates if c.finished], "truth"):
        sources = [by_id[c.task] for c in chunk]
        pictures = read_images(work, [*chunk, *sources], np.asarray)

        def judged(pictures: Sequence[Any], tasks: Sequence[EditTaskRow], sources: Sequence[Any]) -> list[Any]:
            found: list[Any] = []
            for picture, task, source in zip(pictures, tasks, sources, strict=True):
                try:
                    found.append(edit_truth(source, task.prompt, picture))
                except ValueError as error:
                    found.append(FlexyError(str(error)))
            return found

        truths = map_in_batches(
            CHUNK_IMAGES, judged, [(pictures[c.id], s, pictures[s.id]) for c, s in zip(chunk, sources, strict=True)]
        )
        outcomes = [
            (metric, c, found if isinstance(found, FlexyError) else float(getattr(found, name)))
            for c, found in zip(chunk, truths, strict=True)
            for metric, name in GROUND_TRUTH_METRICS.items()
        ]
        record_metric_outcomes(work, "mini rule", outcomes)


def candidates_without_score(candidates: Sequence[CandidateRow], metric: str) -> Iterator[list[CandidateRow]]:
    """Those without any outcome of a metric, in chunks."""
    lacking = [c for c in candidates if metric not in c.scores]
    for first in range(0, len(lacking), CHUNK_IMAGES):
        yield lacking[first : first + CHUNK_IMAGES]


def map_in_batches(size: int, call: Callable[..., Sequence[Any]], items: Sequence[tuple[Any, ...]]) -> list[Any]:
    """`call` of the items' first parts, second parts, …, at most `size` at a time; an error in an item stays that."""
    errors = [next((part for part in item if isinstance(part, FlexyError)), None) for item in items]
    whole = [item for item, error in zip(items, errors, strict=True) if not error]
    results = iter(HalvingBatches(size)(lambda some: call(*zip(*some, strict=True)), whole))
    return [error or next(results) for error in errors]


def cosine_similarities(left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> list[float]:
    """Of L2-normalised vectors."""
    products = np.einsum("nw,nw->n", np.stack(left).astype(np.float64), np.stack(right).astype(np.float64))
    return [float(product) for product in products]


def _gains(*vectors: Sequence[NDArray[np.float32]]) -> list[float]:
    """How much nearer the edits are to their wishes than the sources; of edits, sources and wishes."""
    edited, sources, wishes = vectors
    return [
        a - b for a, b in zip(cosine_similarities(edited, wishes), cosine_similarities(sources, wishes), strict=True)
    ]


def read_images(work: Work, things: Sequence[ImageReference], prepare: Callable[[Any], Any]) -> dict[UUID, Any]:
    """Each thing's picture, prepared, or the `FlexyError` why there is none; each file is opened once."""
    distinct = {thing.id: thing for thing in things}
    files = [(thing.image_path or "", thing.image_sha256) for thing in distinct.values()]
    read = work.store.read_many(files)
    return {
        key: picture if isinstance(picture, FlexyError) else prepare(picture)
        for key, picture in zip(distinct, read, strict=True)
    }


def _vectors(work: Work, things: Sequence[ImageReference]) -> dict[UUID, Any]:
    """Each thing's CLIP vector, kept or computed now and kept, or the `FlexyError` why there is none."""
    mark, ids = work.fingerprint("clip"), [thing.id for thing in things]
    with work.database.begin(reading=True) as connection:
        known: dict[UUID, Any] = dict(read_image_vectors(connection, mark, ids))
    fresh = [thing for thing in things if thing.id not in known]
    if fresh:
        clip = work.slot.get(work.model("clip"))
        pictures = read_images(work, fresh, clip.prepare)
        made = map_in_batches(clip.batch_size, clip.images, [(picture,) for picture in pictures.values()])
        computed = dict(zip(pictures, made, strict=True))
        sound = {key: vector for key, vector in computed.items() if not isinstance(vector, FlexyError)}
        with work.database.begin() as connection:
            record_image_embeddings(connection, mark, sound, [])
        known |= computed
    return known


def record_metric_outcomes(
    work: Work, mark: str, outcomes: Sequence[MetricOutcome], began: float | None = None
) -> None:
    """Write outcomes by what `mark` names, and what they took since `began`, shared among their candidates."""
    by_metric: dict[str, list[ScoredImage]] = {}
    for metric, candidate, value in outcomes:
        error = candidate.error or (str(value) if isinstance(value, FlexyError) else None)
        scored = ScoredImage(candidate.id, None, error) if error else ScoredImage.of(candidate.id, float(value))
        by_metric.setdefault(metric, []).append(scored)
    with work.database.begin() as connection:
        for metric, scores in by_metric.items():
            record_outcomes(connection, metric, mark, scores)
        if began:
            of = {candidate.id for _, candidate, _ in outcomes}
            edits.record_scoring_time(connection, of, 1000 * (time.perf_counter() - began) / len(of))


def has_ground_truth(editor: str) -> bool:
    """Whether this editor's pictures are of the drawn world."""
    return registry.MODELS[editor].embedded is not None
