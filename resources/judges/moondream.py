"""Moondream, over the `/query` endpoint of its cloud or of a Moondream Station (https://docs.moondream.ai)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resources.judges import JudgeAnswer, JudgeCost, JudgeQuestion, UnansweredError
from resources.judges.client import JudgeClient, count_tokens
from resources.models.slot import ModelSlot
from resources.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

URL = "https://api.moondream.ai/v1"
HEIGHT = 512
"""Pixels: how high several pictures stand side by side. The model reads few more of each."""


class Moondream:
    """One Moondream server; without `model`, the one that the server has.

    The endpoint takes one picture, so several are shown side by side. The model is small: of its answers, those
    about one or two pictures are worth the most.
    """

    def __init__(self, client: JudgeClient, model: str = "") -> None:
        self.client = client
        self.mark = f"moondream/{model}" if model else f"moondream@{client.http.name}"
        self._model = {"model": model} if model else {}

    def answer(self, question: JudgeQuestion, pictures: Sequence[Image]) -> JudgeAnswer:
        """One answer, from one JPEG. Raises `UnansweredError` where the server gives none."""
        order = "The pictures stand side by side in one image, from left to right.\n\n" if len(pictures) > 1 else ""
        document, cost = self.client.post(
            "query",
            {
                "image_url": f"data:image/jpeg;base64,{_jpeg(tile_side_by_side(pictures))}",
                "question": order + question.prompt,
                "stream": False,
                "settings": {"temperature": 0.7, "max_tokens": 1024},
                **self._model,
            },
        )
        used = document.get("metrics") if isinstance(document, dict) else None
        cost += JudgeCost(tokens_in=count_tokens(used, "input_tokens"), tokens_out=count_tokens(used, "output_tokens"))
        match document:
            case {"answer": str(text)}:
                return JudgeAnswer(text, cost)
            # A Station says what went wrong with status 200.
            case {"error": why}:
                raise UnansweredError(f"Moondream could not answer: {' '.join(str(why).split())[:200]}", cost=cost)
        raise UnansweredError("Moondream gave no answer and no reason", cost=cost)


def tile_side_by_side(pictures: Sequence[Image]) -> Image:
    """RGB pictures as one: a single one as it is, several `HEIGHT` pixels high with a white gap between."""
    from PIL import Image

    if len(pictures) == 1:
        return pictures[0]
    scaled = [picture.resize((max(1, round(picture.width * HEIGHT / picture.height)), HEIGHT)) for picture in pictures]
    gap = 16
    sheet = Image.new("RGB", (sum(picture.width + gap for picture in scaled) - gap, HEIGHT), "white")
    left = 0
    for picture in scaled:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def _jpeg(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return base64.b64encode(buffer.getvalue()).decode()


def make_moondream(settings: Settings, _: ModelSlot) -> Moondream:
    """The server at FLEXY_JUDGE_URL, by default Moondream's cloud with the key in MOONDREAM_API_KEY."""
    return Moondream(JudgeClient.from_settings(settings, URL, "X-Moondream-Auth"), settings.judge_model)
