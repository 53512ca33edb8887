"""Judges: models that look at images and answer a question with numbers on given scales, or say why they cannot.

No value is made up: a judgement without values has an error, and the next run asks again for what is missing.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from resources.errors import BadInputError, FlexyError
from resources.files import describe_os_error, folder_lock, write_atomically
from resources.json_lines import parse_json
from resources.models.slot import ModelSlot
from resources.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

JUDGES = {
    "gemini": "resources.judges.gemini:make_gemini",
    "moondream": "resources.judges.moondream:make_moondream",
    "local": "resources.judges.local_vlm:make_local_vlm",
}
"""Values of FLEXY_JUDGE: "module:callable", which makes a `JudgeBackend` from the settings and the model slot."""

MAX_SIDE = 1024
"""Pixels: the longest side of an image that is sent. Four such, as PNG, stay below the 20 MB that Gemini accepts."""

MAX_ANSWER_CHARACTERS = 20_000
"""A longer answer is rejected: the question is for a few numbers and their reasons."""


@dataclass(frozen=True)
class JudgeQuestion:
    """A question about some images, and the numbers that answer it.

    `images` describes each image, in the order in which they are sent; `scales` maps the name of each number to its
    lowest and highest value. `version` changes with the text; answers to another version are not reused.
    """

    name: str
    version: int
    text: str
    images: tuple[str, ...]
    scales: Mapping[str, tuple[float, float]]

    @property
    def captions(self) -> list[str]:
        """The text that stands before each image."""
        return [f"Picture {i}: {image}." for i, image in enumerate(self.images, 1)]

    @property
    def prompt(self) -> str:
        """The whole text that a model reads along with the images."""
        images = "\n".join(self.captions)
        form = ", ".join(f'"{name}": <a number from {low:g} to {high:g}>' for name, (low, high) in self.scales.items())
        return (
            f"{self.text}\n\n{images}\n\nAnswer with one JSON object and nothing else:\n"
            f'{{"reasoning": "<what you see, in two or three sentences>", {form}}}'
        )

    @property
    def schema(self) -> dict[str, Any]:
        """The answer's JSON schema; the reasoning comes first, so that the numbers follow from it."""
        properties: dict[str, Any] = {"reasoning": {"type": "string"}}
        for name, (low, high) in self.scales.items():
            properties[name] = {"type": "number", "minimum": low, "maximum": high}
        return {"type": "object", "properties": properties, "required": list(properties)}

    def parse_values(self, answer: str) -> dict[str, float]:
        """Return the numbers in a model's answer: one JSON object, with or without words or a fence around it.

        Raises `UnansweredError` where there is no such object or more than one, where a number is missing, named
        twice, not a number, or off its scale.
        """
        if len(answer) > MAX_ANSWER_CHARACTERS:
            raise UnansweredError(f"the answer is {len(answer)} characters long", raw=answer)
        # From the first brace to the last: nothing is picked out of two objects, or of one that was cut short.
        start, end = answer.find("{"), answer.rfind("}") + 1
        try:
            document = parse_json(answer[start:end] if start >= 0 else "", unique_names=True)
        except ValueError:
            raise UnansweredError(f"the answer is not one JSON object: {_quote_start(answer)}", raw=answer) from None
        for name, (low, high) in self.scales.items():
            if name not in document:
                raise UnansweredError(f"the answer has no {name}: {_quote_start(answer)}", raw=answer)
            value = document[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UnansweredError(f"{name} is not a number: {_quote_start(answer)}", raw=answer)
            if not low <= value <= high:
                raise UnansweredError(f"{name} is not from {low:g} to {high:g}: {_quote_start(answer)}", raw=answer)
        return {name: float(document[name]) for name in self.scales}


def _quote_start(text: str) -> str:
    """Return the start of a text on one line, quoted."""
    line = " ".join(text.split())
    return f"'{line[:80]}…'" if len(line) > 80 else f"'{line}'"


@dataclass(frozen=True)
class JudgeCost:
    """The cost of answers: requests sent, retries included, and the tokens that the model reports."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: JudgeCost) -> JudgeCost:
        return JudgeCost(
            self.requests + other.requests, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out
        )


@dataclass(frozen=True)
class JudgeAnswer:
    """A model's answer, verbatim, and its cost."""

    text: str
    cost: JudgeCost = JudgeCost()


class UnansweredError(FlexyError):
    """A question without a usable answer; `raw` is the unusable one, if there is one."""

    def __init__(self, reason: str, raw: str = "", cost: JudgeCost | None = None) -> None:
        super().__init__(reason)
        self.raw = raw
        self.cost = cost or JudgeCost()


class JudgeBackend(Protocol):
    """Puts a question to one model. Called from several threads."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model that answers; answers are reused under the same fingerprint only."""

    def answer(self, question: JudgeQuestion, images: Sequence[Image]) -> JudgeAnswer:
        """Return one answer to `question` about RGB images; another call may return another answer.

        Raises `UnansweredError` where the model gives none, `FlexyError` where it cannot be used.
        """


@dataclass(frozen=True)
class Judgement:
    """A judge's result for some images: `values`, or None and the `error` that prevented them.

    `values` are means over the readings, `spread` the standard deviations over them (0 for one reading). `raw` holds
    the answers verbatim, `cost` what was spent now: reused answers cost nothing. `fingerprint` is the model's.
    """

    values: Mapping[str, float] | None
    spread: Mapping[str, float] | None
    error: str | None
    fingerprint: str
    raw: tuple[str, ...] = field(default=(), repr=False)
    cost: JudgeCost = JudgeCost()


class Judge:
    """Asks one model, and keeps its answers in `folder`, so that no answer is paid for twice.

    An answer is reused for the same pixels of the images, in order, the same question with its version and text, the
    model's fingerprint and the number of the reading. It is on disk before it is used, and two processes that need
    the same one wait for each other. Safe to use from several threads.
    """

    def __init__(self, backend: JudgeBackend, folder: Path) -> None:
        self.backend = backend
        self.folder = folder

    @property
    def fingerprint(self) -> str:
        """Identifies the model that judges."""
        return self.backend.fingerprint

    def ask(self, question: JudgeQuestion, images: Sequence[Image], readings: int = 4) -> Judgement:
        """Return the judgement of `images`, averaged over `readings` independent answers.

        If one reading fails, the judgement has no values; the successful readings are kept for the next run. Raises
        `BadInputError` for a wrong number of images, and `FlexyError` where an answer cannot be written.
        """
        if len(images) != len(question.images):
            cause = f"question {question.name} needs {len(question.images)} images, got {len(images)}"
            raise BadInputError(f"{cause}: give {', '.join(question.images)}")
        if readings < 1:
            raise BadInputError(f"invalid readings {readings}: must be 1 or more")
        rgb_images = [image.convert("RGB") for image in images]
        folder = self.folder / _answers_folder(question, rgb_images, self.fingerprint)
        for image in rgb_images:
            image.thumbnail((MAX_SIDE, MAX_SIDE))
        values, raw, cost = [], [], JudgeCost()
        with self._lock_answers(folder):
            for reading in range(readings):
                file = folder / f"{reading}.json"
                text = _read_answer(file, question)
                if text is None:
                    try:
                        answer = self.backend.answer(question, rgb_images)
                        text, cost = answer.text, cost + answer.cost
                        question.parse_values(text)
                    except FlexyError as error:
                        if isinstance(error, UnansweredError):
                            cost += error.cost
                            raw += [error.raw[:MAX_ANSWER_CHARACTERS]] if error.raw else []
                        message = f"reading {reading + 1} of {readings}: {error}" if readings > 1 else str(error)
                        return Judgement(None, None, message, self.fingerprint, tuple(raw), cost)
                    _write_answer(file, question, reading, self.fingerprint, answer)
                values.append(question.parse_values(text))
                raw.append(text)
        columns = {name: [row[name] for row in values] for name in question.scales}
        means = {name: statistics.fmean(numbers) for name, numbers in columns.items()}
        spread = {name: statistics.pstdev(numbers) for name, numbers in columns.items()}
        return Judgement(means, spread, None, self.fingerprint, tuple(raw), cost)

    @contextmanager
    def _lock_answers(self, folder: Path) -> Iterator[None]:
        """Hold the lock of the answers in `folder`. Raises `FlexyError` where the folder cannot be made."""
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(folder))
            except OSError as error:
                raise FlexyError(f"cannot keep answers in {folder}: {describe_os_error(error)}") from None
            yield


