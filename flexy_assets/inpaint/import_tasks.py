"""Brings a Label Studio project's tasks into the table, with their pictures and masks.

Each picture is recorded as it comes and each task as its pictures are there, so whoever is killed goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np

from flexy_assets.storage import labels
from flexy_assets.storage.labels import LabelTaskRow
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.http.downloads import ImageDownloader, download_images
from resources.images import ImageStore
from resources.label_studio.client import LabelStudioClient
from resources.label_studio.export import LabelTask, TaskProblem, parse_tasks, read_export_file, strip_signature
from resources.masks import Mask, MaskError, decode_rle, fit_mask, mask_from_image
from resources.settings import Settings

TASKS_PER_CHUNK = 8
"""Tasks whose pictures are asked for together."""

DOWNLOAD_THREADS = 4
"""Pictures under way at a time: what a kill costs at most."""

StoredFile = tuple[str, str]
"""Path and SHA-256 of a picture in the image store."""


@dataclass(frozen=True)
class TaskSource:
    """The tasks that were read, what is wrong with others, and the folder that relative pictures lie in."""

    tasks: Sequence[LabelTask]
    problems: Sequence[TaskProblem]
    folder: Path | None = None

    def only(self, names: Sequence[str], where: str) -> TaskSource:
        """Those of these names, if there are any. Raises `BadInputError` for one that is not there."""
        if not names:
            return self
        there = {task.id for task in self.tasks} | {problem.id for problem in self.problems}
        if strangers := [name for name in dict.fromkeys(names) if name not in there]:
            raise BadInputError(f"no task {', '.join(strangers)[:200]} in {where}: name tasks by their data.id")
        tasks = [task for task in self.tasks if task.id in names]
        return TaskSource(tasks, [problem for problem in self.problems if problem.id in names], self.folder)


def source_from_export(path: Path) -> TaskSource:
    """The tasks of an export file; raises as `read_export`."""
    return TaskSource(*read_export_file(path), path.parent)


def source_from_project(studio: LabelStudioClient, project: int) -> TaskSource:
    """The tasks of a project on the server."""
    return TaskSource(*parse_tasks(studio.tasks(project)))


@dataclass
class ImportResult:
    """What an import did: the tasks of the source as they are now, and how much of it was new."""

    tasks: list[LabelTaskRow]
    new: int
    changed: int = 0
    fetched: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def batches(self) -> list[str]:
        return sorted({task.batch for task in self.tasks})


@dataclass
class TaskImporter:
    """One import: `reserve` gives the source's tasks their places in the table, `fetch` fills them."""

    database: Database
    store: ImageStore
    settings: Settings
    source: TaskSource

    def __post_init__(self) -> None:
        """See the class."""
        named = self.settings.label_studio_url and self.settings.label_studio_key
        self._server = LabelStudioClient.from_settings(self.settings) if named else None
        self._downloads = ImageDownloader(self.settings.allowed_hosts, self._server)
        # Many tasks share a character: what could not be had is asked for once.
        self._failed: dict[str, FlexyError] = {}

    def reserve(self, batch_size: int) -> ImportResult:
        """Give new tasks their batches, and bring the verdicts of known ones up to date."""
        read = [_as_read(task) for task in self.source.tasks]
        with self.database.begin() as connection:
            new = labels.reserve_batches(connection, read, batch_size)
            labels.refresh_label_tasks(connection, read)
        return ImportResult(self._now(), new)

    def _now(self) -> list[LabelTaskRow]:
        """The source's tasks as the table holds them."""
        ids = {labels.label_task_id(task.project, task.id) for task in self.source.tasks}
        with self.database.begin(reading=True) as connection:
            return [task for task in labels.label_tasks_of(connection) if task.id in ids]

    def fetch(self, imported: ImportResult, on_progress: Callable[[int], Any]) -> ImportResult:
        """Fetch the files of tasks that are new, changed, in error or incomplete; `on_progress` is called for each."""
        rows = {task.id: task for task in imported.tasks}
        pairs = [(rows[labels.label_task_id(task.project, task.id)], task) for task in self.source.tasks]
        lost = self._lost([row for row, _ in pairs])
        wanted = [(row, task) for row, task in pairs if row.digest != task.digest or row.error or row.id in lost]
        imported.changed = sum(row.digest != task.digest for row, task in wanted)
        on_progress(len(pairs) - len(wanted))
        for first in range(0, len(wanted), TASKS_PER_CHUNK):
            piece = wanted[first : first + TASKS_PER_CHUNK]
            brought, fetched = self._bring([place for _, task in piece for place in _places(task).values()])
            imported.fetched += fetched
            for row, task in piece:
                filled, notes = self._filled(row, task, brought)
                imported.notes += [f"task {task.id}: {note}" for note in notes]
                with self.database.begin() as connection:
                    labels.save_label_task(connection, filled)
                on_progress(1)
        imported.tasks = self._now()
        return imported

    def _lost(self, rows: Sequence[LabelTaskRow]) -> set[Any]:
        """The ids of tasks of which a file is gone."""
        paths = list(dict.fromkeys(path for row in rows for path in row.files))
        found = self.store.verify_many([(path, None) for path in paths])
        gone = {path for path, error in zip(paths, found, strict=True) if error}
        return {row.id for row in rows if gone & set(row.files)}

    def _bring(self, places: Sequence[str]) -> tuple[dict[str, StoredFile | FlexyError], int]:
        """The picture at each place, or why there is none, and how many were fetched over the network now."""
        alike: dict[str, list[str]] = {}
        for place in dict.fromkeys(places):
            alike.setdefault(self._key(place) or place, []).append(place)
        with self.database.begin(reading=True) as connection:
            known = labels.stored_pictures(connection, list(alike))
        sound = self.store.verify_many(list(known.values()))
        found: dict[str, StoredFile | FlexyError] = {
            key: file for (key, file), error in zip(known.items(), sound, strict=True) if not error
        }
        wanted = [key for key in alike if key not in found]
        with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
            found |= zip(wanted, pool.map(lambda key: self._fetched(key, alike[key]), wanted), strict=True)
        fetched = sum(self._key(alike[key][0]) == key and not isinstance(found[key], FlexyError) for key in wanted)
        return {place: found[key] for key, group in alike.items() for place in group}, fetched

    def _fetched(self, key: str, places: Sequence[str]) -> StoredFile | FlexyError:
        """The picture that is at each of these places, which are signed differently: from the first that gives it."""
        for place in places:
            if place in self._failed:
                continue
            came = download_images(self.store, "labels", [place], self._downloads, self.source.folder, 1)[place]
            if isinstance(came, FlexyError):
                self._failed[place] = came
                continue
            if self._key(place):
                with self.database.begin() as connection:
                    labels.record_picture(connection, key, *came)
            return came
        return self._failed[places[-1]]

    def _key(self, place: str) -> str | None:
        """What a picture that is fetched is known by; None for a file, which is read anew."""
        if not self._downloads.is_url(place):
            return None
        if self._server and place.startswith("/"):
            place = urljoin(self._server.url, place)
        return hashlib.sha256(strip_signature(place).encode("utf-8", "replace")).hexdigest()

    def _filled(
        self, row: LabelTaskRow, task: LabelTask, brought: dict[str, StoredFile | FlexyError]
    ) -> tuple[LabelTaskRow, list[str]]:
        """The task with its pictures and mask, or with the reason why it cannot be worked on; and what it lacks."""
        empty, notes = replace(_as_read(task), batch=row.batch, position=row.position), []
        files = {name: brought[place] for name, place in _places(task).items()}
        if isinstance(final := files.pop("final", None), FlexyError):
            notes.append(f"it has no final picture: {_line(final)}")
            final = None
        for name, file in files.items():
            if isinstance(file, FlexyError):
                return replace(empty, error=f"{name} picture: {_line(file)}"), notes
        sound = {name: file for name, file in files.items() if not isinstance(file, FlexyError)}
        try:
            width, height = self.store.read(*sound["scene"]).size
            self.store.read(*sound["character"])
            mask = fit_mask(self._mask(task, sound.get("mask")), width, height)
            masked = _stored(self.store, mask)
        except FlexyError as error:
            return replace(empty, error=_line(error)), notes
        (image, image_sha256), (character, character_sha256) = sound["scene"], sound["character"]
        final_path, final_sha256 = final or (None, None)
        filled = replace(
            empty,
            image_path=image,
            image_sha256=image_sha256,
            mask_path=masked[0],
            mask_sha256=masked[1],
            character_path=character,
            character_sha256=character_sha256,
            final_path=final_path,
            final_sha256=final_sha256,
        )
        return filled, notes

    def _mask(self, task: LabelTask, picture: StoredFile | None) -> Mask:
        """What was painted, which is newer, or else what the mask's picture shows."""
        if not picture:
            painted = [decode_rle(stroke.rle, stroke.width, stroke.height) for stroke in task.strokes]
            if len({one.shape for one in painted}) > 1:
                raise MaskError("the mask is painted on pictures of different sizes: paint on the scene alone")
            whole: Mask = np.logical_or.reduce(painted)
            return whole
        return mask_from_image(self.store.read_as_is(*picture))


