"""Recognises who made a metric's scores before its missing ones are computed: as they were made, or not at all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexy_assets.scoring import agreement
from flexy_assets.scoring.work import Work
from flexy_assets.storage import makers
from flexy_assets.storage.makers import ExistingScore, ScoreMaker
from resources.errors import BadInputError, FlexyError
from resources.metrics import Metric
from resources.metrics.sweep import METRICS
from resources.models.compute import HalvingBatches


class UnknownMakerError(BadInputError):
    """No variant of the scorer computes the scores in a column: nothing may be written to it."""


def find_maker(work: Work, metric: Metric) -> Metric:
    """Return the metric as its column's scores were computed; the metric itself where Flexy made them all.

    Raises `UnknownMakerError` with the figures and the remedy where no variant of the scorer computes them.
    """
    maker = learn_maker(work, metric)
    if maker is None:
        return metric
    if maker.variant is None:
        raise UnknownMakerError(describe_refusal(maker))
    return replace(metric, **maker.variant)


def reads_default_encoder(work: Work, metric: Metric) -> bool:
    """Return whether the missing scores of `metric` are computed from its own encoder's embeddings."""
    try:
        return find_maker(work, metric).reads == metric.reads
    except FlexyError:  # the metric's own step says so
        return False


def recall_refusals(work: Work, metrics: Sequence[Metric]) -> dict[str, ScoreMaker]:
    """Return by metric the makers that are remembered as unknown; no score is computed."""
    with work.database.begin(reading=True) as connection:
        refused = {each.metric for each in makers.list_makers(connection, work.settings) if each.variant is None}
        remembered = {
            metric.name: makers.read_maker(connection, metric.name, work.score_fingerprint(metric), work.settings)
            for metric in metrics
            if metric.name in refused
        }
    return {name: maker for name, maker in remembered.items() if maker and maker.variant is None}


def learn_maker(work: Work, metric: Metric) -> ScoreMaker | None:
    """Return who made the metric's existing scores, as it is remembered or by computing a sample of them again.

    None where Flexy's scorer made them all. Raises `BadInputError` where no sampled image can be read, and
    `FlexyError` where the scorer cannot be loaded.
    """
    fingerprint, settings = work.score_fingerprint(metric), work.settings
    with work.database.begin(reading=True) as connection:
        if remembered := makers.read_maker(connection, metric.name, fingerprint, settings):
            return remembered
        size = agreement.SAMPLE_SIZE
        sample = makers.sample_existing_scores(connection, metric.name, fingerprint, settings, size)
        columns = makers.prompt_columns(connection, settings)
    if not sample:
        return None
    maker = _compare(work, metric, fingerprint, sample, columns)
    with work.database.begin() as connection:
        makers.record_maker(connection, maker, sample)
    return maker


def own_maker(work: Work, metric: Metric) -> ScoreMaker:
    """Return Flexy's own scorer as the maker of a column: all of it is computed again."""
    return ScoreMaker(metric.name, work.score_fingerprint(metric), _variant(metric), 0, 0, None, None, None, ())


def _variant(metric: Metric) -> dict[str, Any]:
    return {name: getattr(metric, name) for name in ("reads", "scorer", "prompts")}


def _compare(
    work: Work, metric: Metric, fingerprint: str, sample: Sequence[ExistingScore], columns: Sequence[str]
) -> ScoreMaker:
    work.store.check()
    recomputed, existing = _Recomputed(work, sample), np.array([each.value for each in sample])
    tried: dict[str, Metric] = {}
    agreements, errors, seen = [], [], set()
    for variant in agreement.scorer_variants(metric, columns):
        prompts = tuple(each.prompts[variant.prompts] for each in sample) if metric.uses_prompt else ()
        if (variant.reads, variant.scorer, prompts) in seen:
            continue  # the columns hold the same prompts
        seen.add((variant.reads, variant.scorer, prompts))
        name = agreement.describe_variant(variant)
        try:
            scores = recomputed.scores(variant)
        except FlexyError as error:
            if not tried:
                raise
            errors.append(f"{name}: not tried ({error})")
            continue
        tried[name] = variant
        agreements.append(agreement.compare_scores(name, existing, scores, metric.low, metric.high))
        if agreements[-1].exact:
            break
    best, *_ = ranked = agreement.rank_agreements(agreements)
    return ScoreMaker(
        metric.name,
        fingerprint,
        _variant(tried[best.variant]) if best.equal else None,
        best.compared,
        best.agreeing,
        best.mean_difference,
        best.spread,
        best.correlation,
        (*map(agreement.describe_agreement, ranked), *errors),
    )


