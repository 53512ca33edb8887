"""Vision-language models on this machine, such as Qwen-VL, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from resources.errors import BadInputError
from resources.judges import JudgeAnswer, JudgeCost, JudgeQuestion, UnansweredError
from resources.models import compute, registry
from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot
from resources.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPERATURE = 0.7
"""The sampling temperature, at which readings differ; EditScore's."""

MAX_NEW_TOKENS = 512


class VisionLanguageModel:
    """Answers a prompt about images in text."""

    def __init__(self, folder: Path, precision: str = "fp32") -> None:
        """Load a folder in transformers' form, processor and chat template included. Raises `FlexyError`."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from resources.models.loading import load_network, load_tokenizer

        self.processor: Any = load_tokenizer(AutoProcessor, folder)
        network = load_network(AutoModelForImageTextToText, folder, compute.torch_dtype(precision))
        self.model = network.eval().to(compute.compute_device())

    def answer(self, question: JudgeQuestion, images: Sequence[Image]) -> JudgeAnswer:
        """Return one answer to `question` about RGB images, sampled at each call."""
        import torch

        content: list[dict[str, Any]] = []
        for caption, image in zip(question.captions, images, strict=True):
            content += [{"type": "text", "text": caption}, {"type": "image", "image": image}]
        content.append({"type": "text", "text": question.prompt})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=TEMPERATURE, top_p=1.0, top_k=0
            )
        prompt_length = inputs["input_ids"].shape[1]
        text = self.processor.batch_decode(tokens[:, prompt_length:], skip_special_tokens=True)[0]
        return JudgeAnswer(text, JudgeCost(tokens_in=prompt_length, tokens_out=tokens.shape[1] - prompt_length))


class LocalJudge:
    """A model of the registry, loaded through the slot at the first question and used by one thread at a time."""

    def __init__(self, model: LocalModel, slot: ModelSlot) -> None:
        self._model = model
        self._slot = slot
        self._lock = Lock()

    @property
    def fingerprint(self) -> str:
        """The model's name, weights and precision."""
        return self._model.fingerprint

    def answer(self, question: JudgeQuestion, images: Sequence[Image]) -> JudgeAnswer:
        """Return one answer. Raises `FlexyError` without the model, `UnansweredError` without memory for it."""
        with self._lock:
            model: VisionLanguageModel = self._slot.get(self._model)
            try:
                return model.answer(question, images)
            except Exception as error:
                if not compute.is_out_of_memory(error):
                    raise
        compute.release_memory()
        raise UnansweredError("out of memory for these images: free some memory, or use a smaller judge")


def make_local_vlm(settings: Settings, slot: ModelSlot) -> LocalJudge:
    """Return the judge of the registry that FLEXY_JUDGE_MODEL names, by default its first, for any FLEXY_MODELS."""
    full = settings.with_models("full")
    names = registry.model_names("judge", full)
    name = settings.judge_model or names[0]
    if name not in names:
        raise BadInputError(f"invalid FLEXY_JUDGE_MODEL {name!r}: choose {', '.join(names)}")
    return LocalJudge(registry.local_model(registry.MODELS[name], full), slot)
