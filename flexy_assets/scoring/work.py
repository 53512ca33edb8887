"""The one Dagster resource of assets, ops and sensors: database, image store, model slot and settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexy_assets.storage.embeddings import read_text_vectors, record_text_embeddings, select_pending_embeddings
from flexy_assets.storage.scores import PendingImages, select_pending_scores
from resources.database import Database
from resources.images import ImageStore
from resources.metrics import Metric
from resources.models import registry
from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot
from resources.scorers.preprocessing import PREPROCESSING_VERSION
from resources.settings import Settings


@dataclass(frozen=True)
class Work:
    """What every asset and op works with: the one Dagster resource `work`."""

    database: Database
    store: ImageStore
    slot: ModelSlot
    settings: Settings
    results: dict[str, Any] = field(default_factory=dict, compare=False)
    """By asset, the typed result of its last materialization in this process, for the command that started it."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Work:
        """Return the database, image store and an empty model slot that `settings` name; nothing is opened yet."""
        return cls(Database(settings.database_url), ImageStore.from_settings(settings), ModelSlot(), settings)

    def record_partition(self, asset: str, partition: str, result: object) -> None:
        """Keep what a materialization did to a partition: `results[asset][partition]`."""
        self.results.setdefault(asset, {})[partition] = result

    def model(self, name: str) -> LocalModel:
        """Return the scorer `name` of this model set, not loaded."""
        return registry.find_scorer(name, self.settings)

    def fingerprint(self, name: str) -> str:
        """Return what scores by the scorer `name` are recorded with: weights, precision, preprocessing."""
        return f"{self.model(name).fingerprint}/pixels{PREPROCESSING_VERSION}"

    def pending_embeddings(self, encoder: str = "clip", needed_for: Collection[str] = ()) -> PendingImages:
        """Return the images that `encoder` has still to embed; see `storage.embeddings`."""
        return select_pending_embeddings(self.fingerprint(encoder), self.settings, needed_for)

    def pending_scores(self, metric: Metric) -> PendingImages:
        """Return the images that still need a score of `metric`."""
        encoder = self.fingerprint(metric.reads) if metric.reads else None
        return select_pending_scores(metric.name, self.settings, encoder, metric.prompts)

    def score_fingerprint(self, metric: Metric) -> str:
        """Return what scores of `metric` are recorded with: what it is computed by, and what that reads."""
        scorer = metric.scorer or metric.name
        if metric.reads and metric.reads != scorer:
            return f"{self.fingerprint(metric.reads)}+{self.model(scorer).fingerprint}"
        return self.fingerprint(scorer)

    def embed_prompts(self, prompts: Collection[str], encoder: str = "clip") -> dict[str, NDArray[np.float32]]:
        """Return each prompt's L2-normalised vector (width,), read from the table or computed and stored."""
        fingerprint = self.fingerprint(encoder)
        with self.database.begin(reading=True) as connection:
            vectors = read_text_vectors(connection, fingerprint, prompts)
        missing = sorted(set(prompts) - vectors.keys())
        if missing:
            computed = dict(zip(missing, self.slot.get(self.model(encoder)).texts(missing), strict=True))
            with self.database.begin() as connection:
                record_text_embeddings(connection, fingerprint, computed)
            vectors |= computed
        return vectors

    def count_pending(self, pending: PendingImages, batches: Sequence[str]) -> int:
        """Return how many of `pending` are in these batches."""
        with self.database.begin(reading=True) as connection:
            return pending.count(connection, batches)
