"""Files of prompts are read by their content; what is no file of prompts is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexy_assets.sweep.assets import SweepConfig
from flexy_assets.sweep.plan import Sweep
from resources.errors import BadInputError
from resources.prompts import MAX_PROMPT, Prompt, read_prompts
from resources.settings import Settings

FLEXYFACE = {
    "metadata": {"version": "2.0", "total_prompts": 2, "categories": {"text": 1, "animals": 1}},
    "prompts": [
        {
            "id": 1,
            "category": "text",
            "complexity": "simple",
            "prompt": "Neon sign: OPEN 24/7",
            "evaluation_criteria": ["text_clarity"],
            "expected_challenges": ["neon_glow", "number_rendering"],
        },
        {"id": 2, "category": "animals", "complexity": "medium", "prompt": "A puppy with a red ball, at dusk"},
    ],
}
PAIR = (
    Prompt("Neon sign: OPEN 24/7", "text", "simple"),
    Prompt("A puppy with a red ball, at dusk", "animals", "medium"),
)
LINES = "\n".join(json.dumps(entry) for entry in FLEXYFACE["prompts"])
FORMS = {
    "text": (
        "\ufeff# mine\r\n\r\n  a red disc \r\n赤い　円 👩‍🔬\r\nca\u00a0va #1\r\n"
        "[close-up] a fox, at night\r\n{red|green} apple",
        tuple(
            map(
                Prompt,
                ("a red disc", "赤い　円 👩‍🔬", "ca\u00a0va #1", "[close-up] a fox, at night", "{red|green} apple"),
            )
        ),
    ),
    "FlexyFace": (json.dumps(FLEXYFACE, indent=2), PAIR),
    "JSON list of texts": (json.dumps(["a fox", "an owl"]), (Prompt("a fox"), Prompt("an owl"))),
    "JSON list of objects": (json.dumps(FLEXYFACE["prompts"]), PAIR),
    "JSON lines": (LINES + "\n\n", PAIR),
    "one JSON line": (json.dumps(FLEXYFACE["prompts"][0]), PAIR[:1]),
    "DrawBench": (
        'Prompts,Category\nA red colored car.,Colors\n"A stack of 3 books, a green cup.",Counting\n',
        (Prompt("A red colored car.", "Colors"), Prompt("A stack of 3 books, a green cup.", "Counting")),
    ),
    "PartiPrompts": (
        "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology-inspired concepts\n"
        'a newspaper named "Toaday", a frog\tAnimals\tPerspective\t\n',
        (Prompt("bond", "Abstract", "Basic"), Prompt('a newspaper named "Toaday", a frog', "Animals", "Perspective")),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["", ".txt"])
def test_prompts_are_read_by_what_the_file_is(tmp_path: Path, form: str, suffix: str) -> None:
    content, prompts = FORMS[form]
    file = tmp_path / f"prompts{suffix}"
    file.write_text(content, encoding="utf-8", newline="")
    assert read_prompts(file) == prompts


def test_a_table_named_so_needs_a_prompt_column_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("caption;seed\na fox, at night;1\n")
    assert read_prompts(file) == (Prompt("a fox, at night"),)


REFUSED = {
    "empty": ("p.txt", b"", "the file has no prompts"),
    "blank lines": ("p.txt", b"\n  \n", "the file has no prompts"),
    "comments": ("p.txt", b"# one\n#two\n", "the file has no prompts"),
    "latin-1": ("p.txt", "déjà vu".encode("latin-1"), "not UTF-8 text (byte 1)"),
    "utf-16": ("p.txt", "a red disc".encode("utf-16"), "not UTF-8 text (byte 0)"),
    "a null": ("p.txt", b"a red disc\na\0b\n", "line 2: control characters"),
    "an escape": ("p.txt", b"fine\n\n\x1b[31mred\n", "line 3: control characters"),
    "too long": ("p.txt", b"x" * (MAX_PROMPT + 1), f"line 1: over {MAX_PROMPT} characters"),
    "broken JSON": ("p.txt", b'{\n  "prompts": [\n    "a fox"\n    "an owl"\n  ]\n}\n', "line 4: not valid JSON"),
    "torn JSON": ("p.json", json.dumps(FLEXYFACE, indent=2)[:-9].encode(), "not valid JSON"),
    "deep JSON": ("p.json", b"[" * 100_000, "not valid JSON"),
    "other JSON": ("p.json", b'{"images": 3}', "no list of prompts"),
    "JSON number": ("p.json", b"3", "no list of prompts"),
    "numbers": ("p.json", b'["a fox", 3]', "entry 2: neither text nor an object"),
    "objects without": ("p.json", b'[{"prompt": "a fox"}, {"id": 2}]', "entry 2: no prompt"),
    "a bad line": ("p.jsonl", f"{LINES}\n{{oops\n".encode(), "line 3: not valid JSON"),
    "no column": ("p.csv", b"id,title\n1,a fox\n", "no column for prompts among id, title"),
    "no header": ("p.csv", b"a fox\nan owl\n", "no column for prompts among a fox"),
    "a comma": ("p.csv", b"Prompts,Category\na fox, at night,Colors\n", "line 2: 3 cells for 2 columns"),
    "quotes": ("p.csv", b'Prompts,Category\n"a fox" at night,Colors\n', "line 2: "),
    "a group's escape": ("p.json", b'[{"prompt": "a fox", "category": "\\u001b[31m"}]', "entry 1: control characters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_file_of_prompts_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, reason = REFUSED[case]
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        read_prompts(file)
    message = str(caught.value)
    assert message.count("\n") == 0 and message.count(": ") >= 1
    assert str(file) in message and reason in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in [(tmp_path / "missing.txt", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(BadInputError, match=reason):
            read_prompts(path)


def test_a_sweep_keeps_its_prompts_groups_and_one_without_has_the_id_it_had(tmp_path: Path) -> None:
    file = tmp_path / "benchmark_prompts.json"
    file.write_text(json.dumps(FLEXYFACE))
    settings = Settings.read({})
    sweep = SweepConfig(prompts_file=str(file)).sweep(settings)
    assert (sweep.categories, sweep.complexities) == (("text", "animals"), ("simple", "medium"))
    assert Sweep.from_json(json.loads(json.dumps(sweep.to_json()))) == sweep
    rows = sweep.rows(0, 4).select("prompt", "category", "complexity").unique().sort("category", descending=True)
    assert [Prompt(*row) for row in rows.iter_rows()] == list(PAIR)
    plain = SweepConfig(prompts=[prompt.text for prompt in PAIR]).sweep(settings)
    assert not {"categories", "complexities"} & plain.to_json().keys()
    assert plain.run_id != sweep.run_id
