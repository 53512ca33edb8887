"""Compute missing scores, chunk by chunk; each chunk is committed before the next starts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from flexy_assets.scoring.work import Work
from flexy_assets.storage import embeddings
from flexy_assets.storage.locks import ImageClaims, open_claims
from flexy_assets.storage.scores import PendingImage, PendingImages, ScoredImage, record_scores
from resources.chunks import split_chunks
from resources.errors import FlexyError
from resources.images import ImageStore
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.models.compute import HalvingBatches

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK_IMAGES = 64  # scored between two commits: the most that a kill loses
CHUNK_VECTORS = 256  # the same for scores computed from stored embeddings, which is fast
CLAIM_IMAGES = 256  # claimed at once; another worker takes the next ones. Postgres holds some thousands of locks
PREFETCH_CHUNKS = 2  # read and prepared while the model computes one

READERS = {metric.reads or metric.name for metric in METRICS.values()}
"""What reads images: the encoder whose embeddings are stored, and the metrics computed from images."""

NO_PROMPT_ERROR = "no prompt is recorded for this image"

Rows = tuple[str, Sequence[PendingImage]]
"""A batch, and some of its images that this worker has claimed; none where the batch lacks nothing."""

Chunk = tuple[str, Sequence[tuple[PendingImage, Any]]]
"""`Rows`, each with what a model reads of it: a prepared image, the `FlexyError` of its file, or nothing."""

ProgressCallback = Callable[[int], Any]  # called with the number of images of each finished chunk


@dataclass(frozen=True)
class ScoringOutcome:
    """The scores computed and failed in one pass over a partition."""

    done: int = 0
    failed: int = 0


def embed_images(
    work: Work,
    batches: Sequence[str],
    on_progress: ProgressCallback,
    encoder: str = "clip",
    needed_for: Collection[str] = (),
) -> Iterator[tuple[str, ScoringOutcome]]:
    """Store the partitions' missing image and prompt embeddings; yields each partition as it ends.

    With `needed_for`, only of images that lack one of these metrics.
    """
    fingerprint, pending = work.fingerprint(encoder), work.pending_embeddings(encoder, needed_for)
    if not work.count_pending(pending, batches):
        yield from ((batch, ScoringOutcome()) for batch in batches)
        return
    work.store.check()
    model = work.slot.get(work.model(encoder))
    halving = HalvingBatches(model.batch_size)
    embedded_prompts: set[str] = set()

    def record_chunk(chunk: Chunk) -> tuple[int, int]:
        readable, failures = _split_unreadable(chunk)
        if prompts := {row.prompt for row, _ in readable if row.prompt} - embedded_prompts:
            work.embed_prompts(prompts, encoder)
            embedded_prompts.update(prompts)
        vectors = {}
        for (row, _), vector in zip(readable, halving(model.images, [read for _, read in readable]), strict=True):
            if isinstance(vector, FlexyError) or not np.isfinite(vector).all():
                error = str(vector) if isinstance(vector, FlexyError) else "the embedding is not finite"
                failures.append(ScoredImage(row.image_id, None, error))
            else:
                vectors[row.image_id] = vector
        with work.database.begin() as connection:
            embeddings.record_image_embeddings(connection, fingerprint, vectors, failures)
        return len(vectors), len(failures)

    with open_claims(work.database) as claims:
        rows = _claim_chunks(work, claims, fingerprint, pending, batches, CHUNK_IMAGES)
        chunks = read_ahead(work.store, rows, model.prepare, encoder)
        yield from _by_batch(chunks, record_chunk, on_progress, lambda ids: claims.release(fingerprint, ids))


def score_images(
    work: Work, metric: Metric, batches: Sequence[str], on_progress: ProgressCallback
) -> Iterator[tuple[str, ScoringOutcome]]:
    """Compute the partitions' missing scores of one metric; yields each partition as it ends."""
    pending = work.pending_scores(metric)
    if not work.count_pending(pending, batches):
        yield from ((batch, ScoringOutcome()) for batch in batches)
        return
    scorer = metric.scorer or metric.name
    fingerprint = work.score_fingerprint(metric)

    def record(scores: Sequence[ScoredImage]) -> tuple[int, int]:
        with work.database.begin() as connection:
            done = record_scores(connection, metric.name, fingerprint, scores)
        return done, sum(score.value is None for score in scores)

    with open_claims(work.database) as claims:
        size = CHUNK_VECTORS if metric.reads else CHUNK_IMAGES
        rows = _claim_chunks(work, claims, metric.name, pending, batches, size)
        if metric.reads:
            chunks: Iterator[Chunk] = ((batch, [(row, None) for row in some_rows]) for batch, some_rows in rows)
            compute = _from_embeddings(work, metric.reads, None if metric.reads == scorer else scorer)
        else:
            work.store.check()
            model = work.slot.get(work.model(scorer))
            chunks = read_ahead(work.store, rows, model.prepare, metric.name)
            compute = _from_images(model)

        yield from _by_batch(
            chunks, lambda chunk: record(compute(chunk)), on_progress, lambda ids: claims.release(metric.name, ids)
        )


