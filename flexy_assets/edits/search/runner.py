"""Runs the searches of many tasks in step: what all ask for is made together, then measured together.

Every call of the editor is committed, with its pictures, before the next, and a search decides by what is in the
table; so a comparison that was killed goes on where it stood, and nothing is made twice.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import numpy as np

from flexy_assets.edits import metrics
from flexy_assets.edits.search.canvas import Canvas
from flexy_assets.edits.search.protocol import Proposal, Search, SearchCandidate
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.edits import CandidateRow, EditTaskRow
from resources.engines import Editor, EditRequest, PartialEdit
from resources.errors import FlexyError
from resources.models import registry
from resources.models.compute import HalvingBatches

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class DenoiseRequest:
    """What the search of one task at one budget (NFE) asks for."""

    task: EditTaskRow
    budget: int
    proposal: Proposal

    @property
    def call(self) -> tuple[Any, ...]:
        """Equal for what one call of the editor can make."""
        return self.task.batch, self.task.position, self.proposal.path, self.proposal.start, self.proposal.until


@dataclass(frozen=True)
class DenoiseResult:
    """What a call of the editor made of one."""

    edit: PartialEdit
    nfe: int
    elapsed_ms: int
    images_in_call: int


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
        """The search of the task of this name at this place of its set; `budget` in denoising steps."""
        ...


@dataclass(frozen=True)
class SearchRunner:
    """The searches by one method, of some tasks.

    Their pictures lie in `folder` of the image root; `measure` measures what the searches choose by.
    """

    work: Work
    plan: SearchPlan
    method: str
    tasks: Sequence[EditTaskRow]
    folder: str = "edits"
    measure: Callable[[Work, Sequence[EditTaskRow], Sequence[CandidateRow]], None] = metrics.score_selecting

    def run(self, on_progress: Callable[[int], Any]) -> None:
        """Run every search to its end; `on_progress` is called with the denoising steps of each call of the editor."""
        for batch in {task.batch for task in self.tasks}:
            self.work.store.discard_unfinished(self._folder(batch))
        while True:
            self.measure(self.work, self.tasks, self.made())
            made = self.made()
            asked = list(self.asked(made))
            if not asked:
                return
            self.make(asked, made, on_progress)

    def made(self) -> list[CandidateRow]:
        """What was made, with what was measured of it."""
        with self.work.database.begin(reading=True) as connection:
            found = edits.edit_candidates_of(connection, {task.batch for task in self.tasks}, self.method)
        mine = {task.id for task in self.tasks}
        return [candidate for candidate in found if candidate.task in mine]

    def asked(self, made: Sequence[CandidateRow]) -> Iterator[DenoiseRequest]:
        """What the searches want next."""
        for task, budget, of_search in self._searches(made):
            for proposal in self.plan.search(self.method, budget, task.name, task.position).ask(
                _observations_of(of_search)
            ):
                yield DenoiseRequest(task, budget, proposal)

    def winners(self, made: Sequence[CandidateRow]) -> Iterator[CandidateRow]:
        """Whom each search chooses; nobody where nothing is finished."""
        for task, budget, of_search in self._searches(made):
            best = self.plan.search(self.method, budget, task.name, task.position).choose(_observations_of(of_search))
            yield from (c for c in of_search if best and (c.name, c.until) == (best.name, best.until))

    def _searches(self, made: Sequence[CandidateRow]) -> Iterator[tuple[EditTaskRow, int, list[CandidateRow]]]:
        by_search: dict[tuple[UUID, int], list[CandidateRow]] = {}
        for candidate in made:
            by_search.setdefault((candidate.task, candidate.budget), []).append(candidate)
        for task in self.tasks:
            for budget in self.plan.nfe:
                yield task, budget, by_search.get((task.id, budget), [])

    def make(
        self, asked: Sequence[DenoiseRequest], made: Sequence[CandidateRow], on_progress: Callable[[int], Any]
    ) -> None:
        """Make what was asked for, one call of the editor after another; `made` is what there was before."""
        self.work.store.check()
        editor: Editor = self.work.slot.get(registry.find_editor(self.plan.editor, self.work.settings))
        halving = HalvingBatches(editor.batch_size)
        finished = {(c.task, c.budget, c.name): c for c in made if c.until == c.path}
        for _, group in groupby(sorted(asked, key=lambda each: each.call), key=lambda each: each.call):
            alike = list(group)
            for first in range(0, len(alike), editor.batch_size):
                some, before = alike[first : first + editor.batch_size], editor.steps_run
                rows = list(self._rows(editor, halving, some, finished))
                with self.work.database.begin() as connection:
                    edits.add_candidates(connection, rows)
                on_progress(editor.steps_run - before)

    def _rows(
        self,
        editor: Editor,
        halving: HalvingBatches,
        some: Sequence[DenoiseRequest],
        finished: dict[tuple[UUID, int, str], CandidateRow],
    ) -> Iterator[dict[str, Any]]:
        """The rows of what the editor made in one call, or why it could not."""

        def timed(begun: Sequence[EditRequest | PartialEdit]) -> list[DenoiseResult]:
            began, before = time.perf_counter(), editor.steps_run
            until = begun[0].step + some[0].proposal.nfe
            edits = editor.denoise(begun, until)
            elapsed_ms = round(1000 * (time.perf_counter() - began) / len(begun))
            # By the editor's own count; a call runs as many steps for each.
            nfe = (editor.steps_run - before) // len(begun)
            return [DenoiseResult(edit, nfe, elapsed_ms, len(begun)) for edit in edits]

        try:
            canvas = Canvas.of(some[0].task, self.work.store)
            begun = self._begun(some, finished, canvas, canvas.stencil if editor.inpaints else None)
        except FlexyError as error:
            yield from (self._row(asked) | {"nfe": 0, "error": str(error)} for asked in some)
            return
        for asked, result in zip(some, halving(timed, begun), strict=True):
            yield self._row(asked) | self._made(asked, result, canvas)

    def _begun(
        self,
        some: Sequence[DenoiseRequest],
        finished: dict[tuple[UUID, int, str], CandidateRow],
        canvas: Canvas,
        mask: Image | None,
    ) -> list[EditRequest | PartialEdit]:
        """What the editor is to go on from. Raises `FlexyError` where a picture or latents are lost."""
        store, task = self.work.store, some[0].task
        source = canvas.shown(canvas.source)
        previews = {each: self._id(each, each.proposal.start) for each in some if each.proposal.start}
        with self.work.database.begin(reading=True) as connection:
            kept = edits.latents_of(connection, previews.values())
        begun: list[EditRequest | PartialEdit] = []
        for each in some:
            proposal, parent = each.proposal, None
            if proposal.strength < 1:
                varied = finished[task.id, each.budget, proposal.parent or ""]
                parent = canvas.shown(store.read(varied.image_path or "", varied.image_sha256))
            request = EditRequest(
                image=source,
                prompt=task.prompt,
                negative_prompt=self.plan.negative_prompt,
                steps=self.plan.steps,
                guidance=self.plan.guidance,
                noise=proposal.noise,
                mask=mask,
                parent=parent,
                strength=proposal.strength,
            )
            if each not in previews:
                begun.append(request)
            elif previews[each] in kept:
                latents = np.load(io.BytesIO(kept[previews[each]]), allow_pickle=False)
                begun.append(PartialEdit(request, request.step + proposal.start, latents, source))
            else:
                raise FlexyError(f"the latents of {proposal.name} are gone: it cannot be carried on")
        return begun

    def _folder(self, batch: str) -> str:
        return f"{self.folder}/{batch}/{self.method}"

    def _id(self, asked: DenoiseRequest, until: int) -> UUID:
        return edits.candidate_id(asked.task.id, self.method, asked.budget, asked.proposal.name, until)

    def _row(self, asked: DenoiseRequest) -> dict[str, Any]:
        """The row of `edit_candidates`, nothing made yet."""
        proposal, task = asked.proposal, asked.task
        return {
            "id": self._id(asked, proposal.until),
            "task": task.id,
            "method": self.method,
            "budget": asked.budget,
            "name": proposal.name,
            "stage": proposal.stage,
            "seed": proposal.noise.seed,
            "moves": proposal.noise.moves,
            "parent": proposal.parent,
            "strength": proposal.strength,
            "until": proposal.until,
            "path": proposal.path,
            **dict.fromkeys(("image_path", "image_sha256", "latents", "error", "elapsed_ms", "images_in_call")),
        }

    def _made(self, asked: DenoiseRequest, result: DenoiseResult | FlexyError, canvas: Canvas) -> dict[str, Any]:
        """What a row says of what was made; the picture is written first, so that a row never lacks its file."""
        if isinstance(result, FlexyError):
            return {"nfe": 0, "error": str(result)}
        proposal, task = asked.proposal, asked.task
        name = f"{task.position:05d}_{asked.budget}_{proposal.name}_{proposal.until}.png"
        path = f"{self._folder(task.batch)}/{name}"
        latents = io.BytesIO()
        if not proposal.finishes:
            np.save(latents, result.edit.latents, allow_pickle=False)
        return {
            "nfe": result.nfe,
            "image_path": path,
            "image_sha256": self.work.store.write(path, canvas.filled(result.edit.image)),
            "latents": latents.getvalue() or None,
            "elapsed_ms": result.elapsed_ms,
            "images_in_call": result.images_in_call,
        }


def _observations_of(made: Sequence[CandidateRow]) -> list[SearchCandidate]:
    return [SearchCandidate(c.name, c.until, c.nfe, c.scores) for c in made]
