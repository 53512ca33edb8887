"""A vision-language model of the very class judges from its folder; of nonsense no number is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from resources.judges import Judge, JudgeQuestion, local_vlm, make_judge
from resources.judges.local_vlm import VisionLanguageModel
from resources.models.slot import ModelSlot
from resources.settings import Settings

pytestmark = pytest.mark.slow(seconds=30)

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = JudgeQuestion("same", 1, "Same?", ("one", "two"), {"m": (0, 10)})
PICTURES = [Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")]


def tiny(spread: float) -> tuple[Any, Any]:
    """The published model's class with a few thousand random weights, and its processor; one token a byte.

    With weights of a large `spread` it heeds what it is shown.
    """
    from tokenizers import pre_tokenizers
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    torch.manual_seed(0)
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(letters)}
    words = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=SPECIAL)
    identity = words.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(words),
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "rope_parameters": rope,
                "initializer_range": spread,
                "eos_token_id": identity("<|im_end|>"),
                "pad_token_id": identity("<|endoftext|>"),
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [0],
                "initializer_range": spread,
            },
            image_token_id=identity("<|image_pad|>"),
            video_token_id=identity("<|video_pad|>"),
            vision_start_token_id=identity("<|vision_start|>"),
            vision_end_token_id=identity("<|vision_end|>"),
        )
    )
    model.generation_config.eos_token_id = identity("<|im_end|>")
    model.generation_config.pad_token_id = identity("<|endoftext|>")
    eye = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**eye), words, Qwen2VLVideoProcessor(**eye), chat_template=TEMPLATE
    )
    return model, processor


def teach(model: Any, processor: Any, answer: str) -> None:
    """Train the model to give `answer` to ASKED about PICTURES, in the very context it is asked in."""
    content: list[dict[str, Any]] = []
    for i, (what, picture) in enumerate(zip(ASKED.images, PICTURES, strict=True), 1):
        content += [{"type": "text", "text": f"Picture {i}: {what}."}, {"type": "image", "image": picture}]
    content.append({"type": "text", "text": ASKED.prompt})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    words = processor.tokenizer(f"{answer}<|im_end|>", return_tensors="pt")["input_ids"]
    asked = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], words], dim=1)
    for name, filler in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(words, filler)], dim=1)
    labels = inputs["input_ids"].clone()
    labels[:, :asked] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = model(**inputs, labels=labels).loss
        if loss < 0.005:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"not learnt in 400 steps: loss {loss:.3f}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model."""
    folder = tmp_path_factory.mktemp("vlm")
    for part in tiny(spread=0.5):
        part.save_pretrained(folder)
    return folder


def judging(home: Path, folder: Path) -> Judge:
    registry = home / "models.toml"
    registry.write_text(f'[models]\nqwen25_vl_7b = "{folder}"\n')
    settings = {"FLEXY_HOME": str(home), "FLEXY_JUDGE": "local", "FLEXY_MODEL_REGISTRY": str(registry)}
    made = make_judge(Settings.read(settings), ModelSlot())
    assert made is not None
    return made


def test_a_model_that_talks_nonsense_gives_no_values_and_the_reason(tmp_path: Path, folder: Path) -> None:
    verdict = judging(tmp_path, folder).ask(ASKED, PICTURES)
    assert verdict.values is None
    assert str(verdict.error).startswith("reading 1 of 4: the answer is not one JSON object: '")
    assert len(verdict.raw) == 1
    assert verdict.fingerprint.startswith("qwen25_vl_7b@")
    assert verdict.cost.requests == 0 and verdict.cost.tokens_out > 0
    assert verdict.cost.tokens_in > len(ASKED.prompt), "the pictures count too"
    assert not list((tmp_path / "judgements").rglob("*.json"))


def test_a_model_that_answers_is_read_kept_and_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As good as greedy: the claim is about reading and keeping, not about sampling.
    monkeypatch.setattr(local_vlm, "TEMPERATURE", 0.01)
    model, processor = tiny(spread=0.02)
    teach(model, processor, '{"m": 7}')
    for part in (model, processor):
        part.save_pretrained(tmp_path / "vlm")
    verdict = judging(tmp_path, tmp_path / "vlm").ask(ASKED, PICTURES, readings=2)
    assert verdict.error is None
    assert (verdict.values, verdict.spread) == ({"m": 7.0}, {"m": 0.0})
    again = judging(tmp_path, tmp_path / "vlm")
    assert again.ask(ASKED, PICTURES, readings=2).values == {"m": 7.0}
    backend: Any = again.backend
    assert backend._slot._held is None, "for kept answers no model is loaded"


def test_pictures_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_vlm, "MAX_NEW_TOKENS", 16)
    model = VisionLanguageModel(folder)
    heard = []
    for pictures in (PICTURES, PICTURES[::-1]):
        torch.manual_seed(0)
        heard.append(model.answer(ASKED, pictures).text)
    torch.manual_seed(0)
    assert heard[0] != heard[1] and model.answer(ASKED, PICTURES).text == heard[0]


def test_a_model_that_is_not_here_or_not_whole_is_named_and_judges_nothing(tmp_path: Path, folder: Path) -> None:
    verdict = judging(tmp_path, tmp_path / "nowhere").ask(ASKED, PICTURES)
    assert verdict.values is None
    assert f"no weights for qwen25_vl_7b: there is no folder {tmp_path / 'nowhere'}" in str(verdict.error)

    partial = tmp_path / "partial"
    partial.mkdir()
    for file in folder.iterdir():
        (partial / file.name).write_bytes(file.read_bytes())
    (partial / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    verdict = judging(tmp_path, partial).ask(ASKED, PICTURES)
    assert verdict.values is None and str(partial) in str(verdict.error)
    assert "\n" not in str(verdict.error)

    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 48
    (partial / "config.json").write_text(json.dumps(config))
    (partial / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    verdict = judging(tmp_path, partial).ask(ASKED, PICTURES)
    assert "weights are missing or of another size" in str(verdict.error)
