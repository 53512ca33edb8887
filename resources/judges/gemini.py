"""Google's Gemini, over its REST interface (`generateContent`), which answers in a given JSON schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from resources.judges import JudgeAnswer, JudgeCost, JudgeQuestion, UnansweredError
from resources.judges.client import JudgeClient, count_tokens, encode_image
from resources.models.slot import ModelSlot
from resources.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

URL = "https://generativelanguage.googleapis.com"
MODEL = "gemini-3.5-flash"


class Gemini:
    """One Gemini model, at the temperature that Google advises, at which readings differ."""

    def __init__(self, client: JudgeClient, model: str = MODEL) -> None:
        self.client = client
        self.fingerprint = f"gemini/{model}"
        self._path = f"v1beta/models/{quote(model, safe='')}:generateContent"

    def answer(self, question: JudgeQuestion, images: Sequence[Image]) -> JudgeAnswer:
        """Return one answer to images sent as PNG. Raises `UnansweredError` where it is blocked or cut short."""
        parts: list[dict[str, Any]] = []
        for caption, image in zip(question.captions, images, strict=True):
            inline_data = {"mimeType": "image/png", "data": encode_image(image, "PNG")}
            parts += [{"text": caption}, {"inlineData": inline_data}]
        document, cost = self.client.post(
            self._path,
            {
                "contents": [{"role": "user", "parts": [*parts, {"text": question.prompt}]}],
                "generationConfig": {
                    "responseMimeType": "application/json",
                    "responseJsonSchema": question.schema,
                    # The model's thoughts count towards it.
                    "maxOutputTokens": 8192,
                },
            },
        )
        cost += JudgeCost(
            tokens_in=count_tokens(document, "usageMetadata", "promptTokenCount"),
            tokens_out=count_tokens(document, "usageMetadata", "candidatesTokenCount", "thoughtsTokenCount"),
        )
        match document:
            case {"promptFeedback": {"blockReason": reason}}:
                raise UnansweredError(f"Gemini refused the images or the question: {str(reason)[:80]}", cost=cost)
            case {"candidates": [{"finishReason": "STOP", "content": {"parts": [*answer]}}, *_]}:
                return JudgeAnswer("".join(_part_text(part) for part in answer), cost)
            case {"candidates": [{"finishReason": reason}, *_]}:
                raise UnansweredError(f"Gemini broke off its answer: {str(reason)[:80]}", cost=cost)
        raise UnansweredError("Gemini gave no answer and no reason", cost=cost)


def _part_text(part: Any) -> str:
    match part:
        case {"thought": True}:
            return ""
        case {"text": str(text)}:
            return text
    return ""


def make_gemini(settings: Settings, _: ModelSlot) -> Gemini:
    """Return the model that FLEXY_JUDGE_MODEL names, with the key in GEMINI_API_KEY."""
    return Gemini(JudgeClient.from_settings(settings, URL, "x-goog-api-key"), settings.judge_model or MODEL)
