"""A judge looks at pictures and answers a question with numbers on stated scales, or says why it cannot.

There are no stand-in numbers: a verdict without values has a reason, and what was left unanswered is asked again by
the next run.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
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
"""What FLEXY_JUDGE can name: "module:callable", called with the settings and the slot for models, gives a `Backend`."""

MAX_SIDE = 1024
"""Pixels: the longest side a picture is shown with. Four such, as PNG, stay below the 20 MB that Gemini takes."""

MAX_ANSWER_CHARACTERS = 20_000
"""A longer answer is none: a few numbers and their reasons were asked for."""


@dataclass(frozen=True)
class JudgeQuestion:
    """What is asked about some pictures, in words, and the numbers wanted.

    `pictures` says what each picture is, in the order in which they are shown; `scales` maps the name of each
    number to its lowest and highest value. `version` changes with the words, whoever the pictures are of: what
    was answered to another version is asked anew.
    """

    name: str
    version: int
    text: str
    pictures: tuple[str, ...]
    scales: Mapping[str, tuple[float, float]]

    @property
    def prompt(self) -> str:
        """The whole of what a model reads besides the pictures."""
        shown = "\n".join(f"Picture {i}: {picture}." for i, picture in enumerate(self.pictures, 1))
        form = ", ".join(f'"{name}": <a number from {low:g} to {high:g}>' for name, (low, high) in self.scales.items())
        return (
            f"{self.text}\n\n{shown}\n\nAnswer with one JSON object and nothing else:\n"
            f'{{"reasoning": "<what you see, in two or three sentences>", {form}}}'
        )

    @property
    def schema(self) -> dict[str, Any]:
        """The answer's JSON schema; the reasoning comes first, so that the numbers follow from it."""
        numbers = {
            name: {"type": "number", "minimum": low, "maximum": high} for name, (low, high) in self.scales.items()
        }
        properties = {"reasoning": {"type": "string"}, **numbers}
        return {"type": "object", "properties": properties, "required": list(properties)}

    def values(self, answer: str) -> dict[str, float]:
        """The numbers in a model's answer: one JSON object, with or without words or a fence around it.

        Raises `UnansweredError` where there is no such object or more than one, where a number is missing, named
        twice, not a number, or off its scale.
        """
        if len(answer) > MAX_ANSWER_CHARACTERS:
            raise UnansweredError(f"the answer is {len(answer)} characters long", raw=answer)
        # From the first brace to the last: of two objects, or of one that was cut short, nothing is picked.
        start, end = answer.find("{"), answer.rfind("}") + 1
        try:
            found = parse_json(answer[start:end] if start >= 0 else "", unique_names=True)
        except ValueError:
            raise UnansweredError(f"the answer is not one JSON object: {_beginning(answer)}", raw=answer) from None
        for name, (low, high) in self.scales.items():
            if name not in found:
                raise UnansweredError(f"the answer has no {name}: {_beginning(answer)}", raw=answer)
            value = found[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UnansweredError(f"{name} is not a number: {_beginning(answer)}", raw=answer)
            if not low <= value <= high:
                raise UnansweredError(f"{name} is off its scale, {low:g} to {high:g}: {_beginning(answer)}", raw=answer)
        return {name: float(found[name]) for name in self.scales}


def _beginning(text: str) -> str:
    """The beginning of a text on one line, quoted."""
    words = " ".join(text.split())
    return f"'{words[:80]}…'" if len(words) > 80 else f"'{words}'"


@dataclass(frozen=True)
class JudgeCost:
    """What was spent: requests sent, those sent again included, and the tokens that the model says it took."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: JudgeCost) -> JudgeCost:
        return JudgeCost(
            self.requests + other.requests, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out
        )


@dataclass(frozen=True)
class JudgeAnswer:
    """What a model answered, in its own words, and what that cost."""

    text: str
    cost: JudgeCost = JudgeCost()


class UnansweredError(FlexyError):
    """A question that was left without a usable answer; what there is of one is `raw`."""

    def __init__(self, reason: str, raw: str = "", cost: JudgeCost | None = None) -> None:
        super().__init__(reason)
        self.raw = raw
        self.cost = cost or JudgeCost()


class JudgeBackend(Protocol):
    """Puts a question to one model. Called from several threads."""

    @property
    def mark(self) -> str:
        """Names the model that answers; answers by another mark are other answers."""
        ...

    def answer(self, question: JudgeQuestion, pictures: Sequence[Image]) -> JudgeAnswer:
        """One answer to `question` about RGB pictures; asked again, the model may answer otherwise.

        Raises `UnansweredError` where there is none to be had, `FlexyError` where the model cannot be used.
        """
        ...


@dataclass(frozen=True)
class Judgement:
    """What a judge makes of some pictures: `values`, or None and the `reason` why there are none.

    `values` are means over the readings, `spread` the standard deviations over them (0 where there was one).
    `raw` holds the answers as they were given, `cost` what was spent now: kept answers cost nothing. `judge` is
    the model's mark.
    """

    values: Mapping[str, float] | None
    spread: Mapping[str, float] | None
    reason: str | None
    judge: str
    raw: tuple[str, ...] = field(default=(), repr=False)
    cost: JudgeCost = JudgeCost()


class Judge:
    """Asks one model, and keeps its answers in `folder`, so that it is never asked twice for the same thing.

    The same are: the pictures' pixels, in order, the question with its version and words, the model's mark and the
    number of the reading. An answer is on disk before it is used, and two processes that want the same one wait for
    each other. Safe to use from several threads.
    """

    def __init__(self, backend: JudgeBackend, folder: Path) -> None:
        self.backend = backend
        self.folder = folder

    @property
    def mark(self) -> str:
        """Names the model that judges."""
        return self.backend.mark

    def ask(self, question: JudgeQuestion, images: Sequence[Image], readings: int = 4) -> Judgement:
        """The verdict on `images`, averaged over `readings` answers, each from a look of its own.

        One reading that fails leaves the verdict without values; those that went well are kept for the next time.
        Raises `BadInputError` for another number of pictures than the question speaks of, and `FlexyError` where an
        answer cannot be written.
        """
        if len(images) != len(question.pictures):
            raise BadInputError(
                f"question {question.name} is about {len(question.pictures)} pictures and there are {len(images)}:"
                f" show {', '.join(question.pictures)}"
            )
        if readings < 1:
            raise BadInputError(f"{readings} readings of a question are none: ask for 1 or more")
        pictures = [image.convert("RGB") for image in images]
        folder = self.folder / _key(question, pictures, self.mark)
        for picture in pictures:
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
        read: list[dict[str, float]] = []
        raw: list[str] = []
        cost = JudgeCost()
        with self._lock_answers(folder):
            for reading in range(readings):
                file = folder / f"{reading}.json"
                text = _kept(file, question)
                if text is None:
                    try:
                        answer = self.backend.answer(question, pictures)
                        text, cost = answer.text, cost + answer.cost
                        question.values(text)
                    except FlexyError as error:
                        if isinstance(error, UnansweredError):
                            cost += error.cost
                            raw += [error.raw[:MAX_ANSWER_CHARACTERS]] if error.raw else []
                        reason = f"reading {reading + 1} of {readings}: {error}" if readings > 1 else str(error)
                        return Judgement(None, None, reason, self.mark, tuple(raw), cost)
                    _keep(file, question, reading, self.mark, answer)
                read.append(question.values(text))
                raw.append(text)
        over = {name: [values[name] for values in read] for name in question.scales}
        means = {name: statistics.fmean(numbers) for name, numbers in over.items()}
        spread = {name: statistics.pstdev(numbers) for name, numbers in over.items()}
        return Judgement(means, spread, None, self.mark, tuple(raw), cost)

    @contextmanager
    def _lock_answers(self, folder: Path) -> Iterator[None]:
        """Hold the lock of the answers in `folder`. Raises `FlexyError` where the folder cannot be made."""
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(folder))
            except OSError as error:
                raise FlexyError(f"cannot keep answers in {folder}: {describe_os_error(error)}") from None
            yield


def _key(question: JudgeQuestion, pictures: Sequence[Image], mark: str) -> str:
    """A folder's name, the same for the same question to the same model about the same pixels."""
    hashes = [
        hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + picture.tobytes()).hexdigest()
        for picture in pictures
    ]
    asked = [hashes, question.name, question.version, question.prompt, mark, MAX_SIDE]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return f"{digest[:2]}/{digest}"


