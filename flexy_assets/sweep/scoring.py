"""Scores the images that lack a score, chunk by chunk; each chunk is committed before the next is begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flexy_assets.storage import queries
from flexy_assets.storage.queries import Pending, Scored
from resources.database import Database
from resources.images import ImageStore, UnreadableImageError
from resources.models.registry import scorer_entry
from resources.models.slot import ModelSlot
from resources.scorers import Metric
from resources.scorers.preprocessing import VERSION
from resources.settings import Settings

CHUNK = 32
"""Images scored between two commits: what a kill costs at most."""


@dataclass(frozen=True)
class Scoring:
    """What scoring works with, the same for every metric."""

    database: Database
    store: ImageStore
    slot: ModelSlot
    settings: Settings

    def encoder_name(self, encoder: str) -> str:
        """The fingerprint embeddings are kept under: weights and preprocessing."""
        return f"{scorer_entry(encoder, self.settings).fingerprint}/pixels{VERSION}"


@dataclass(frozen=True)
class Outcome:
    """What one pass did to a batch."""

    done: int = 0
    failed: int = 0


def embed(scoring: Scoring, batch: str, encoder: str = "clip", told: Callable[[int], None] = lambda _: None) -> Outcome:
    """Keep the image vectors the batch lacks, and the text vectors of its prompts."""
    name = scoring.encoder_name(encoder)
    with scoring.database.begin(reading=True) as connection:
        rows = queries.unembedded(connection, name, batch, scoring.settings.models)
        prompts = sorted({row.prompt for row in rows if row.prompt})
        known = queries.text_vectors(connection, name, prompts)
    if not rows:
        return Outcome()
    model = scoring.slot.get(scorer_entry(encoder, scoring.settings))
    fresh = [prompt for prompt in prompts if prompt not in known]
    if fresh:
        with scoring.database.begin() as connection:
            queries.record_text_embeddings(connection, name, dict(zip(fresh, model.texts(fresh), strict=True)))
    done = failed = 0
    for chunk in _chunks(rows):
        pictures, failures = _read(scoring.store, chunk)
        vectors = model.images([picture for _, picture in pictures]) if pictures else []
        kept = {row.image_id: vector for (row, _), vector in zip(pictures, vectors, strict=True)}
        broken = [image_id for image_id, vector in kept.items() if not np.isfinite(vector).all()]
        failures += [Scored(image_id, None, "the embedding is not finite") for image_id in broken]
        kept = {image_id: vector for image_id, vector in kept.items() if image_id not in broken}
        with scoring.database.begin() as connection:
            queries.record_image_embeddings(connection, name, kept, failures)
        done, failed = done + len(kept), failed + len(failures)
        told(len(chunk))
    return Outcome(done, failed)


def score_embeddings(scoring: Scoring, metric: Metric, batch: str, told: Callable[[int], None]) -> Outcome:
    """Score from vectors that `embed` kept: no picture is opened."""
    encoder = scoring.encoder_name(metric.encoder)
    head_entry = scorer_entry(metric.head, scoring.settings) if metric.head else None

    def compute(chunk: Sequence[Pending]) -> list[Scored]:
        ids = [row.image_id for row in chunk]
        with scoring.database.begin(reading=True) as connection:
            seen = queries.image_vectors(connection, encoder, ids)
            said = queries.text_vectors(connection, encoder, {row.prompt for row in chunk if row.prompt})
            reasons = queries.embedding_failures(connection, [i for i in ids if i not in seen])
        scores = [
            Scored(i, None, f"no embedding: {reasons.get(i, 'materialise clip_embeddings')}")
            for i in ids
            if i not in seen
        ]
        there = [row for row in chunk if row.image_id in seen]
        if head_entry and there:
            marks = scoring.slot.get(head_entry).marks(np.stack([seen[row.image_id] for row in there]))
            return scores + [Scored.of(row.image_id, float(mark)) for row, mark in zip(there, marks, strict=True)]
        return scores + [_cosine(row, seen[row.image_id], said.get(row.prompt or "")) for row in there]

    return _score(
        scoring, metric, batch, f"{encoder}+{head_entry.fingerprint}" if head_entry else encoder, compute, told
    )


def score_images(scoring: Scoring, metric: Metric, batch: str, told: Callable[[int], None]) -> Outcome:
    """Score from the pictures themselves, by an encoder whose vectors are not kept."""
    entry = scorer_entry(metric.encoder, scoring.settings)
    said: dict[str, NDArray[np.float32]] = {}

    def compute(chunk: Sequence[Pending]) -> list[Scored]:
        model = scoring.slot.get(entry)
        fresh = sorted({row.prompt for row in chunk if row.prompt} - said.keys())
        if fresh:
            said.update(zip(fresh, model.texts(fresh), strict=True))
        pictures, scores = _read(scoring.store, chunk)
        vectors = model.images([picture for _, picture in pictures]) if pictures else []
        return scores + [
            _cosine(row, vector, said.get(row.prompt or "")) for (row, _), vector in zip(pictures, vectors, strict=True)
        ]

    return _score(scoring, metric, batch, scoring.encoder_name(metric.encoder), compute, told)


def _score(
    scoring: Scoring,
    metric: Metric,
    batch: str,
    scorer: str,
    compute: Callable[[Sequence[Pending]], list[Scored]],
    told: Callable[[int], None],
) -> Outcome:
    with scoring.database.begin(reading=True) as connection:
        rows = queries.pending(connection, metric.column, batch, scoring.settings.models)
    done = failed = 0
    for chunk in _chunks(rows):
        scores = compute(chunk)
        with scoring.database.begin() as connection:
            done += queries.record_scores(connection, metric.column, scorer, scores)
        failed += sum(score.value is None for score in scores)
        told(len(chunk))
    return Outcome(done, failed)


def _chunks(rows: Sequence[Pending]) -> list[Sequence[Pending]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _read(store: ImageStore, rows: Sequence[Pending]) -> tuple[list, list[Scored]]:
    """(row, picture) for each that can be read, and the reasons of those that cannot."""
    pictures, failures = [], []
    for row, picture in zip(rows, store.read_many([(r.image_path or "", r.image_sha256) for r in rows]), strict=True):
        if isinstance(picture, UnreadableImageError):
            failures.append(Scored(row.image_id, None, str(picture)))
        else:
            pictures.append((row, picture))
    return pictures, failures


def _cosine(row: Pending, seen: NDArray[np.float32], said: NDArray[np.float32] | None) -> Scored:
    if said is None:
        return Scored(row.image_id, None, "no prompt is recorded for this image")
    return Scored.of(row.image_id, float(np.dot(seen.astype(np.float64), said.astype(np.float64))))
