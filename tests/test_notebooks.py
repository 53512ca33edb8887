"""The notebooks run from beginning to end on what the commands made, and show something.

That of the sweep's analysis is run on the demo, in test_demo.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Flexy
from tests.support.notebooks import drawn, executed

pytestmark = pytest.mark.slow(seconds=40)


def test_the_comparison_of_edits(flexy: Flexy, tmp_path: Path) -> None:
    flexy("example", "edits", str(tmp_path / "edits"), "--tasks", "4")
    made = flexy("compare", "--dataset", str(tmp_path / "edits" / "edits.jsonl"), "--budget", "1", "--budget", "2")
    assert made.exit_code == 0, made.stderr
    printed, figures = executed("edit_comparison.ipynb")
    assert "4 edits" in printed and len(figures) == 3 and all(map(drawn, figures))
    assert printed.count("data:image/webp;base64,") == 4


def test_the_review_of_faces(flexy: Flexy, tmp_path: Path) -> None:
    flexy("example", "faces", str(tmp_path / "faces"), "--tasks", "3")
    assert flexy("inpaint", "import", str(tmp_path / "faces" / "export.json")).exit_code == 0
    assert flexy("inpaint", "run").exit_code == 0
    printed, figures = executed("label_review.ipynb")
    assert "3 tasks, 3 of them with a selected image" in printed and "it rose in 3 of 3" in printed
    assert "nothing was reviewed" in printed and len(figures) == 2
    assert all(map(drawn, figures)) and printed.count("data:image/webp;base64,") == 3
