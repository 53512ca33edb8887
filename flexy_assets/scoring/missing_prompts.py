"""Recover the prompts of images that have none from a list of candidates; see `prompt_recovery`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from flexy_assets.reporting.progress import progress_bar
from flexy_assets.scoring.missing_scores import embed_images
from flexy_assets.scoring.prompt_recovery import SURE, recover_prompts, reproduced_scores
from flexy_assets.scoring.work import Work
from flexy_assets.storage import embeddings
from flexy_assets.storage.prompts import RunImage
from resources.chunks import split_chunks
from resources.prompts import Prompt

ENCODERS = ("clip", "clip_gelu")
"""The encoders that recorded CLIP scores may be of, the one whose embeddings are compared first."""


@dataclass(frozen=True)
class RecoveredPrompt:
    """The candidate that fits an image best, and how sure it is; `other_text`: its CLIP score is of another text."""

    image: RunImage
    prompt: Prompt
    confidence: float
    other_text: bool

    @property
    def sure(self) -> bool:
        return self.confidence >= SURE


def recover_missing_prompts(
    work: Work, images: Sequence[RunImage], candidates: Sequence[Prompt]
) -> list[RecoveredPrompt]:
    """Return the best candidate for each image without a prompt whose file could be read.

    `images` are all of some runs, in their order. What an image's prompt is known to be narrows the others'.
    """
    texts = [candidate.text for candidate in candidates]
    index = {text: number for number, text in enumerate(texts)}
    places, last_places = _places(images)
    runs = np.unique([image.run_id.hex for image in images], return_inverse=True)[1]
    recorded = np.array([image.scores["clip_score"] for image in images], np.float64)  # None is NaN
    cosines = [_cosines(work, images, texts, ENCODERS[0])]
    # An image that could not be read keeps its place in the run; so does one made from another prompt.
    usable = np.isfinite(cosines[0]).all(axis=1)
    usable &= np.array([image.prompt is None or image.prompt in index for image in images])
    reproduced = reproduced_scores(recorded[usable], [cosines[0][usable]])
    if np.isfinite(recorded).any() and reproduced.any(axis=1).sum() < np.isfinite(recorded).sum() / 2:
        cosines.append(_cosines(work, images, texts, ENCODERS[1]))
        usable &= np.isfinite(cosines[1]).all(axis=1)
    rows = np.flatnonzero(usable).tolist()
    if not rows:
        return []
    known = np.array([index.get(images[row].prompt or "", -1) for row in rows])
    by_encoder = [each[rows] for each in cosines]
    found = recover_prompts(
        by_encoder[0], runs[rows], places[rows], known, recorded[rows], by_encoder, last_places=last_places[rows]
    )
    equal = reproduced_scores(recorded[rows], by_encoder)
    return [
        RecoveredPrompt(
            images[row],
            candidates[found.prompts[place]],
            float(found.confidence[place]),
            bool(np.isfinite(recorded[row]) and not equal[place, found.prompts[place]]),
        )
        for place, row in enumerate(rows)
        if images[row].prompt is None
    ]


def _places(images: Sequence[RunImage]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first and the last place that each image may have in its run: those of one time share them."""
    first, last = [], []
    for _, run in groupby(images, lambda image: image.run_id):
        place = 0
        for _, tied in groupby(run, lambda image: image.created_at):
            count = len(list(tied))
            first += [place] * count
            last += [place + count - 1] * count
            place += count
    return np.array(first), np.array(last)


def _cosines(work: Work, images: Sequence[RunImage], texts: Sequence[str], encoder: str) -> NDArray[np.float64]:
    """Return (images, texts) cosines, NaN where an image could not be embedded; missing embeddings are computed."""
    batches = sorted({image.batch for image in images})
    fingerprint, vectors = work.fingerprint(encoder), dict[UUID, NDArray[np.float32]]()
    with (
        work.slot,
        progress_bar("images embedded", work.count_pending(work.pending_embeddings(encoder), batches)) as bar,
    ):
        for _ in embed_images(work, batches, bar.update, encoder):
            pass
        prompts = work.embed_prompts(texts, encoder)
    with work.database.begin(reading=True) as connection:
        for some in split_chunks([image.image_id for image in images], 500):
            vectors |= embeddings.read_image_vectors(connection, fingerprint, some)
    unread = np.full(len(prompts[texts[0]]), np.nan, np.float32)
    stacked = np.stack([vectors.get(image.image_id, unread) for image in images]).astype(np.float64)
    return stacked @ np.stack([prompts[text] for text in texts]).astype(np.float64).T
