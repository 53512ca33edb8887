"""Scores the images that lack a score, chunk by chunk; each chunk is committed before the next is begun."""

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
from flexy_assets.storage.embeddings import (
    read_embedding_errors,
    read_image_vectors,
    read_text_vectors,
    record_image_embeddings,
)
from flexy_assets.storage.locks import ImageClaims, open_claims
from flexy_assets.storage.scores import PendingImage, PendingImages, ScoredImage, record_scores
from resources.errors import FlexyError
from resources.images import ImageStore
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.models.compute import HalvingBatches

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK_IMAGES = 64
"""Images scored between two commits: what a kill costs at most."""

CHUNK_VECTORS = 256
"""The same for scores that are computed from kept embeddings, which takes no time."""

CLAIM_IMAGES = 256
"""Images that are claimed at once; another worker takes those behind them. Postgres has room for some thousands."""

PREFETCH_CHUNKS = 2
"""Chunks that are read and prepared while the model computes one."""

READER_THREADS = {metric.reads or metric.name for metric in METRICS.values()}
"""Who looks at pictures: the encoder whose embeddings are kept, and the metrics that have no part in them."""

NO_PROMPT_ERROR = "no prompt is recorded for this image"

Rows = tuple[str, Sequence[PendingImage]]
"""A batch, and some of its images that this worker has claimed; none where the batch lacks nothing."""

Chunk = tuple[str, Sequence[tuple[PendingImage, Any]]]
"""`Rows` with what a model reads of each: a prepared picture, the `FlexyError` why there is none, or nothing."""

ProgressCallback = Callable[[int], Any]
"""Is on_progress how many images each chunk settled."""


@dataclass(frozen=True)
class ScoringOutcome:
    """What one pass did to a batch."""

    done: int = 0
    failed: int = 0


def embed_images(
    work: Work,
    batches: Sequence[str],
    on_progress: ProgressCallback,
    encoder: str = "clip",
    needed_for: Collection[str] = (),
) -> Iterator[tuple[str, ScoringOutcome]]:
    """Keep the image vectors the batches lack, and the text vectors of their prompts; yields each batch as it ends.

    With `needed_for`, only of images that lack one of these metrics.
    """
    mark, lack = work.fingerprint(encoder), work.pending_embeddings(encoder, needed_for)
    if not work.count_pending(lack, batches):
        yield from ((batch, ScoringOutcome()) for batch in batches)
        return
    work.store.check()
    model = work.slot.get(work.model(encoder))
    halving = HalvingBatches(model.batch_size)
    said: set[str] = set()

    def settle(chunk: Chunk) -> tuple[int, int]:
        readable, failures = _split_unreadable(chunk)
        prompts = {row.prompt for row, _ in readable if row.prompt} - said
        if prompts:
            work.embed_prompts(prompts, encoder)
            said.update(prompts)
        vectors = halving(model.images, [pixels for _, pixels in readable])
        kept = {}
        for (row, _), vector in zip(readable, vectors, strict=True):
            if isinstance(vector, FlexyError):
                failures.append(ScoredImage(row.image_id, None, str(vector)))
            elif not np.isfinite(vector).all():
                failures.append(ScoredImage(row.image_id, None, "the embedding is not finite"))
            else:
                kept[row.image_id] = vector
        with work.database.begin() as connection:
            record_image_embeddings(connection, mark, kept, failures)
        return len(kept), len(failures)

    with open_claims(work.database) as held:
        chunks = read_ahead(
            work.store, _claim_chunks(work, held, mark, lack, batches, CHUNK_IMAGES), model.prepare, encoder
        )
        yield from _by_batch(chunks, settle, on_progress, lambda ids: held.release(mark, ids))


def score_images(
    work: Work, metric: Metric, batches: Sequence[str], on_progress: ProgressCallback
) -> Iterator[tuple[str, ScoringOutcome]]:
    """Fill what the batches lack of one metric; yields each batch as it ends."""
    lack = work.pending_scores(metric)
    if not work.count_pending(lack, batches):
        yield from ((batch, ScoringOutcome()) for batch in batches)
        return
    scorer = metric.scorer or metric.name
    mark = work.fingerprint(scorer)
    if metric.reads and metric.reads != scorer:
        mark = f"{work.fingerprint(metric.reads)}+{work.model(scorer).fingerprint}"

    def record(scores: Sequence[ScoredImage]) -> tuple[int, int]:
        with work.database.begin() as connection:
            done = record_scores(connection, metric.name, mark, scores)
        return done, sum(score.value is None for score in scores)

    with open_claims(work.database) as held:
        rows = _claim_chunks(work, held, metric.name, lack, batches, CHUNK_VECTORS if metric.reads else CHUNK_IMAGES)
        if metric.reads:
            chunks: Iterator[Chunk] = ((batch, [(row, None) for row in some]) for batch, some in rows)
            compute = _from_embeddings(work, metric.reads, None if metric.reads == scorer else scorer)
        else:
            work.store.check()
            model = work.slot.get(work.model(scorer))
            chunks = read_ahead(work.store, rows, model.prepare, metric.name)
            compute = _from_pictures(model)

        yield from _by_batch(
            chunks, lambda chunk: record(compute(chunk)), on_progress, lambda ids: held.release(metric.name, ids)
        )


