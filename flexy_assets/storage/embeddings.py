"""Embeddings of images and prompts. Every function takes a connection in a transaction."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Connection, or_, select

from flexy_assets.storage import scores
from flexy_assets.storage.scores import EMBEDDING_METRIC, PendingImages, ScoredImage, has_outcome, record_outcomes
from flexy_assets.storage.sql import upsert
from flexy_assets.storage.tables import image_embeddings, image_scores, text_embeddings
from resources.database import Database
from resources.settings import Settings


def hash_prompt(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def select_pending_embeddings(encoder: str, settings: Settings, needed_for: Collection[str] = ()) -> PendingImages:
    """Return the images without an embedding that have attempts left and, if given, need a metric of `needed_for`."""
    needed = or_(*map(scores.is_pending, needed_for)) if needed_for else sa.true()
    exhausted = has_outcome(EMBEDDING_METRIC, scores.ATTEMPTS_EXHAUSTED)
    images = scores.select_scorable_images(settings)
    return PendingImages(images.where(~scores.is_embedded(encoder), ~exhausted, needed))


def record_image_embeddings(
    connection: Connection, encoder: str, vectors: Mapping[UUID, NDArray[np.float32]], failures: Sequence[ScoredImage]
) -> None:
    """Write L2-normalised float32 vectors (width,) and, for images without one, the error."""
    _record_vectors(connection, image_embeddings, "image_id", encoder, vectors)
    record_outcomes(connection, EMBEDDING_METRIC, encoder, failures)


def read_embedding_errors(connection: Connection, image_ids: Collection[UUID]) -> dict[UUID, str]:
    """Return the errors of images whose embedding failed."""
    outcome = image_scores.c
    failed = outcome.metric == EMBEDDING_METRIC, outcome.image_id.in_(list(image_ids)), outcome.value.is_(None)
    return dict(connection.execute(select(outcome.image_id, outcome.error).where(*failed)).tuples().all())


def record_text_embeddings(connection: Connection, encoder: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the L2-normalised float32 vector (width,) of each prompt."""
    hashed = {hash_prompt(prompt): vector for prompt, vector in vectors.items()}
    _record_vectors(connection, text_embeddings, "prompt_sha256", encoder, hashed)


def _record_vectors(
    connection: Connection, table: sa.Table, key: str, encoder: str, vectors: Mapping[Any, NDArray[np.float32]]
) -> None:
    rows = [{key: k, "encoder": encoder, "vector": v.astype("<f4").tobytes()} for k, v in vectors.items()]
    if rows:
        connection.execute(upsert(connection, table).on_conflict_do_nothing(), rows)


def read_image_vectors(
    connection: Connection, encoder: str, image_ids: Collection[UUID]
) -> dict[UUID, NDArray[np.float32]]:
    """Return the stored embeddings of `image_ids`, each float32 (width,)."""
    return _read_vectors(connection, image_embeddings.c.image_id, encoder, image_ids)


def read_stored_vectors(database: Database, image_ids: Collection[str]) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """Return the encoder that most of the images are embedded by, "" for none, and its embeddings by image id."""
    ids = [UUID(image_id) for image_id in image_ids]
    vectors = image_embeddings.c
    counts = select(vectors.encoder).where(vectors.image_id.in_(ids)).group_by(vectors.encoder)
    with database.begin(reading=True) as connection:
        encoder = connection.scalar(counts.order_by(sa.func.count().desc(), vectors.encoder).limit(1)) or ""
        found = read_image_vectors(connection, encoder, ids)
    return encoder, {str(image_id): vector for image_id, vector in found.items()}


def read_text_vectors(connection: Connection, encoder: str, prompts: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """Return the stored embeddings of `prompts`, each float32 (width,)."""
    keys = {hash_prompt(prompt): prompt for prompt in prompts}
    vectors = _read_vectors(connection, text_embeddings.c.prompt_sha256, encoder, keys)
    return {keys[key]: vector for key, vector in vectors.items()}


def _read_vectors(
    connection: Connection, key: sa.Column[Any], encoder: str, keys: Collection[Any]
) -> dict[Any, NDArray[np.float32]]:
    columns = key.table.c
    statement = select(key, columns.vector).where(columns.encoder == encoder, key.in_(list(keys)))
    return {each: np.frombuffer(vector, "<f4") for each, vector in connection.execute(statement)}
