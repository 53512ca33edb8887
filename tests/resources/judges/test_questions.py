"""An answer is numbers on their scales, all of them, or it is none; nothing is guessed, mended or made up."""

from __future__ import annotations

import json
import math

import pytest

from resources.judges import JudgeQuestion, UnansweredError
from resources.judges.questions import editing_question, inpainting_question, overall_score, quality_question
from tests.support.servers import GOOD_ANSWER

VALUES = {"likeness": 7.5, "sharpness": 4.0}


@pytest.mark.parametrize(
    "answer",
    [
        GOOD_ANSWER,
        f"```json\n{GOOD_ANSWER}\n```",
        f"Here is what I think:\n\n{GOOD_ANSWER}\n\nI hope this helps!",
        GOOD_ANSWER.replace(", ", ",\n  "),
        GOOD_ANSWER.replace("4}", '4.0, "more": {"detail": [1, 2]}}'),
        GOOD_ANSWER.replace("as it was", "a } and a { and a \\u2013 in it"),
    ],
)
def test_one_json_object_is_an_answer_with_or_without_words_around_it(question: JudgeQuestion, answer: str) -> None:
    assert question.parse_values(answer) == VALUES


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "is not one JSON object"),
        ("I cannot help with comparing people's faces.", "is not one JSON object: 'I cannot help with"),
        ("likeness: 7.5, sharpness: 4", "is not one JSON object"),
        ("[7.5, 4]", "is not one JSON object"),
        ("null", "is not one JSON object"),
        (GOOD_ANSWER[:-12], "is not one JSON object"),
        ("}{", "is not one JSON object"),
        (f"{GOOD_ANSWER}\n{GOOD_ANSWER}", "is not one JSON object"),
        (f'{{"draft": {GOOD_ANSWER}, "final": {{"likeness": 9', "is not one JSON object"),
        (f"[{GOOD_ANSWER}, {GOOD_ANSWER}]", "is not one JSON object"),
        (GOOD_ANSWER.replace("7.5", "NaN"), "is not one JSON object"),
        (GOOD_ANSWER.replace("7.5", "-Infinity"), "is not one JSON object"),
        (GOOD_ANSWER.replace("7.5", "9" * 5000), "is not one JSON object"),
        ('{"likeness": 7.5, "likeness": 2, "sharpness": 4}', "is not one JSON object"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "is not one JSON object"),
        ("{}", "has no likeness"),
        ('{"Likeness": 7.5, "sharpness": 4}', "has no likeness"),
        ('{"likeness": 7.5}', "has no sharpness"),
        (f'{{"answer": {GOOD_ANSWER}}}', "has no likeness"),
        (GOOD_ANSWER.replace("7.5", '"7.5"'), "likeness is not a number"),
        (GOOD_ANSWER.replace("7.5", '"8/10"'), "likeness is not a number"),
        (GOOD_ANSWER.replace("7.5", "null"), "likeness is not a number"),
        (GOOD_ANSWER.replace("7.5", "true"), "likeness is not a number"),
        (GOOD_ANSWER.replace("7.5", "[7.5]"), "likeness is not a number"),
        (GOOD_ANSWER.replace("7.5", "10.01"), "likeness is not from 0 to 10"),
        (GOOD_ANSWER.replace("7.5", "-1"), "likeness is not from 0 to 10"),
        (GOOD_ANSWER.replace("7.5", "75"), "likeness is not from 0 to 10"),
        (GOOD_ANSWER.replace("7.5", "1e999"), "likeness is not from 0 to 10"),
        (GOOD_ANSWER.replace("7.5", "9" * 400), "likeness is not from 0 to 10"),
        (GOOD_ANSWER + " " * 20_000, "characters long"),
    ],
    ids=range(30),
)
def test_anything_else_is_no_answer_and_says_why_on_one_short_line(
    question: JudgeQuestion, answer: str, reason: str
) -> None:
    with pytest.raises(UnansweredError) as caught:
        question.parse_values(answer)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message and len(message) < 200
    assert caught.value.raw == answer


def test_the_ends_of_a_scale_are_on_it(question: JudgeQuestion) -> None:
    assert question.parse_values('{"likeness": 0, "sharpness": 10}') == {"likeness": 0.0, "sharpness": 10.0}


@pytest.mark.parametrize(
    "asked", [editing_question("make the bear wear a hat"), quality_question(), inpainting_question()]
)
def test_a_prompt_names_every_picture_and_every_number_with_its_scale(asked: JudgeQuestion) -> None:
    for i, picture in enumerate(asked.images, 1):
        assert f"Picture {i}: {picture}." in asked.prompt
    for name in asked.scales:
        assert asked.prompt.count(name) >= 2, "said what it means, and where it goes"
        assert f'"{name}": <a number from 0 to 10>' in asked.prompt
    assert list(asked.schema["properties"]) == ["reasoning", *asked.scales] == asked.schema["required"]
    assert json.loads(json.dumps(asked.schema)) == asked.schema


def test_an_edit_is_asked_about_with_its_own_instruction() -> None:
    assert "«make the {bear} wear a hat»" in editing_question("make the {bear} wear a hat").prompt


def test_an_edit_is_as_good_as_the_worse_of_its_sides() -> None:
    edit, made = {"prompt_following": 9.0, "consistency": 4.0}, {"naturalness": 8.0, "clean": 9.0}
    assert overall_score(edit, made) == pytest.approx(math.sqrt(4 * 8))
    assert overall_score(edit | {"prompt_following": 0.0}, made) == 0
    assert overall_score(edit, made | {"clean": 0.0}) == 0
    assert overall_score(dict.fromkeys(edit, 10.0), dict.fromkeys(made, 10.0)) == 10
