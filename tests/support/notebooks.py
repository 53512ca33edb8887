"""Notebooks as a person runs them: from beginning to end, in a kernel of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked

PLOTLY = "application/vnd.plotly.v1+json"
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def executed(name: str) -> tuple[str, list[dict[str, Any]]]:
    """What a notebook prints, and its figures as Plotly's JSON."""
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    here = {"metadata": {"path": str(NOTEBOOKS)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", f"{forked.start_server()}/python")
        NotebookClient(notebook, timeout=120, kernel_name="python3", resources=here).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    printed = [output["text"] for output in outputs if output.get("name") == "stdout"]
    printed += [data["text/markdown"] for data in shown if "text/markdown" in data]
    figures = [data[PLOTLY] for data in shown if PLOTLY in data]
    assert sum(map(len, printed)) + len(str(figures)) < 2_000_000
    return "".join(printed), figures


def drawn(figure: dict[str, Any]) -> bool:
    """Whether a figure has more than axes."""
    return any(len(trace.get("z", trace.get("x", []))) for trace in figure["data"])
