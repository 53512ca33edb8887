"""Label Studio tasks whose pictures lie on a small web server of the test's own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import numpy as np
from PIL import Image

from flexy_assets.inpaint.plan import InpaintPlan
from flexy_assets.storage import edits, labels
from flexy_assets.storage.scores import ScoredImage, record_outcomes
from resources.database import Database
from resources.images import ImageStore
from resources.settings import Settings
from tests.support.servers import SIGNATURE, ImageServer, running

SIZE = 40, 24


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def noise(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def masked(box: tuple[int, int, int, int] | None = (8, 4, 20, 16), size: tuple[int, int] = SIZE) -> bytes:
    picture = Image.new("L", size)
    if box:
        picture.paste(255, box)
    return encoded(picture)


@contextmanager
def serving() -> Iterator[ImageServer]:
    with running(ImageServer()) as site:
        yield site


def data(site: ImageServer, number: int, signature: str = SIGNATURE, **changes: Any) -> dict[str, Any]:
    """A task's data: a scene and a mask of its own, and the character that all share."""
    fields = {
        "id": str(7000 + number),
        "character_id": "CHA-1",
        "character_name": "Ada é",
        "prompt": "Ada in a garden",
        "init_image_url": site.url(f"/scene{number}.png", noise(number), signature),
        "mask_image_url": site.url(f"/mask{number}.png", masked((4, 4, 6 + number % 30, 12)), signature),
        "character_image_url": site.url("/ada.png", noise(10**6), signature),
    } | changes
    return {name: value for name, value in fields.items() if value is not None}


def entry(
    fields: dict[str, Any], annotations: Sequence[dict[str, Any]] = (), project: int | None = 3
) -> dict[str, Any]:
    number = 100 + int(fields["id"])
    return {"id": number, "data": fields, "annotations": list(annotations), "predictions": [], "project": project}


def chosen(*choices: str, **changes: Any) -> dict[str, Any]:
    """An annotation with a verdict."""
    result = {"from_name": "issues", "to_name": "final", "type": "choices", "value": {"choices": list(choices)}}
    return {"id": 1, "result": [result], "was_cancelled": False, "updated_at": "2025-10-01T10:00:00Z"} | changes


def write(file: Path, entries: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entries))
    return file


def choose(
    database: Database, potentials: list[float | None], editor: str = "mini_instruct", seed: int = 0
) -> list[UUID]:
    """One selected candidate for each task of the table, in order, with a picture and, where given, a potential."""
    store, run = ImageStore(Settings.read().images), uuid4()
    candidates = []
    with database.begin() as connection:
        tasks = labels.label_tasks_of(connection)
        of = [
            edits.EditTaskRow(
                uuid5(run, task.name),
                run,
                task.batch,
                task.position,
                task.name,
                task.prompt,
                task.image_path or "",
                task.image_sha256 or "",
                label_task=task.id,
                mask_path=task.mask_path,
                mask_sha256=task.mask_sha256,
                reference_path=task.character_path,
                reference_sha256=task.character_sha256,
            )
            for task in tasks
        ]
        edits.save_comparison(connection, run, InpaintPlan(editor, 4, 2.0).to_json(), of)
        for place, (task, potential) in enumerate(zip(of, potentials, strict=True)):
            path = f"edits/{run.hex[:8]}/{place}.png"
            row = {"id": uuid5(task.id, "chosen"), "task": task.id, "method": "eacps", "budget": 8, "name": "g0"}
            row |= {"stage": "global", "seed": 1, "moves": (), "strength": 1.0, "until": 8, "path": 8, "nfe": 8}
            row |= {"image_path": path, "image_sha256": store.write(path, Image.new("RGB", (9, 9), (place, seed, 7)))}
            edits.add_candidates(connection, [row])
            candidates.append(row["id"])
            for metric, value in (("potential", potential), ("identity", 0.5)):
                if value is not None:
                    record_outcomes(connection, metric, "a judge", [ScoredImage.of(row["id"], value)])
        found = edits.edit_candidates_of(connection, {task.batch for task in tasks}, "eacps")
        edits.record_selections(connection, [one for one in found if one.id in candidates])
    return candidates
