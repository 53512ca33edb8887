"""Tables in the terminal: as wide as it, nothing cut, numbers and the words of the first column whole."""

from __future__ import annotations

import pytest

from flexy_assets.reporting.text_tables import format_text_table

ROW = {
    **{"at": "2026-11-28 19:56:32", "engine": "mini_sdxl", "steps": 6, "guidance": 5.4551, "clip_score": 0.6677},
    **{
        "aesthetic_score": 6.8162,
        "hps_v2_score": 0.3565,
        "image_path": "f48a6edb_0000/000002.png",
        "note": "a b " * 20,
    },
}


@pytest.mark.parametrize("width", [40, 80, 100, 140])
def test_a_table_fits_the_width_and_cuts_nothing(width: int) -> None:
    shown = format_text_table([ROW] * 2, width)
    assert max(map(len, shown.splitlines())) <= width
    for value in ("19:56:32", "mini_sdxl", "5.4551", "0.6677", "6.8162", "0.3565"):
        assert shown.count(value) >= 2


def test_a_table_uses_the_width_there_is() -> None:
    assert len(format_text_table([ROW], 300).splitlines()) == 2
    assert format_text_table([{"a": 1, "b": "x y"}], 10) == "a  b\n1  x y"
