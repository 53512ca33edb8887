"""Pushes winners to Label Studio as predictions, each once, and stores the server's answers."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin
from uuid import UUID
from xml.etree import ElementTree

from flexy_assets.inpaint.plan import InpaintPlan
from flexy_assets.storage import labels
from flexy_assets.storage.labels import SelectedImage, SentPrediction
from resources.database import Database
from resources.errors import FlexyError
from resources.images import ImageStore, UnreadableImageError
from resources.label_studio.client import LabelStudioClient, LabelStudioRefusedError, Prediction

OUTCOMES = ("created", "replaced", "unchanged", "unsent")  # of a prediction's push; `unsent` has an error

_IMAGE_FIELD = re.compile("result|image|picture|url|link|candidate|prediction|output", re.IGNORECASE)
_TASK_ERRORS = (400, 404, 413)  # HTTP status codes of one task; any other would fail for every task


@dataclass(frozen=True)
class FormField:
    """A text field of a labelling form, and the object that it annotates."""

    name: str
    to_name: str


def find_text_field(label_config: str) -> FormField | None:
    """Return the form's text field (TextArea) for an image's URL: by its name, else the first; None without one.

    A prediction holds only values of fields, so a form without a text field shows nothing but its score.
    """
    try:
        form = ElementTree.fromstring(label_config)
    except ElementTree.ParseError:
        return None
    fields = [
        FormField(area.attrib["name"], area.attrib["toName"])
        for area in form.iter("TextArea")
        if area.get("name") and area.get("toName") and area.get("perRegion", "").lower() != "true"
    ]
    return next((field for field in fields if _IMAGE_FIELD.search(field.name)), fields[0] if fields else None)


def prediction_regions(field: FormField | None, url: str) -> list[dict[str, Any]]:
    """Return a prediction's result that shows the URL, empty without a field. Flexy never submits a verdict."""
    region = {"type": "textarea", "value": {"text": [url]}}
    return [{"from_name": field.name, "to_name": field.to_name, **region}] if field else []


def prediction_score(selected: SelectedImage) -> float | None:
    """Return the potential scaled from 0, the lowest that its weights allow, to 1, the highest.

    Label Studio rejects other values when predictions are imported as a file.
    """
    potential, (lowest, highest) = selected.scores.get("potential"), InpaintPlan.from_json(selected.plan).bounds
    if potential is None or lowest == highest:
        return None
    return min(1.0, max(0.0, (potential - lowest) / (highest - lowest)))


def prediction_document(
    selected: Sequence[SelectedImage], sent: Sequence[SentPrediction], model_version: str = ""
) -> list[dict[str, Any]]:
    """Return the winners in Label Studio's import format (POST api/projects/N/import/predictions), of all projects.

    Tasks without a Label Studio id are not included. Our own key `picture` is relative to the image root.
    """
    known = {(each.task, each.model_version, each.candidate): each.result for each in sent if each.outcome}
    return [
        {"task": image.task.label_studio_id, "project": image.task.project, "model_version": version}
        | {"score": prediction_score(image), "result": known.get((image.task.id, version, image.candidate), [])}
        | {"picture": image.image_path}
        for image, version in last_by_version(selected, model_version)
        if image.task.label_studio_id is not None
    ]


def last_by_version(selected: Sequence[SelectedImage], model_version: str) -> list[tuple[SelectedImage, str]]:
    """Return each task's last winner of each model version with that version, in the order of tasks."""
    last: dict[tuple[UUID, str], SelectedImage] = {}
    for image in sorted(selected, key=lambda image: image.selected_at):
        last[image.task.id, model_version or f"flexy/{image.plan['editor']}"] = image
    pairs = [(image, version) for (_, version), image in last.items()]
    return sorted(pairs, key=lambda pair: (pair[0].task.batch, pair[0].task.position, pair[1]))


@dataclass
class PredictionPusher:
    """Pushes to one server. Each answer is stored before the next request."""

    database: Database
    store: ImageStore
    studio: LabelStudioClient
    _fields: dict[int, FormField | None] = field(default_factory=dict)

    def run(
        self, selected: Sequence[SelectedImage], model_version: str, on_progress: Callable[[int], Any]
    ) -> dict[str, Counter[str]]:
        """Push the winners; return the number of created, replaced, unchanged and unsent predictions by partition.

        An error that concerns one task is stored with it; raises `FlexyError` for any other.
        """
        counts: dict[str, Counter[str]] = {}
        for image, version in last_by_version(selected, model_version):
            try:
                sent = self._push(image, version)
            except (LabelStudioRefusedError, UnreadableImageError, _UnsendableError) as error:
                if isinstance(error, LabelStudioRefusedError) and error.code not in _TASK_ERRORS:
                    raise
                message = " ".join(str(error).split())
                sent = SentPrediction(image.task.id, version, image.candidate, None, error=message)
            with self.database.begin() as connection:
                labels.record_prediction(connection, sent)
            counts.setdefault(image.task.batch, Counter())[sent.outcome or "unsent"] += 1
            on_progress(1)
        return counts

    def _push(self, image: SelectedImage, version: str) -> SentPrediction:
        task_id, project = image.task.label_studio_id, image.task.project
        if task_id is None or project is None:
            raise _UnsendableError("its export names no task id or project: import it from the server")
        if project not in self._fields:
            self._fields[project] = find_text_field(self.studio.label_config(project))
        content = self.store.content(image.image_path, image.image_sha256)
        path = self.studio.upload(project, content, PurePosixPath(image.image_path).suffix[1:] or "png")
        result = prediction_regions(self._fields[project], urljoin(self.studio.url, path))
        score = prediction_score(image)
        pushed = self.studio.push(Prediction(task_id, version, score, result))
        payload = json.dumps([task_id, version, score, result, str(image.candidate)])
        digest = hashlib.sha256(payload.encode()).hexdigest()
        sent = image.task.id, version, image.candidate, score, result, digest
        return SentPrediction(*sent, pushed.id, pushed.action)


class _UnsendableError(FlexyError):
    """A task's prediction cannot be sent."""
