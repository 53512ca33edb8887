"""Imports a Label Studio project's tasks into the table, with their images and masks.

Each image is recorded when it is fetched, and each task when its images are complete, so a killed import resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np

from flexy_assets.inpaint.review import verdict_counts
from flexy_assets.storage import labels
from flexy_assets.storage.labels import LabelTaskRow
from resources.chunks import split_chunks
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.http.downloads import ImageDownloader, download_images
from resources.images import ImageStore
from resources.label_studio.client import LabelStudioClient
from resources.label_studio.export import LabelTask, TaskProblem, parse_tasks, read_export_file, strip_signature
from resources.masks import Mask, MaskError, decode_rle, fit_mask, mask_from_image
from resources.settings import Settings

TASKS_PER_CHUNK = 8  # whose images are fetched together
DOWNLOAD_THREADS = 4  # concurrent downloads: the most that a kill costs

StoredFile = tuple[str, str]  # path and SHA-256 of an image in the image store


@dataclass(frozen=True)
class TaskSource:
    """Tasks as they were read, the problems of others, and the folder of relative image paths."""

    tasks: Sequence[LabelTask]
    problems: Sequence[TaskProblem]
    folder: Path | None = None

    def only(self, names: Sequence[str], origin: str) -> TaskSource:
        """Return the tasks with these names, all without names. Raises `BadInputError` for an unknown name."""
        if not names:
            return self
        known = {task.id for task in self.tasks} | {problem.id for problem in self.problems}
        if unknown := [name for name in dict.fromkeys(names) if name not in known]:
            raise BadInputError(f"no task {', '.join(unknown)[:200]} in {origin}: name tasks by their data.id")
        tasks = [task for task in self.tasks if task.id in names]
        return TaskSource(tasks, [problem for problem in self.problems if problem.id in names], self.folder)


def source_from_export(path: Path) -> TaskSource:
    """Return the tasks of an export file; raises as `read_export_file`."""
    return TaskSource(*read_export_file(path), path.parent)


def source_from_project(studio: LabelStudioClient, project: int) -> TaskSource:
    """Return the tasks of a project on the server."""
    return TaskSource(*parse_tasks(studio.tasks(project)))


@dataclass
class ImportResult:
    """The tasks of the source as they are now, and how many of them and of their images are new."""

    tasks: list[LabelTaskRow]
    new: int
    changed: int = 0
    fetched: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def batches(self) -> list[str]:
        return sorted({task.batch for task in self.tasks})

    @property
    def usable(self) -> int:
        """The number of tasks without an error."""
        return sum(task.error is None for task in self.tasks)


@dataclass(frozen=True)
class ImportSummary:
    """An import in the words of the command and the UI; `skipped` entries have `id` or `entry`, and `reason`."""

    result: ImportResult
    skipped: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    verdicts: Mapping[str, int]


@dataclass
class TaskImporter:
    """One import: `reserve` assigns the source's tasks to partitions, `fetch` fetches their images."""

    database: Database
    store: ImageStore
    settings: Settings
    source: TaskSource

    def __post_init__(self) -> None:
        has_server = self.settings.label_studio_url and self.settings.label_studio_key
        self._server = LabelStudioClient.from_settings(self.settings) if has_server else None
        self._downloads = ImageDownloader(self.settings.allowed_hosts, self._server)
        # Many tasks share a character: a failed download is tried once.
        self._failed: dict[str, FlexyError] = {}

    def reserve(self, batch_size: int) -> ImportResult:
        """Assign new tasks to partitions, and update the verdicts of known ones."""
        rows = [_task_row(task) for task in self.source.tasks]
        with self.database.begin() as connection:
            new = labels.reserve_batches(connection, rows, batch_size)
            labels.refresh_label_tasks(connection, rows)
        return ImportResult(self._stored_tasks(), new)

    def _stored_tasks(self) -> list[LabelTaskRow]:
        """Return the source's tasks as they are in the table."""
        ids = {labels.label_task_id(task.project, task.id) for task in self.source.tasks}
        with self.database.begin(reading=True) as connection:
            return [task for task in labels.label_tasks_of(connection) if task.id in ids]

    def fetch(self, imported: ImportResult, on_progress: Callable[[int], Any]) -> ImportResult:
        """Fetch the images of tasks that are new, changed, failed or incomplete; `on_progress` counts tasks."""
        rows = {task.id: task for task in imported.tasks}
        pairs = [(rows[labels.label_task_id(task.project, task.id)], task) for task in self.source.tasks]
        incomplete = self._incomplete_tasks(list(rows.values()))
        pending = [(row, task) for row, task in pairs if row.digest != task.digest or row.error or row.id in incomplete]
        imported.changed = sum(row.digest != task.digest for row, task in pending)
        on_progress(len(pairs) - len(pending))
        for chunk in split_chunks(pending, TASKS_PER_CHUNK):
            files, fetched = self._fetch_images([url for _, task in chunk for url in _image_urls(task).values()])
            imported.fetched += fetched
            for row, task in chunk:
                completed, notes = self._complete_task(row, task, files)
                imported.notes += [f"task {task.id}: {note}" for note in notes]
                with self.database.begin() as connection:
                    labels.save_label_task(connection, completed)
                on_progress(1)
        imported.tasks = self._stored_tasks()
        return imported

    def _incomplete_tasks(self, rows: Sequence[LabelTaskRow]) -> set[Any]:
        """Return the ids of tasks with a missing file."""
        paths = list(dict.fromkeys(path for row in rows for path in row.files))
        errors = self.store.verify_many([(path, None) for path in paths])
        missing = {path for path, error in zip(paths, errors, strict=True) if error}
        return {row.id for row in rows if missing & set(row.files)}

    def _fetch_images(self, urls: Sequence[str]) -> tuple[dict[str, StoredFile | FlexyError], int]:
        """Return the image or the error of each URL or path, and the number of images that were downloaded."""
        urls_by_key: dict[str, list[str]] = {}
        for url in dict.fromkeys(urls):
            urls_by_key.setdefault(self._download_key(url) or url, []).append(url)
        with self.database.begin(reading=True) as connection:
            stored = labels.stored_pictures(connection, list(urls_by_key))
        errors = self.store.verify_many(list(stored.values()))
        files: dict[str, StoredFile | FlexyError] = {
            key: file for (key, file), error in zip(stored.items(), errors, strict=True) if not error
        }
        missing = [key for key in urls_by_key if key not in files]
        with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
            files |= zip(missing, pool.map(lambda key: self._fetch_image(key, urls_by_key[key]), missing), strict=True)
        available = [key for key in missing if not isinstance(files[key], FlexyError)]
        fetched = sum(self._download_key(urls_by_key[key][0]) == key for key in available)
        return {url: files[key] for key, group in urls_by_key.items() for url in group}, fetched

    def _fetch_image(self, key: str, urls: Sequence[str]) -> StoredFile | FlexyError:
        """Return the image from the first of these URLs that works; they differ only in their signatures."""
        for url in (url for url in urls if url not in self._failed):
            file = download_images(self.store, "labels", [url], self._downloads, self.source.folder, 1)[url]
            if isinstance(file, FlexyError):
                self._failed[url] = file
                continue
            if self._download_key(url):
                with self.database.begin() as connection:
                    labels.record_picture(connection, key, *file)
            return file
        return self._failed[urls[-1]]

    def _download_key(self, url: str) -> str | None:
        """Return the key of a downloaded image; None for a local file, which is always read."""
        if not self._downloads.is_url(url):
            return None
        if self._server and url.startswith("/"):
            url = urljoin(self._server.url, url)
        return hashlib.sha256(strip_signature(url).encode("utf-8", "replace")).hexdigest()

    def _complete_task(
        self, row: LabelTaskRow, task: LabelTask, fetched: dict[str, StoredFile | FlexyError]
    ) -> tuple[LabelTaskRow, list[str]]:
        """Return the task with its images and mask, or with its error; and notes on optional images."""
        empty, notes = replace(_task_row(task), batch=row.batch, position=row.position), []
        files = {name: fetched[url] for name, url in _image_urls(task).items()}
        if isinstance(final := files.pop("final", None), FlexyError):
            notes.append(f"no final image: {_single_line(final)}")
            final = None
        readable: dict[str, StoredFile] = {}
        for name, file in files.items():
            if isinstance(file, FlexyError):
                return replace(empty, error=f"{name} image: {_single_line(file)}"), notes
            readable[name] = file
        scene, character = readable["scene"], readable["character"]
        try:
            width, height = self.store.read(*scene).size
            self.store.read(*character)
            mask = _store_mask(self.store, fit_mask(self._read_mask(task, readable.get("mask")), width, height))
        except FlexyError as error:
            return replace(empty, error=_single_line(error)), notes
        stored = {"image": scene, "mask": mask, "character": character, "final": final}
        paths: dict[str, Any] = {f"{name}_path": file[0] for name, file in stored.items() if file}
        digests: dict[str, Any] = {f"{name}_sha256": file[1] for name, file in stored.items() if file}
        return replace(empty, **paths, **digests), notes

    def _read_mask(self, task: LabelTask, file: StoredFile | None) -> Mask:
        """Return the painted mask, which is newer than the mask image, or else the mask image."""
        if not file:
            strokes = [decode_rle(stroke.rle, stroke.width, stroke.height) for stroke in task.strokes]
            if len({stroke.shape for stroke in strokes}) > 1:
                raise MaskError("the mask is painted on images of different sizes: paint on the scene alone")
            union: Mask = np.logical_or.reduce(strokes)
            return union
        return mask_from_image(self.store.read_as_is(*file))


