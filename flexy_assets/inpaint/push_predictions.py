"""Sends what was chosen back to Label Studio, each once, and keeps what the server answered."""

from __future__ import annotations

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

_IMAGE_FIELD = re.compile("result|image|picture|url|link|candidate|prediction|output", re.IGNORECASE)
# One after another these would all be refused for the same reason, which is none of the task's.
_TEXT_FIELD = (400, 404, 413)


@dataclass(frozen=True)
class FormField:
    """A text field of a labelling form, and what it is about."""

    name: str
    to: str


def find_text_field(label_config: str) -> FormField | None:
    """The form's text field (TextArea) for a picture's address: by its name, else the first; None without one.

    A prediction can hold values of fields alone, so a form without a text field shows nothing of it but its score.
    """
    try:
        form = ElementTree.fromstring(label_config)
    except ElementTree.ParseError:
        return None
    found = [
        FormField(area.attrib["name"], area.attrib["toName"])
        for area in form.iter("TextArea")
        if area.get("name") and area.get("toName") and area.get("perRegion", "").lower() != "true"
    ]
    return next((one for one in found if _IMAGE_FIELD.search(one.name)), found[0] if found else None)


def prediction_regions(into: FormField | None, address: str) -> list[dict[str, Any]]:
    """A prediction's result that shows the address; nothing where no field can. It never claims a verdict."""
    if into is None:
        return []
    return [{"from_name": into.name, "to_name": into.to, "type": "textarea", "value": {"text": [address]}}]


def prediction_score(chosen: SelectedImage) -> float | None:
    """The potential as Label Studio takes it: 0 for the lowest that its weights allow, 1 for the highest.

    It refuses others where predictions are imported as a file.
    """
    potential, (lowest, highest) = chosen.scores.get("potential"), InpaintPlan.from_json(chosen.plan).bounds
    if potential is None or lowest == highest:
        return None
    return min(1.0, max(0.0, (potential - lowest) / (highest - lowest)))


def prediction_document(
    chosen: Sequence[SelectedImage], sent: Sequence[SentPrediction], model_version: str = ""
) -> list[dict[str, Any]]:
    """What was chosen as Label Studio imports it (POST api/projects/N/import/predictions), of one project or more.

    `picture`, which is ours, is relative to the image root; a task that has no number there is not in it.
    """
    known = {(each.task, each.model_version): each for each in sent if each.outcome}
    found = []
    for one, version in _versions(chosen, model_version):
        before = known.get((one.task.id, version))
        if one.task.label_studio_id is not None:
            found.append(
                {
                    "task": one.task.label_studio_id,
                    "project": one.task.project,
                    "model_version": version,
                    "score": prediction_score(one),
                    "result": before.result if before and before.candidate == one.candidate else [],
                    "picture": one.image_path,
                }
            )
    return found


def _versions(chosen: Sequence[SelectedImage], model_version: str) -> list[tuple[SelectedImage, str]]:
    """Each with the version it is sent as; the last of those that would be sent as the same."""
    last: dict[tuple[UUID, str], SelectedImage] = {}
    for one in sorted(chosen, key=lambda each: each.selected_at):
        last[one.task.id, model_version or f"flexy/{one.plan['editor']}"] = one
    found = [(one, version) for (_, version), one in last.items()]
    return sorted(found, key=lambda each: (each[0].task.batch, each[0].task.position, each[1]))


@dataclass
class PredictionPusher:
    """Pushes to one server. Each answer is kept before the next is asked for."""

    database: Database
    store: ImageStore
    studio: LabelStudioClient
    _fields: dict[int, FormField | None] = field(default_factory=dict)

    def run(
        self, chosen: Sequence[SelectedImage], model_version: str, on_progress: Callable[[int], Any]
    ) -> dict[str, Counter[str]]:
        """Send what was chosen; by batch, how many predictions were created, replaced, unchanged or unsent.

        What one task alone is refused for is kept with it; raises `FlexyError` where the server can do nothing.
        """
        counts: dict[str, Counter[str]] = {}
        for one, version in _versions(chosen, model_version):
            try:
                sent = self._push(one, version)
            except (LabelStudioRefusedError, UnreadableImageError, _UnsendableError) as error:
                if isinstance(error, LabelStudioRefusedError) and error.code not in _TEXT_FIELD:
                    raise
                sent = SentPrediction(one.task.id, version, one.candidate, None, error=" ".join(str(error).split()))
            with self.database.begin() as connection:
                labels.record_prediction(connection, sent)
            counts.setdefault(one.task.batch, Counter())[sent.outcome or "unsent"] += 1
            on_progress(1)
        return counts

    def _push(self, one: SelectedImage, version: str) -> SentPrediction:
        number, project = one.task.label_studio_id, one.task.project
        if number is None or project is None:
            raise _UnsendableError(
                "its export does not say which task of which project it is: import it from the server"
            )
        if project not in self._fields:
            self._fields[project] = find_text_field(self.studio.label_config(project))
        content = self.store.content(one.image_path, one.image_sha256)
        path = self.studio.upload(project, content, PurePosixPath(one.image_path).suffix[1:] or "png")
        result = prediction_regions(self._fields[project], urljoin(self.studio.url, path))
        prediction = Prediction(number, version, prediction_score(one), result)
        pushed = self.studio.push(prediction)
        payload = [number, version, prediction.score, result, str(one.candidate)]
        return SentPrediction(
            task=one.task.id,
            model_version=version,
            candidate=one.candidate,
            score=prediction.score,
            result=result,
            digest=hashlib.sha256(json.dumps(payload).encode()).hexdigest(),
            prediction_id=pushed.id,
            outcome=pushed.action,
        )


class _UnsendableError(FlexyError):
    """Why a task's prediction cannot be sent."""