class _Recomputed:
    """A sample's scores by the variants of a scorer; each image is read and embedded once."""

    def __init__(self, work: Work, sample: Sequence[ExistingScore]) -> None:
        self.work, self.sample = work, sample
        read = work.store.read_many([(each.image_path or "", each.image_sha256) for each in sample])
        self.images = {place: image for place, image in enumerate(read) if not isinstance(image, FlexyError)}
        if not self.images:
            raise BadInputError(
                f"none of {len(read)} images with an existing score can be read ({read[0]}): set FLEXY_IMAGES so that"
                " they can: without them nothing tells who made these scores"
            )
        self.vectors: dict[str, dict[int, Any]] = {}

    def scores(self, variant: Metric) -> NDArray[np.float64]:
        """Return (n,) scores, NaN where an image cannot be read or has no prompt."""
        scores = np.full(len(self.sample), np.nan)
        prompts = {place: self.sample[place].prompts[variant.prompts] for place in self.images}
        scorer = variant.scorer or variant.name
        if variant.reads is None:
            places = [place for place, prompt in prompts.items() if prompt]
            model = self.work.slot.get(self.work.model(scorer)) if places else None
            pairs = [(model.prepare(self.images[place]), prompts[place]) for place in places] if model else []
            values = HalvingBatches(model.batch_size)(_score_pairs(model), pairs) if model else []
        elif variant.reads == scorer:
            vectors = self._embed(variant.reads)
            texts = self.work.embed_prompts({prompt for prompt in prompts.values() if prompt}, variant.reads)
            places = [place for place in vectors if prompts[place]]
            values = [float(vectors[place] @ texts[prompts[place] or ""]) for place in places]
        else:
            vectors = self._embed(variant.reads)
            places = list(vectors)
            values = self.work.slot.get(self.work.model(scorer)).score_embeddings(np.stack([*vectors.values()]))
        for place, value in zip(places, values, strict=True):
            if not isinstance(value, FlexyError):
                scores[place] = value
        return scores

    def _embed(self, encoder: str) -> dict[int, Any]:
        """Return the vectors of the images that can be embedded, by their place in the sample."""
        if encoder not in self.vectors:
            model = self.work.slot.get(self.work.model(encoder))
            pixels = [model.prepare(image) for image in self.images.values()]
            vectors = zip(self.images, HalvingBatches(model.batch_size)(model.images, pixels), strict=True)
            self.vectors[encoder] = {place: each for place, each in vectors if not isinstance(each, FlexyError)}
        return self.vectors[encoder]


def _score_pairs(model: Any) -> Any:
    return lambda pairs: model.scores([pixels for pixels, _ in pairs], [prompt for _, prompt in pairs])


def describe_refusal(maker: ScoreMaker) -> str:
    """Return why nothing is written to a column, by how much its scores differ, and what to do."""
    tried = "; ".join(" ".join(each.split()) for each in maker.tried)
    metric = METRICS[maker.metric]
    beside = f"keep ours beside it with flexy backfill --beside {metric.name}, or " if metric.column else ""
    remedy = f"{beside}compute all of them again with flexy rescore {metric.name}"
    if metric.uses_prompt:
        recovery = "recover the prompts with flexy prompts recover FILE"
        remedy = (
            f"{recovery}, name the column of the right ones in FLEXY_PROMPT_COLUMN,{'' if beside else ' or'} {remedy}"
        )
    return (
        f"{maker.metric} is not filled: {maker.sampled} of its scores were computed again, and no known scorer gives"
        f" them ({tried}): {remedy}"
    )


def describe_maker(maker: ScoreMaker, metric: Metric) -> str:
    """Return who made a column, in a few words."""
    if maker.variant is None:
        return "unknown: nothing is filled"
    return agreement.describe_variant(replace(metric, **maker.variant))


def agreement_document(maker: ScoreMaker, metric: Metric) -> dict[str, Any]:
    """Return the agreement of a column as `--json` has it."""
    return {
        "sampled": maker.sampled,
        "agreeing": maker.agreeing,
        "mean_difference": maker.mean_difference,
        "spread": maker.spread,
        "correlation": maker.correlation,
        "variant": describe_maker(maker, metric) if maker.variant else None,
        "tried": list(maker.tried),
        "done": "filled as it was made" if maker.variant else "nothing written",
    }