def _from_embeddings(work: Work, encoder: str, head: str | None) -> Callable[[Chunk], list[ScoredImage]]:
    """Scores from vectors that `embed` kept, by a head or as the cosine with the prompt: no picture is opened."""
    mark = work.fingerprint(encoder)

    def compute(chunk: Chunk) -> list[ScoredImage]:
        rows = [row for row, _ in chunk[1]]
        ids = [row.image_id for row in rows]
        with work.database.begin(reading=True) as connection:
            seen = read_image_vectors(connection, mark, ids)
            said = read_text_vectors(connection, mark, {row.prompt for row in rows if row.prompt})
            reasons = read_embedding_errors(connection, [i for i in ids if i not in seen])
        # One that nobody has tried to embed is not a failure: it is still to come.
        scores = [ScoredImage(i, None, f"no embedding: {reasons[i]}") for i in ids if i not in seen and i in reasons]
        there = [row for row in rows if row.image_id in seen]
        if head is None:
            return scores + [_cosine(row, seen[row.image_id], said.get(row.prompt or "")) for row in there]
        if there:
            marks = work.slot.get(work.model(head)).score_embeddings(np.stack([seen[row.image_id] for row in there]))
            scores += [ScoredImage.of(row.image_id, float(mark)) for row, mark in zip(there, marks, strict=True)]
        return scores

    return compute


def _from_pictures(model: Any) -> Callable[[Chunk], list[ScoredImage]]:
    halving = HalvingBatches(model.batch_size)

    def compute(chunk: Chunk) -> list[ScoredImage]:
        readable, failures = _split_unreadable(chunk)
        failures += [ScoredImage(row.image_id, None, NO_PROMPT_ERROR) for row, _ in readable if not row.prompt]
        asked = [(row, pixels) for row, pixels in readable if row.prompt]
        values = halving(
            lambda part: model.scores([pixels for _, pixels in part], [row.prompt for row, _ in part]), asked
        )
        return failures + [
            ScoredImage(row.image_id, None, str(value))
            if isinstance(value, FlexyError)
            else ScoredImage.of(row.image_id, float(value))
            for (row, _), value in zip(asked, values, strict=True)
        ]

    return compute


def _cosine(row: PendingImage, seen: NDArray[np.float32], said: NDArray[np.float32] | None) -> ScoredImage:
    if said is None:
        return ScoredImage(row.image_id, None, NO_PROMPT_ERROR)
    return ScoredImage.of(row.image_id, float(np.dot(seen.astype(np.float64), said.astype(np.float64))))


def _split_unreadable(chunk: Chunk) -> tuple[list[tuple[PendingImage, Any]], list[ScoredImage]]:
    """The rows that could be read, and the reasons of those that could not."""
    _, rows = chunk
    failures = [ScoredImage(row.image_id, None, str(read)) for row, read in rows if isinstance(read, FlexyError)]
    return [(row, read) for row, read in rows if not isinstance(read, FlexyError)], failures


def _claim_chunks(
    work: Work, held: ImageClaims, what: str, lack: PendingImages, batches: Sequence[str], size: int
) -> Iterator[Rows]:
    """What the batches lack and nobody else is at, in chunks, none of which spans two batches."""
    for batch in batches:
        with work.database.begin(reading=True) as connection:
            wanted = lack.of(connection, batch)
        for start in range(0, len(wanted), CLAIM_IMAGES):
            free = held.take(what, [row.image_id for row in wanted[start : start + CLAIM_IMAGES]])
            # What another worker had settled before it let go is not to be done again.
            with work.database.begin(reading=True) as connection:
                rows = lack.of(connection, batch, free)
            held.release(what, free - {row.image_id for row in rows})
            for first in range(0, len(rows), size):
                yield batch, rows[first : first + size]
        yield batch, []


def read_ahead(
    store: ImageStore, chunks: Iterable[Rows], prepare: Callable[[Image], Any], reader: str
) -> Iterator[Chunk]:
    """The chunks' rows, each with its prepared picture or the `FlexyError` why there is none.

    While one chunk is being used the next `AHEAD` are read, decoded and prepared on other threads. `reader` is
    one of `READERS`.
    """

    def one(row: PendingImage) -> Any:
        try:
            return prepare(store.read_for(reader, READER_THREADS, row.image_path or "", row.image_sha256))
        except FlexyError as error:
            return error

    def collected() -> Chunk:
        batch, rows, reads = ahead.popleft()
        return batch, [(row, read.result()) for row, read in zip(rows, reads, strict=True)]

    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="read-ahead")
    ahead: deque[tuple[str, Sequence[PendingImage], list[Future[Any]]]] = deque()
    try:
        for batch, rows in chunks:
            ahead.append((batch, rows, [pool.submit(one, row) for row in rows]))
            if len(ahead) > PREFETCH_CHUNKS:
                yield collected()
        while ahead:
            yield collected()
    finally:
        pool.shutdown(cancel_futures=True)


def _by_batch(
    chunks: Iterator[Chunk],
    settle: Callable[[Chunk], tuple[int, int]],
    on_progress: ProgressCallback,
    release: Callable[[set[UUID]], None],
) -> Iterator[tuple[str, ScoringOutcome]]:
    """Settle chunk after chunk, letting go of the images now and then, and yield each batch once its last chunk is."""
    for batch, of_batch in groupby(chunks, key=lambda chunk: chunk[0]):
        done = failed = 0
        settled: set[UUID] = set()
        for chunk in of_batch:
            if not chunk[1]:
                continue
            now_done, now_failed = settle(chunk)
            settled |= {row.image_id for row, _ in chunk[1]}
            if len(settled) >= CLAIM_IMAGES:
                release(settled)
                settled = set()
            done, failed = done + now_done, failed + now_failed
            on_progress(len(chunk[1]))
        release(settled)
        yield batch, ScoringOutcome(done, failed)