def _from_embeddings(work: Work, encoder: str, head: str | None) -> Callable[[Chunk], list[ScoredImage]]:
    """Return the scorer of stored embeddings, by a head or as the cosine with the prompt; it opens no image."""
    fingerprint = work.fingerprint(encoder)

    def compute(chunk: Chunk) -> list[ScoredImage]:
        prompts = {row.image_id: row.prompt or "" for row, _ in chunk[1]}
        with work.database.begin(reading=True) as connection:
            vectors = embeddings.read_image_vectors(connection, fingerprint, prompts)
            errors = embeddings.read_embedding_errors(connection, prompts.keys() - vectors.keys())
        # An image that was not tried yet is not a failure: its embedding is pending.
        scores = [ScoredImage(image, None, f"no embedding: {error}") for image, error in errors.items()]
        ids = [image for image in prompts if image in vectors]
        if head is None:
            # Those of another column, or added since the images were embedded, have no vector yet.
            text_vectors = work.embed_prompts(set(filter(None, prompts.values())), encoder)
            return scores + [_cosine(image, vectors[image], text_vectors.get(prompts[image])) for image in ids]
        if ids:
            values = work.slot.get(work.model(head)).score_embeddings(np.stack([vectors[image] for image in ids]))
            scores += [ScoredImage.of(image, float(value)) for image, value in zip(ids, values, strict=True)]
        return scores

    return compute


def _from_images(model: Any) -> Callable[[Chunk], list[ScoredImage]]:
    halving = HalvingBatches(model.batch_size)

    def compute(chunk: Chunk) -> list[ScoredImage]:
        readable, failures = _split_unreadable(chunk)
        failures += [ScoredImage(row.image_id, None, NO_PROMPT_ERROR) for row, _ in readable if not row.prompt]
        with_prompt = [(row, pixels) for row, pixels in readable if row.prompt]
        values = halving(
            lambda part: model.scores([pixels for _, pixels in part], [row.prompt for row, _ in part]), with_prompt
        )
        return failures + [
            ScoredImage(row.image_id, None, str(value))
            if isinstance(value, FlexyError)
            else ScoredImage.of(row.image_id, float(value))
            for (row, _), value in zip(with_prompt, values, strict=True)
        ]

    return compute


def _cosine(image_id: UUID, image: NDArray[np.float32], text: NDArray[np.float32] | None) -> ScoredImage:
    if text is None:
        return ScoredImage(image_id, None, NO_PROMPT_ERROR)
    return ScoredImage.of(image_id, float(np.dot(image.astype(np.float64), text.astype(np.float64))))


def _split_unreadable(chunk: Chunk) -> tuple[list[tuple[PendingImage, Any]], list[ScoredImage]]:
    """Return the rows that could be read, and the errors of the others."""
    _, rows = chunk
    failures = [ScoredImage(row.image_id, None, str(read)) for row, read in rows if isinstance(read, FlexyError)]
    return [(row, read) for row, read in rows if not isinstance(read, FlexyError)], failures


def _claim_chunks(
    work: Work, claims: ImageClaims, what: str, pending: PendingImages, batches: Sequence[str], size: int
) -> Iterator[Rows]:
    """Yield the pending images of the batches that no other worker has claimed, in chunks of one batch each."""
    for batch in batches:
        with work.database.begin(reading=True) as connection:
            pending_rows = pending.of(connection, batch)
        for candidates in split_chunks(pending_rows, CLAIM_IMAGES):
            claimed = claims.take(what, [row.image_id for row in candidates])
            # What another worker has scored before it released them is no longer pending.
            with work.database.begin(reading=True) as connection:
                rows = pending.of(connection, batch, claimed)
            claims.release(what, claimed - {row.image_id for row in rows})
            for chunk in split_chunks(rows, size):
                yield batch, chunk
        yield batch, []


def read_ahead(
    store: ImageStore, chunks: Iterable[Rows], prepare: Callable[[Image], Any], reader: str
) -> Iterator[Chunk]:
    """Yield the chunks' rows, each with its prepared image or the `FlexyError` of its file.

    While one chunk is being used, the next `PREFETCH_CHUNKS` are read, decoded and prepared on other threads.
    `reader` is one of `READERS`.
    """

    def prepare_row(row: PendingImage) -> Any:
        try:
            return prepare(store.read_for(reader, READERS, row.image_path or "", row.image_sha256))
        except FlexyError as error:
            return error

    def next_chunk() -> Chunk:
        batch, reads = ahead.popleft()
        return batch, [(row, read.result()) for row, read in reads]

    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="read-ahead")
    ahead: deque[tuple[str, list[tuple[PendingImage, Future[Any]]]]] = deque()
    try:
        for batch, rows in chunks:
            ahead.append((batch, [(row, pool.submit(prepare_row, row)) for row in rows]))
            if len(ahead) > PREFETCH_CHUNKS:
                yield next_chunk()
        while ahead:
            yield next_chunk()
    finally:
        pool.shutdown(cancel_futures=True)


def _by_batch(
    chunks: Iterator[Chunk],
    record_chunk: Callable[[Chunk], tuple[int, int]],
    on_progress: ProgressCallback,
    release: Callable[[set[UUID]], None],
) -> Iterator[tuple[str, ScoringOutcome]]:
    """Record each chunk, release its images now and then, and yield each batch after its last chunk."""
    for batch, of_batch in groupby(chunks, key=lambda chunk: chunk[0]):
        done = failed = 0
        recorded: set[UUID] = set()
        for chunk in of_batch:
            if chunk[1]:
                chunk_done, chunk_failed = record_chunk(chunk)
                recorded |= {row.image_id for row, _ in chunk[1]}
                if len(recorded) >= CLAIM_IMAGES:
                    release(recorded)
                    recorded = set()
                done, failed = done + chunk_done, failed + chunk_failed
                on_progress(len(chunk[1]))
        release(recorded)
        yield batch, ScoringOutcome(done, failed)
