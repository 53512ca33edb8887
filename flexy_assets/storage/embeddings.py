"""Embeddings of images and prompts.

Every function takes a connection in a transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Connection, or_, select

from flexy_assets.storage.scores import (
    ATTEMPTS_EXHAUSTED,
    EMBEDDING_METRIC,
    PendingImages,
    ScoredImage,
    has_outcome,
    is_embedded,
    is_pending,
    record_outcomes,
    select_scorable_images,
)
from flexy_assets.storage.sql import upsert
from flexy_assets.storage.tables import image_embeddings, image_scores, text_embeddings
from resources.settings import Settings


def hash_prompt(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def select_pending_embeddings(encoder: str, settings: Settings, needed_for: Collection[str] = ()) -> PendingImages:
    """Return the images without an embedding by `encoder` that have attempts left.

    With `needed_for` only those that lack one of these metrics.
    """
    needed = or_(*map(is_pending, needed_for)) if needed_for else sa.true()
    return PendingImages(
        select_scorable_images(settings).where(
            ~is_embedded(encoder), ~has_outcome(EMBEDDING_METRIC, ATTEMPTS_EXHAUSTED), needed
        )
    )


def record_image_embeddings(
    connection: Connection, encoder: str, vectors: Mapping[UUID, NDArray[np.float32]], failures: Sequence[ScoredImage]
) -> None:
    """Write L2-normalised float32 vectors (width,) and, for images without one, the error."""
    if vectors:
        rows = [{"image_id": k, "encoder": encoder, "vector": v.astype("<f4").tobytes()} for k, v in vectors.items()]
        connection.execute(upsert(connection, image_embeddings).on_conflict_do_nothing(), rows)
    if failures:
        record_outcomes(connection, EMBEDDING_METRIC, encoder, failures)


def read_embedding_errors(connection: Connection, image_ids: Collection[UUID]) -> dict[UUID, str]:
    """Return the errors of images whose embedding failed."""
    statement = select(image_scores.c.image_id, image_scores.c.error).where(
        image_scores.c.metric == EMBEDDING_METRIC,
        image_scores.c.image_id.in_(list(image_ids)),
        image_scores.c.value.is_(None),
    )
    return {row.image_id: row.error for row in connection.execute(statement)}


def record_text_embeddings(connection: Connection, encoder: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the L2-normalised float32 vector (width,) of each prompt."""
    rows = [
        {"prompt_sha256": hash_prompt(k), "encoder": encoder, "vector": v.astype("<f4").tobytes()}
        for k, v in vectors.items()
    ]
    if rows:
        connection.execute(upsert(connection, text_embeddings).on_conflict_do_nothing(), rows)


def read_image_vectors(
    connection: Connection, encoder: str, image_ids: Collection[UUID]
) -> dict[UUID, NDArray[np.float32]]:
    """Return the stored embeddings of `image_ids`, each float32 (width,)."""
    found = image_embeddings.c
    statement = select(found.image_id, found.vector).where(
        found.encoder == encoder, found.image_id.in_(list(image_ids))
    )
    return {row.image_id: np.frombuffer(row.vector, "<f4") for row in connection.execute(statement)}


def read_text_vectors(connection: Connection, encoder: str, prompts: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """Return the stored embeddings of `prompts`, each float32 (width,)."""
    keys = {hash_prompt(prompt): prompt for prompt in prompts}
    found = text_embeddings.c
    statement = select(found.prompt_sha256, found.vector).where(
        found.encoder == encoder, found.prompt_sha256.in_(list(keys))
    )
    return {keys[row.prompt_sha256]: np.frombuffer(row.vector, "<f4") for row in connection.execute(statement)}
