"""Nothing is asked twice, killed or not, by one process or two; readings are averaged; a second judge is one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resources import judges
from resources.errors import BadInputError, FlexyError
from resources.judges import Judge, JudgeAnswer, JudgeCost, Judgement, JudgeQuestion
from resources.models.slot import ModelSlot
from resources.settings import Settings
from tests.support import forked
from tests.support.servers import GOOD_ANSWER, JudgeReply

from .conftest import World

ROOT = Path(__file__).parents[3]
Pair = list[Image.Image]

# A process of its own that asks for one verdict, and prints it.
ASKING = """
import json, sys
from PIL import Image
from resources.judges import JudgeQuestion, make_judge
from resources.settings import Settings
asked = JudgeQuestion("twins", 1, "How alike?", ("one", "two"), {"likeness": (0, 10)})
verdict = make_judge(Settings.read()).ask(asked, [Image.new("RGB", (8, 8), name) for name in ("red", "blue")])
print(json.dumps([verdict.values, verdict.error, verdict.cost.requests]))
"""


def says(likeness: float, sharpness: float = 5) -> JudgeReply:
    return JudgeReply(json.dumps({"likeness": likeness, "sharpness": sharpness}))


def started(world: World) -> forked.Popen:
    environment = {
        "FLEXY_HOME": str(world.home),
        "FLEXY_JUDGE": "gemini",
        "FLEXY_JUDGE_URL": world.service.url,
        "PYTHONPATH": str(ROOT),
    }
    return forked.Popen([sys.executable, "-c", ASKING], env=environment, stdout=forked.PIPE, text=True)


def printed(process: forked.Popen) -> Any:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output)


def test_readings_are_averaged_and_their_spread_is_kept(world: World, question: JudgeQuestion, pair: Pair) -> None:
    world.service.script = [says(8), says(6), says(7), says(9, sharpness=1)]
    verdict = world.judge().ask(question, pair)
    assert verdict.values == {"likeness": 7.5, "sharpness": 4.0}
    assert verdict.spread == pytest.approx({"likeness": 1.25**0.5, "sharpness": 3**0.5})
    assert verdict.error is None
    assert len(verdict.raw) == 4
    assert verdict.cost == JudgeCost(requests=4, tokens_in=4000, tokens_out=400)


def test_a_reading_that_fails_leaves_no_values_and_the_next_run_asks_for_it_alone(
    world: World, question: JudgeQuestion, pair: Pair
) -> None:
    world.service.script = [says(8), says(6), JudgeReply("I would rather not.")]
    verdict = world.judge().ask(question, pair)
    assert (verdict.values, verdict.spread) == (None, None)
    assert verdict.error == "reading 3 of 4: the answer is not one JSON object: 'I would rather not.'"
    assert len(verdict.raw) == 3
    world.service.script = [says(7), says(9)]
    healed = world.judge().ask(question, pair)
    assert healed.values == {"likeness": 7.5, "sharpness": 5.0}
    assert healed.cost.requests == 2
    assert len(world.service.requests) == 5


def test_what_was_answered_is_not_asked_again(world: World, question: JudgeQuestion, pair: Pair) -> None:
    first = world.judge().ask(question, pair)
    again = world.judge().ask(question, [picture.copy() for picture in pair])
    assert len(world.service.requests) == 4
    assert (again.values, again.spread, again.raw) == (first.values, first.spread, first.raw)
    assert again.cost == JudgeCost(), "what is kept costs nothing"
    assert len(list((world.home / "judgements").rglob("*.json"))) == 4


def test_another_picture_order_question_version_model_or_reading_is_asked(
    world: World, question: JudgeQuestion, pair: Pair, picture: Callable[[int], Image.Image]
) -> None:
    parts = vars(question)
    world.judge().ask(question, pair, readings=1)
    for asked, pictures in (
        (question, pair[::-1]),
        (question, [pair[0], picture(2)]),
        (question, [pair[0], pair[1].resize((24, 32))]),
        (JudgeQuestion(**parts | {"version": 2}), pair),
        (JudgeQuestion(**parts | {"name": "others"}), pair),
        (JudgeQuestion(**parts | {"text": "How alike? How sharp?"}), pair),
        (JudgeQuestion(**parts | {"images": ("the one", "the other")}), pair),
        (JudgeQuestion(**parts | {"scales": {"likeness": (0, 10), "sharpness": (0, 5)}}), pair),
    ):
        before = len(world.service.requests)
        assert world.judge().ask(asked, pictures, readings=1).values
        assert len(world.service.requests) == before + 1
    assert world.judge("moondream").ask(question, pair, readings=1).cost.requests == 1
    assert world.judge().ask(question, pair, readings=2).cost.requests == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"answer": 7}', '{"answer": "no"}', json.dumps({"answer": '{"likeness": 99}'})]
)
def test_a_kept_answer_that_cannot_be_used_is_asked_for_anew(
    world: World, question: JudgeQuestion, pair: Pair, content: str
) -> None:
    assert world.judge().ask(question, pair, readings=1).values
    (kept,) = (world.home / "judgements").rglob("*.json")
    kept.write_text(content)
    assert world.judge().ask(question, pair, readings=1).cost.requests == 1
    assert world.judge().ask(question, pair, readings=1).cost.requests == 0


@pytest.mark.slow(seconds=15)
def test_a_killed_process_loses_no_answer(world: World) -> None:
    world.service.script = [JudgeReply('{"likeness": 2}'), JudgeReply('{"likeness": 4}'), JudgeReply(after=60)]
    killed = started(world)
    while len(world.service.requests) < 3 and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(world.service.requests) == 3
    world.service.script = [JudgeReply('{"likeness": 6}'), JudgeReply('{"likeness": 8}')]
    assert printed(started(world)) == [{"likeness": 5.0}, None, 2]


def test_two_processes_that_want_the_same_ask_once(world: World) -> None:
    world.service.script = [JudgeReply(f'{{"likeness": {i}}}', after=0.3) for i in (2, 4, 6, 8)]
    answers = [printed(process) for process in [started(world), started(world)]]
    assert [values for values, _, _ in answers] == [{"likeness": 5.0}] * 2
    assert sorted(requests for _, _, requests in answers) == [0, 4]
    assert len(world.service.requests) == 4


def test_a_judge_that_fails_three_times_in_ten_invents_nothing_and_is_healed_by_the_next_run(
    world: World, question: JudgeQuestion, picture: Callable[[int], Image.Image]
) -> None:
    bad = [JudgeReply("nonsense"), JudgeReply(status=403), JudgeReply.json({"candidates": []})]
    world.service.script = [reply for i in range(10) for reply in (says(i), says(i), bad[i % 3])][:20] + [says(1)] * 10
    pictures = [[picture(i)] * 2 for i in range(30)]

    def run() -> list[Judgement]:
        judging = world.judge()
        return [judging.ask(question, pair, readings=1) for pair in pictures]

    first = run()
    missing = [i for i, verdict in enumerate(first) if verdict.values is None]
    assert len(missing) == 6
    assert all(first[i].error for i in missing)
    world.service.script = [says(3)] * 6
    second = run()
    assert [i for i, verdict in enumerate(second) if verdict.cost.requests] == missing
    for i, (before, after) in enumerate(zip(first, second, strict=True)):
        assert after.values == ({"likeness": 3.0, "sharpness": 5.0} if i in missing else before.values)


def test_a_question_about_other_pictures_than_are_shown_is_refused(
    world: World, question: JudgeQuestion, pair: Pair
) -> None:
    with pytest.raises(BadInputError, match="question twins needs 2 images, got 1: give the original, "):
        world.judge().ask(question, pair[:1])
    with pytest.raises(BadInputError, match="invalid readings 0: must be 1 or more"):
        world.judge().ask(question, pair, readings=0)
    assert world.service.requests == []


def test_a_folder_that_cannot_be_written_is_named(world: World, question: JudgeQuestion, pair: Pair) -> None:
    (world.home / "judgements").write_text("not a folder")
    with pytest.raises(FlexyError, match="cannot keep answers in"):
        world.judge().ask(question, pair)
    assert world.service.requests == [], "nothing is paid for that cannot be kept"


class Coin:
    """A judge that a user adds."""

    fingerprint = "coin"

    def answer(self, question: JudgeQuestion, pictures: Sequence[Image.Image]) -> JudgeAnswer:
        return JudgeAnswer(GOOD_ANSWER)


def coin(settings: Settings, slot: ModelSlot) -> Coin:
    assert settings.judge_key.get_secret_value() == "heads"
    return Coin()


def test_another_judge_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: JudgeQuestion, pair: Pair
) -> None:
    monkeypatch.setitem(judges.JUDGES, "coin", f"{__name__}:coin")
    judging = judges.make_judge(
        Settings.read({"FLEXY_HOME": str(tmp_path), "FLEXY_JUDGE": "coin", "COIN_API_KEY": "heads"})
    )
    assert isinstance(judging, Judge)
    verdict = judging.ask(question, pair)
    assert (verdict.fingerprint, verdict.values) == ("coin", {"likeness": 7.5, "sharpness": 4.0})


def test_naming_a_judge_imports_no_model_library() -> None:
    program = (
        "import sys; from resources.judges import make_judge; from resources.settings import Settings;"
        "import resources.judges.questions;"
        "settings = {'FLEXY_JUDGE': 'gemini', 'GEMINI_API_KEY': 'k', 'FLEXY_HOME': '/nowhere'};"
        "make_judge(Settings.read(settings)); make_judge(Settings.read(settings | {'FLEXY_JUDGE': 'local'}));"
        "print(*{'torch', 'diffusers', 'transformers', 'PIL'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
