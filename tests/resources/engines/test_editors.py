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

from .pictures import half_mask, picture

Loaded = Callable[..., Any]

INPAINTERS = ["flux_kontext", "qwen_image_edit", "qwen_image_edit_plus"]
EDITORS = [*INPAINTERS, "instruct_pix2pix"]

REQUEST = EditRequest(picture(0), "make it night", None, 2, 3.0, EditNoise(1))


def apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any value, of 255."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_depends_on_its_own_request_alone(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    requests = [replace(REQUEST, noise=EditNoise(seed)) for seed in (1, 2, 3)]
    together = editor.edit(requests)
    alone = [editor.edit([request])[0] for request in requests]
    assert [(edit.size, edit.mode) for edit in together] == [((96, 128), "RGB")] * 3
    assert max(map(apart, together, alone)) <= 2
    assert min(apart(alone[0], alone[1]), apart(alone[1], alone[2])) > 20
    for changed in (replace(requests[0], prompt="xyz"), replace(requests[0], image=picture(1))):
        assert apart(editor.edit([changed])[0], alone[0]) > 5


@pytest.mark.parametrize("name", ["flux_kontext", "qwen_image_edit"])
def test_an_inpainting_changes_what_the_mask_lets_it(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    requests = [replace(REQUEST, mask=half_mask(), steps=1, noise=EditNoise(seed)) for seed in (1, 2)]
    edits = editor.edit(requests)
    for edit in edits:
        source = np.asarray(REQUEST.image, int)
        changes = np.abs(np.asarray(edit, int) - source).max(-1)
        assert edit.size == REQUEST.image.size
        assert (changes[:, :48] > 0).mean() > 0.9
        assert (changes[:, 48:] == 0).all()
    assert apart(*edits) > 20
    assert apart(editor.edit(requests[1:])[0], edits[1]) <= 2


@pytest.mark.parametrize("name", INPAINTERS)
def test_inpainting_takes_no_second_copy_of_the_weights(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    shared = editor.pipeline.components
    assert any(isinstance(part, torch.nn.Module) for part in shared.values())
    assert all(part is shared[key] for key, part in editor.inpainter.components.items())


def test_an_editor_that_cannot_inpaint_says_so(loaded: Loaded) -> None:
    with pytest.raises(FlexyError, match="leave out the mask"):
        loaded("instruct_pix2pix").edit([replace(REQUEST, mask=half_mask())])


def test_how_strongly_the_source_is_kept_counts(loaded: Loaded) -> None:
    edit, keener = (loaded("instruct_pix2pix", image_guidance=guidance).edit([REQUEST])[0] for guidance in (1.5, 4.0))
    assert apart(edit, keener) > 5


# What the two Qwen classes are asked is the same.
@pytest.mark.parametrize(
    ("name", "counts"), [("flux_kontext", False), ("qwen_image_edit", True), ("instruct_pix2pix", True)]
)
def test_guidance_counts_and_a_negative_prompt_where_it_is_known(name: str, counts: bool, loaded: Loaded) -> None:
    editor = loaded(name)
    asked = replace(REQUEST, steps=1)
    edit = editor.edit([asked])[0]
    assert apart(edit, editor.edit([replace(asked, guidance=6.0)])[0]) > 5
    with_negative = editor.edit([replace(asked, negative_prompt="grey and blurred")])[0]
    assert (apart(edit, with_negative) > 5) if counts else with_negative == edit


@pytest.mark.parametrize(
    "difference",
    [
        {"prompt": "x"},
        {"steps": 3},
        {"guidance": 1.0},
        {"negative_prompt": "x"},
        {"image": picture(1)},
        {"mask": half_mask()},
    ],
)
def test_requests_that_differ_in_more_than_noise_and_parent_are_a_mistake(difference: Any, loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="differ in noise and parent alone"):
        loaded("flux_kontext").edit([REQUEST, replace(REQUEST, **difference)])
