"""Runs the searches of many tasks in step: all proposals of a round are generated together, then scored together.

Every call of the editor is committed with its images before the next one, and a search decides by the table alone.
A comparison that was killed therefore resumes where it stopped, and nothing is generated twice.
"""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import numpy as np

from flexy_assets.edits import metrics
from flexy_assets.edits.search.canvas import Canvas
from flexy_assets.edits.search.protocol import Proposal, Search, SearchCandidate
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.edits import CandidateRow, EditTaskRow
from resources.chunks import split_chunks
from resources.engines import Editor, EditRequest, PartialEdit
from resources.errors import FlexyError
from resources.models import registry
from resources.models.compute import HalvingBatches

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class DenoiseRequest:
    """A proposal of the search of one task at one budget (NFE)."""

    task: EditTaskRow
    budget: int
    proposal: Proposal

    @property
    def call_key(self) -> tuple[Any, ...]:
        """Equal for requests that one call of the editor can serve."""
        proposal = self.proposal
        return self.task.batch, self.task.position, proposal.num_steps, proposal.start_step, proposal.stop_step


FinishedRows = dict[tuple[UUID, int, str], CandidateRow]  # by task, budget and name

DenoiseResult = tuple[PartialEdit, dict[str, int]]
"""One edit from a call of the editor, and its `nfe`, `elapsed_ms` and `images_in_call`."""