def _kept(file: Path, question: JudgeQuestion) -> str | None:
    """The answer kept in `file`; None where there is none, or none that can be used."""
    try:
        text = json.loads(file.read_bytes())["answer"]
        question.values(text)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UnansweredError):
        return None
    return str(text)


def _keep(file: Path, question: JudgeQuestion, reading: int, mark: str, answer: JudgeAnswer) -> None:
    kept = {
        "question": f"{question.name}/{question.version}",
        "judge": mark,
        "reading": reading,
        "answer": answer.text,
        "tokens_in": answer.cost.tokens_in,
        "tokens_out": answer.cost.tokens_out,
    }
    try:
        write_atomically(file, json.dumps(kept, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        raise FlexyError(f"cannot keep the answer {file}: {describe_os_error(error)}") from None


def make_judge(settings: Settings, slot: ModelSlot | None = None) -> Judge | None:
    """The judge that FLEXY_JUDGE names; None where it names none.

    A local model is taken from `slot` when it is first asked. Raises `BadInputError` for a judge that there is not,
    and for one that lacks its key.
    """
    if settings.judge == "none":
        return None
    if settings.judge not in JUDGES:
        raise BadInputError(f"FLEXY_JUDGE={settings.judge} is no judge: use {', '.join(JUDGES)} or none")
    module, _, name = JUDGES[settings.judge].partition(":")
    backend: JudgeBackend = getattr(import_module(module), name)(settings, slot or ModelSlot())
    return Judge(backend, settings.home / "judgements")