def refresh_tasks(database: Database, source: TaskSource) -> None:
    """Update the verdicts of known tasks from the source."""
    with database.begin() as connection:
        labels.refresh_label_tasks(connection, [_task_row(task) for task in source.tasks])


def summarize_import(source: TaskSource, imported: ImportResult) -> ImportSummary:
    """Return the summary of an import: skipped tasks with the reason, notes on others, and all verdicts."""
    left_out = [problem for problem in source.problems if problem.left_out]
    skipped = [{"id": problem.id, "entry": problem.entry or None, "reason": problem.reason} for problem in left_out]
    skipped += [{"id": task.name, "entry": None, "reason": task.error} for task in imported.tasks if task.error]
    notes = [str(problem) for problem in source.problems if not problem.left_out] + imported.notes
    return ImportSummary(imported, skipped, notes, verdict_counts(task.verdicts for task in imported.tasks))


def _image_urls(task: LabelTask) -> dict[str, str]:
    """Return the URLs or paths of the task's images; a painted mask replaces the mask image."""
    urls = {"scene": task.init_image, "character": task.character_image}
    urls |= {} if task.strokes else {"mask": task.mask_image}
    return urls | ({"final": task.final_image} if task.final_image else {})


def _task_row(task: LabelTask) -> LabelTaskRow:
    """Return a task's row without images and partition."""
    key, character = labels.label_task_id(task.project, task.id), (task.character_id, task.character_name)
    return LabelTaskRow(key, task.id, task.project, task.task, *character, task.prompt, task.digest, task.verdicts)


def _store_mask(store: ImageStore, mask: Mask) -> StoredFile:
    """Write the mask as an 8-bit image, once per content."""
    from PIL import Image

    digest = hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()
    path = f"labels/masks/{digest[:32]}.png"
    return path, store.write(path, Image.fromarray(mask.astype(np.uint8) * 255))


def _single_line(error: Exception) -> str:
    return " ".join(str(error).split())