class SearchPlan(Protocol):
    """How tasks are searched; `nfe` are the budgets in denoising steps."""

    @property
    def editor(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def negative_prompt(self) -> str | None: ...
    @property
    def nfe(self) -> tuple[int, ...]: ...
    def search(self, method: str, budget: int, task: str, position: int = 0) -> Search:
        """Return the search of the task with this name and position; `budget` in denoising steps."""
        ...


@dataclass(frozen=True)
class SearchRunner:
    """The searches of some tasks by one method.

    Their images lie in `folder` of the image root; `score` computes the scores that the searches select by.
    """

    work: Work
    plan: SearchPlan
    method: str
    tasks: Sequence[EditTaskRow]
    folder: str = "edits"
    score: Callable[[Work, Sequence[EditTaskRow], Sequence[CandidateRow]], None] = metrics.score_selecting

    def run(self, on_progress: Callable[[int], Any]) -> None:
        """Run every search to its end; `on_progress` is called with the denoising steps of each call of the editor."""
        for batch in {task.batch for task in self.tasks}:
            self.work.store.discard_unfinished(self._folder(batch))
        while True:
            self.score(self.work, self.tasks, self.candidates())
            candidates = self.candidates()
            requests = list(self.requests(candidates))
            if not requests:
                return
            self.denoise(requests, candidates, on_progress)

    def candidates(self) -> list[CandidateRow]:
        """Return all candidates so far, with their scores."""
        with self.work.database.begin(reading=True) as connection:
            of_batches = edits.edit_candidates_of(connection, {task.batch for task in self.tasks}, self.method)
        ids = {task.id for task in self.tasks}
        return [candidate for candidate in of_batches if candidate.task in ids]

    def remaining_nfe(self, candidates: Sequence[CandidateRow]) -> int:
        """Return the denoising steps that the searches have still to run."""
        return sum(self.plan.nfe) * len(self.tasks) - sum(candidate.nfe for candidate in candidates)

    def requests(self, candidates: Sequence[CandidateRow]) -> Iterator[DenoiseRequest]:
        """Yield the next proposals of all searches."""
        for task, budget, own in self._group_by_search(candidates):
            search = self.plan.search(self.method, budget, task.name, task.position)
            for proposal in search.ask(_search_candidates(own)):
                yield DenoiseRequest(task, budget, proposal)

    def winners(self, candidates: Sequence[CandidateRow]) -> Iterator[CandidateRow]:
        """Yield the winner of each search that has a finished candidate."""
        for task, budget, own in self._group_by_search(candidates):
            best = self.plan.search(self.method, budget, task.name, task.position).select(_search_candidates(own))
            yield from (c for c in own if best and (c.name, c.stop_step) == (best.name, best.stop_step))

    def _group_by_search(
        self, candidates: Sequence[CandidateRow]
    ) -> Iterator[tuple[EditTaskRow, int, list[CandidateRow]]]:
        by_search: dict[tuple[UUID, int], list[CandidateRow]] = defaultdict(list)
        for candidate in candidates:
            by_search[candidate.task, candidate.budget].append(candidate)
        for task, budget in product(self.tasks, self.plan.nfe):
            yield task, budget, by_search[task.id, budget]

    def denoise(
        self, requests: Sequence[DenoiseRequest], candidates: Sequence[CandidateRow], on_progress: Callable[[int], Any]
    ) -> None:
        """Run the requests, one call of the editor after another; `candidates` are those that exist already."""
        self.work.store.check()
        editor: Editor = self.work.slot.get(registry.find_editor(self.plan.editor, self.work.settings))
        halving = HalvingBatches(editor.batch_size)
        finished = {(c.task, c.budget, c.name): c for c in candidates if c.finished}
        in_order = sorted(requests, key=lambda request: request.call_key)
        for _, group in groupby(in_order, key=lambda request: request.call_key):
            for call in split_chunks(list(group), editor.batch_size):
                steps_before = editor.steps_run
                rows = list(self._run_call(editor, halving, call, finished))
                with self.work.database.begin() as connection:
                    edits.add_candidates(connection, rows)
                on_progress(editor.steps_run - steps_before)

    def _run_call(
        self, editor: Editor, halving: HalvingBatches, requests: Sequence[DenoiseRequest], finished: FinishedRows
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of one call of the editor, with an image or with the error."""

        def denoise(inputs: Sequence[EditRequest | PartialEdit]) -> list[DenoiseResult]:
            started, steps_before = time.perf_counter(), editor.steps_run
            edited = editor.denoise(inputs, inputs[0].step + requests[0].proposal.nfe)
            elapsed_ms = round(1000 * (time.perf_counter() - started) / len(inputs))
            # By the editor's own counter; a call runs the same number of steps for each image.
            nfe = (editor.steps_run - steps_before) // len(inputs)
            costs = {"nfe": nfe, "elapsed_ms": elapsed_ms, "images_in_call": len(inputs)}
            return [(edit, costs) for edit in edited]

        try:
            canvas = Canvas.read(requests[0].task, self.work.store)
            inputs = self._editor_inputs(requests, finished, canvas, canvas.cropped_mask if editor.inpaints else None)
        except FlexyError as error:
            yield from (self._candidate_row(request) | {"nfe": 0, "error": str(error)} for request in requests)
            return
        for request, result in zip(requests, halving(denoise, inputs), strict=True):
            yield self._candidate_row(request) | self._save_result(request, result, canvas)

    def _editor_inputs(
        self, requests: Sequence[DenoiseRequest], finished: FinishedRows, canvas: Canvas, mask: Image | None
    ) -> list[EditRequest | PartialEdit]:
        """Return the editor's input for each request. Raises `FlexyError` where an image or latents are missing."""
        store, task = self.work.store, requests[0].task
        source = canvas.crop(canvas.source)
        previews = {each: self._id(each, each.proposal.start_step) for each in requests if each.proposal.start_step}
        with self.work.database.begin(reading=True) as connection:
            stored_latents = edits.latents_of(connection, previews.values())
        inputs: list[EditRequest | PartialEdit] = []
        for request in requests:
            proposal, parent = request.proposal, None
            if proposal.strength < 1:
                parent_row = finished[task.id, request.budget, proposal.parent or ""]
                parent = canvas.crop(store.read(parent_row.image_path or "", parent_row.image_sha256))
            plan, noise = self.plan, proposal.noise
            settings = plan.negative_prompt, plan.steps, plan.guidance
            edit = EditRequest(source, task.prompt, *settings, noise, mask, parent, proposal.strength)
            if request not in previews:
                inputs.append(edit)
            elif latents := stored_latents.get(previews[request]):
                array = np.load(io.BytesIO(latents), allow_pickle=False)
                inputs.append(PartialEdit(edit, edit.step + proposal.start_step, array, source))
            else:
                raise FlexyError(f"cannot continue candidate {proposal.name}: its latents are missing")
        return inputs

    def _folder(self, batch: str) -> str:
        return f"{self.folder}/{batch}/{self.method}"

    def _id(self, request: DenoiseRequest, stop_step: int) -> UUID:
        return edits.candidate_id(request.task.id, self.method, request.budget, request.proposal.name, stop_step)

    def _candidate_row(self, request: DenoiseRequest) -> dict[str, Any]:
        """Return the row of `edit_candidates` without a result."""
        proposal, noise = request.proposal, request.proposal.noise
        return {
            **{"id": self._id(request, proposal.stop_step), "task": request.task.id, "method": self.method},
            **{name: getattr(proposal, name) for name in ("name", "stage", "parent", "strength")},
            **{"budget": request.budget, "seed": noise.seed, "moves": noise.moves},
            **{"until": proposal.stop_step, "path": proposal.num_steps},
            **dict.fromkeys(("image_path", "image_sha256", "latents", "error", "elapsed_ms", "images_in_call")),
        }

    def _save_result(
        self, request: DenoiseRequest, result: DenoiseResult | FlexyError, canvas: Canvas
    ) -> dict[str, Any]:
        """Write the image and return the row's result; the image is written first, so that no row lacks its file."""
        if isinstance(result, FlexyError):
            return {"nfe": 0, "error": str(result)}
        proposal, task, (edit, costs) = request.proposal, request.task, result
        name = f"{task.position:05d}_{request.budget}_{proposal.name}_{proposal.stop_step}.png"
        path = f"{self._folder(task.batch)}/{name}"
        latents = io.BytesIO()
        if not proposal.finishes:
            np.save(latents, edit.latents, allow_pickle=False)
        sha256 = self.work.store.write(path, canvas.paste(edit.image))
        return costs | {"image_path": path, "image_sha256": sha256, "latents": latents.getvalue() or None}


def _search_candidates(rows: Sequence[CandidateRow]) -> list[SearchCandidate]:
    return [SearchCandidate(row.name, row.stop_step, row.nfe, row.scores) for row in rows]