def _answers_folder(question: JudgeQuestion, images: Sequence[Image], fingerprint: str) -> str:
    """Return a folder's name, the same for the same question to the same model about the same pixels."""
    pixels = (f"{image.width}x{image.height}:".encode() + image.tobytes() for image in images)
    hashes = [hashlib.sha256(content).hexdigest() for content in pixels]
    key = [hashes, question.name, question.version, question.prompt, fingerprint, MAX_SIDE]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return f"{digest[:2]}/{digest}"


def _read_answer(file: Path, question: JudgeQuestion) -> str | None:
    """Return the answer stored in `file`; None where there is none, or none that can be used."""
    try:
        text = json.loads(file.read_bytes())["answer"]
        question.parse_values(text)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UnansweredError):
        return None
    return str(text)


def _write_answer(file: Path, question: JudgeQuestion, reading: int, fingerprint: str, answer: JudgeAnswer) -> None:
    document = {
        "question": f"{question.name}/{question.version}",
        "judge": fingerprint,
        "reading": reading,
        "answer": answer.text,
        "tokens_in": answer.cost.tokens_in,
        "tokens_out": answer.cost.tokens_out,
    }
    try:
        write_atomically(file, json.dumps(document, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        raise FlexyError(f"cannot keep the answer {file}: {describe_os_error(error)}") from None


def make_judge(settings: Settings, slot: ModelSlot | None = None) -> Judge | None:
    """Return the judge that FLEXY_JUDGE names; None where it names none.

    A local model is loaded through `slot` at the first question. Raises `BadInputError` for an unknown judge, and for
    one whose key is missing.
    """
    if settings.judge == "none":
        return None
    if settings.judge not in JUDGES:
        raise BadInputError(f"invalid FLEXY_JUDGE {settings.judge!r}: choose {', '.join(JUDGES)} or none")
    make_backend = resolve_name(JUDGES[settings.judge])
    return Judge(make_backend(settings, slot or ModelSlot()), settings.home / "judgements")
