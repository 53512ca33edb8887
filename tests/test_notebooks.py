"""The notebooks run from beginning to end on what the commands made, and show something."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import Flexy

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def executed(name: str) -> tuple[str, list[Image.Image]]:
    """What a notebook prints, and its plots."""
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    here = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=here).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    pngs = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert sum(map(len, pngs)) < 2_000_000
    return printed, [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in pngs]


def drawn(plot: Image.Image) -> bool:
    """Whether there is more on a plot than axes."""
    return len(np.unique(np.asarray(plot).reshape(-1, 3), axis=0)) > 50


def test_the_comparison_of_edits(flexy: Flexy, tmp_path: Path) -> None:
    flexy("example", "edits", str(tmp_path / "edits"), "--tasks", "4")
    made = flexy("compare", "--dataset", str(tmp_path / "edits" / "edits.jsonl"), "--budget", "1", "--budget", "2")
    assert made.exit_code == 0, made.stderr
    printed, plots = executed("edit_comparison.ipynb")
    assert "4 edits" in printed and len(plots) == 4 and all(map(drawn, plots))


def test_the_review_of_faces(flexy: Flexy, tmp_path: Path) -> None:
    flexy("example", "faces", str(tmp_path / "faces"), "--tasks", "3")
    assert flexy("labels", "import", str(tmp_path / "faces" / "export.json")).exit_code == 0
    assert flexy("labels", "run").exit_code == 0
    printed, plots = executed("label_review.ipynb")
    assert "3 tasks, 3 of them with a chosen picture" in printed and "it rose in 3 of 3" in printed
    assert "nothing was reviewed" in printed and len(plots) == 3 and all(map(drawn, plots))


def test_the_analysis_of_a_sweep(flexy: Flexy) -> None:
    made = flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "24", "--steps", "1:6", "--json")
    assert flexy("sweep", "run", json.loads(made.stdout)["run"]).exit_code == 0
    printed, plots = executed("sweep_analysis.ipynb")
    assert "24 images" in printed and "how many steps" in printed and len(plots) == 5 and all(map(drawn, plots))
