"""Editors of the published classes: instructions, and inpainting with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resources.engines import EditNoise, EditRequest
from resources.errors import FlexyError

from .source_images import half_mask, source_image

pytestmark = pytest.mark.slow(seconds=80)

Loaded = Callable[..., Any]

INPAINTERS = ["flux_kontext", "qwen_image_edit", "qwen_image_edit_plus"]
EDITORS = [*INPAINTERS, "instruct_pix2pix"]

REQUEST = EditRequest(source_image(0), "make it night", None, 2, 3.0, EditNoise(1))


def max_difference(one: Image.Image, other: Image.Image) -> int:
    """Return the largest absolute difference of two images' values, of 255."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_depends_only_on_its_own_request(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    requests = [replace(REQUEST, noise=EditNoise(seed)) for seed in (1, 2)]
    together = editor.edit(requests)
    alone = [editor.edit([request])[0] for request in requests]
    assert [(edit.size, edit.mode) for edit in together] == [((96, 128), "RGB")] * 2
    assert max(map(max_difference, together, alone)) <= 2
    assert max_difference(*alone) > 20
    for changed in (replace(requests[0], prompt="xyz"), replace(requests[0], image=source_image(1))):
        assert max_difference(editor.edit([changed])[0], alone[0]) > 5


@pytest.mark.parametrize("name", ["flux_kontext", "qwen_image_edit"])
def test_an_inpainting_changes_only_pixels_inside_the_mask(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    requests = [replace(REQUEST, mask=half_mask(), steps=1, noise=EditNoise(seed)) for seed in (1, 2)]
    edits = editor.edit(requests)
    for edit in edits:
        source = np.asarray(REQUEST.image, int)
        changes = np.abs(np.asarray(edit, int) - source).max(-1)
        assert edit.size == REQUEST.image.size
        assert (changes[:, :48] > 0).mean() > 0.9
        assert (changes[:, 48:] == 0).all()
    assert max_difference(*edits) > 20
    assert max_difference(editor.edit(requests[1:])[0], edits[1]) <= 2


@pytest.mark.parametrize("name", INPAINTERS)
def test_inpainting_takes_no_second_copy_of_the_weights(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    shared = editor.pipeline.components
    assert any(isinstance(part, torch.nn.Module) for part in shared.values())
    assert all(part is shared[key] for key, part in editor.inpaint_pipeline.components.items())


def test_an_editor_that_cannot_inpaint_says_so(loaded: Loaded) -> None:
    with pytest.raises(FlexyError, match="leave out the mask"):
        loaded("instruct_pix2pix").edit([replace(REQUEST, mask=half_mask())])


def test_image_guidance_changes_the_edit(loaded: Loaded) -> None:
    weak, strong = (loaded("instruct_pix2pix", image_guidance=guidance).edit([REQUEST])[0] for guidance in (1.5, 4.0))
    assert max_difference(weak, strong) > 5


# The two Qwen classes take the same arguments.
@pytest.mark.parametrize(
    ("name", "counts"), [("flux_kontext", False), ("qwen_image_edit", True), ("instruct_pix2pix", True)]
)
def test_guidance_and_supported_negative_prompts_change_the_edit(name: str, counts: bool, loaded: Loaded) -> None:
    editor = loaded(name)
    request = replace(REQUEST, steps=1)
    edit = editor.edit([request])[0]
    assert max_difference(edit, editor.edit([replace(request, guidance=6.0)])[0]) > 5
    with_negative = editor.edit([replace(request, negative_prompt="grey and blurred")])[0]
    assert (max_difference(edit, with_negative) > 5) if counts else with_negative == edit


@pytest.mark.parametrize(
    "difference",
    [
        {"prompt": "x"},
        {"steps": 3},
        {"guidance": 1.0},
        {"negative_prompt": "x"},
        {"image": source_image(1)},
        {"mask": half_mask()},
    ],
)
def test_requests_that_differ_in_more_than_noise_and_parent_are_rejected(difference: Any, loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="differ in noise and parent only"):
        loaded("flux_kontext").edit([REQUEST, replace(REQUEST, **difference)])
