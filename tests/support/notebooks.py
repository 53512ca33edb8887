"""Notebooks as a person runs them: from beginning to end, in a kernel of their own."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


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