def refresh_tasks(database: Database, source: TaskSource) -> int:
    """Bring the verdicts of known tasks up to date with the source; returns how many tasks it has."""
    with database.begin() as connection:
        labels.refresh_label_tasks(connection, [_as_read(task) for task in source.tasks])
    return len(source.tasks)


def skipped_reasons(source: TaskSource, imported: ImportResult) -> list[dict[str, Any]]:
    """What cannot be worked on, by `id` (or its `entry` in the list, where it has none), and the `reason`."""
    unread = [
        {"id": problem.id, "entry": problem.entry or None, "reason": problem.reason}
        for problem in source.problems
        if problem.left_out
    ]
    failed = [{"id": task.name, "entry": None, "reason": task.error} for task in imported.tasks if task.error]
    return [*unread, *failed]


def import_notes(source: TaskSource, imported: ImportResult) -> list[str]:
    """What tasks that can be worked on lack."""
    return [str(problem) for problem in source.problems if not problem.left_out] + imported.notes


def _places(task: LabelTask) -> dict[str, str]:
    """Where the task's pictures are. The picture of a mask that was painted anew is not asked for."""
    places = {"scene": task.init_image, "character": task.character_image}
    if not task.strokes:
        places["mask"] = task.mask_image
    return places | ({"final": task.final_image} if task.final_image else {})


def _as_read(task: LabelTask) -> LabelTaskRow:
    """A task as it was read, without its pictures and its place."""
    return LabelTaskRow(
        id=labels.label_task_id(task.project, task.id),
        name=task.id,
        project=task.project,
        label_studio_id=task.task,
        character_id=task.character_id,
        character_name=task.character_name,
        prompt=task.prompt,
        digest=task.digest,
        verdicts=task.verdicts,
    )


def _stored(store: ImageStore, mask: Mask) -> StoredFile:
    """The mask as a picture of 8 bits, once by its content."""
    from PIL import Image

    content = hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()
    path = f"labels/masks/{content[:32]}.png"
    return path, store.write(path, Image.fromarray(mask.astype(np.uint8) * 255))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
