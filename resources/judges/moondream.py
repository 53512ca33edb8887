"""Moondream, over the `/query` endpoint of its cloud or of a Moondream Station (https://docs.moondream.ai)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resources.judges import JudgeAnswer, JudgeCost, JudgeQuestion, UnansweredError
from resources.judges.client import JudgeClient, count_tokens, encode_image
from resources.models.slot import ModelSlot
from resources.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

URL = "https://api.moondream.ai/v1"
HEIGHT = 512
"""Pixels: the height of several images side by side. The model reads hardly more of each."""


class Moondream:
    """One Moondream server; without `model`, the one that the server runs.

    The endpoint accepts one image, so several are sent side by side. The model is small: its answers about one or
    two images are the most reliable.
    """

    def __init__(self, client: JudgeClient, model: str = "") -> None:
        self.client = client
        self.fingerprint = f"moondream/{model}" if model else f"moondream@{client.http.name}"
        self._model = {"model": model} if model else {}

    def answer(self, question: JudgeQuestion, images: Sequence[Image]) -> JudgeAnswer:
        """Return one answer to one JPEG. Raises `UnansweredError` where the server gives none."""
        order = "The pictures stand side by side in one image, from left to right.\n\n" if len(images) > 1 else ""
        document, cost = self.client.post(
            "query",
            {
                "image_url": f"data:image/jpeg;base64,{encode_image(tile_side_by_side(images), 'JPEG', quality=95)}",
                "question": order + question.prompt,
                "stream": False,
                "settings": {"temperature": 0.7, "max_tokens": 1024},
                **self._model,
            },
        )
        cost += JudgeCost(
            tokens_in=count_tokens(document, "metrics", "input_tokens"),
            tokens_out=count_tokens(document, "metrics", "output_tokens"),
        )
        match document:
            case {"answer": str(text)}:
                return JudgeAnswer(text, cost)
            # A Station reports its errors with status 200.
            case {"error": reason}:
                raise UnansweredError(f"Moondream could not answer: {' '.join(str(reason).split())[:200]}", cost=cost)
        raise UnansweredError("Moondream gave no answer and no reason", cost=cost)


def tile_side_by_side(images: Sequence[Image]) -> Image:
    """Return RGB images as one: a single one unchanged, several `HEIGHT` pixels high with a white gap between."""
    from PIL import Image

    if len(images) == 1:
        return images[0]
    scaled = [image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT)) for image in images]
    gap = 16
    sheet = Image.new("RGB", (sum(image.width + gap for image in scaled) - gap, HEIGHT), "white")
    left = 0
    for image in scaled:
        sheet.paste(image, (left, 0))
        left += image.width + gap
    return sheet


def make_moondream(settings: Settings, _: ModelSlot) -> Moondream:
    """Return the server at FLEXY_JUDGE_URL, by default Moondream's cloud with the key in MOONDREAM_API_KEY."""
    return Moondream(JudgeClient.from_settings(settings, URL, "X-Moondream-Auth"), settings.judge_model)
