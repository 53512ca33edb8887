"""Tasks as the report shows them: the source, each method's winner, and every candidate with its scores."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from flexy_assets.edits.labels import method_name, metric_label
from flexy_assets.reporting.formatting import format_count, format_number
from resources.metrics import Metric

LOCAL_STAGES = ("local", "stage2")  # the stages that vary candidates of an earlier one

Row = dict[str, Any]
Winner = Literal["first", "second", "tied", "unknown"]
CandidateState = Literal["chosen", "stopped", "failed", ""]


@dataclass(frozen=True)
class CardImage:
    """An image's place on the page: embedded where `uri` is set, else repeated from there; absent without a key."""

    key: int | None = None
    uri: str | None = None


class CardImages:
    """Gives each image its place, so that each is embedded once; `missing` are the paths without a thumbnail."""

    def __init__(self, thumbnails: Mapping[str, str]) -> None:
        self._thumbnails = thumbnails
        self._keys: dict[str, int] = {}
        self.missing: set[str] = set()

    def __call__(self, path: str | None) -> CardImage:
        """Return the next place of the image at `path`."""
        if path is None or path not in self._thumbnails:
            self.missing.update([path] if path else [])
            return CardImage()
        embedded = path in self._keys
        key = self._keys.setdefault(path, len(self._keys))
        return CardImage(key, None if embedded else self._thumbnails[path])


@dataclass(frozen=True)
class Card:
    """A candidate: `remark` is its state, `origin` its stage and parent, `detail` what reproduces it."""

    picture: CardImage
    alt: str
    name: str
    state: CandidateState
    remark: str
    origin: str
    potential: float | None
    scores: list[str]
    detail: str


def task_cards(
    candidates: pl.DataFrame, methods: Sequence[str], metrics: Sequence[str], judge: Metric | None, pictures: CardImages
) -> dict[str, Any]:
    """Return one task: who `won` it and that in words (`verdict`), and the cards of `winners` and all `candidates`.

    `judge` is the metric that decides it, `metrics` are those shown below an image.
    """
    rows = candidates.to_dicts()
    winners = {method: next((r for r in rows if r["chosen"] and r["method"] == method), None) for method in methods}
    won, verdict = _won(list(winners.items())[:2], judge)
    # Source and winners first: those on top are the ones that are embedded.
    source = pictures(rows[0]["source_path"])
    best = [(method_name(name), _card(row, metrics, pictures) if row else None) for name, row in winners.items()]
    cards: dict[str, list[Card]] = {method: [] for method in methods}
    for row in sorted(rows, key=lambda row: (methods.index(row["method"]), _place(row))):
        cards[row["method"]].append(_card(row, metrics, pictures))
    by_method = [(method_name(method), of_method) for method, of_method in cards.items()]
    task = {"id": rows[0]["task_id"], "prompt": rows[0]["prompt"] or "no prompt", "source": source}
    return task | {"won": won, "verdict": verdict, "winners": best, "candidates": by_method}


def _place(row: Row) -> tuple[bool, list[int], str]:
    """Return a sort key: global candidates first, g2 before g10."""
    return row["stage"] in LOCAL_STAGES, [int(digits) for digits in re.findall(r"\d+", row["name"])], row["name"]


def _won(winners: Sequence[tuple[str, Row | None]], judge: Metric | None) -> tuple[Winner, str]:
    if len(winners) < 2 or judge is None:
        return "unknown", "not compared"
    by = f"by {metric_label(judge.name)}"
    ours, theirs = (row.get(judge.name) if row else None for _, row in winners)
    if ours is None or theirs is None:
        return "unknown", f"unknown {by}"
    first, second = (method_name(method) for method, _ in winners)
    gain = ours - theirs if judge.higher_is_better else theirs - ours
    if abs(gain) <= judge.tie:
        return "tied", f"tied {by}, {format_number(ours)} against {format_number(theirs)}"
    if gain > 0:
        return "first", f"{first} won {by}, {format_number(ours)} against {format_number(theirs)}"
    return "second", f"{second} won {by}, {format_number(theirs)} against {format_number(ours)}"


def _card(row: Row, metrics: Sequence[str], pictures: CardImages) -> Card:
    state, remark = _state(row)
    parent = "" if row["parent"] is None else f", from {row['parent']}"
    strength = f" at strength {row['strength']:g}" if parent and row["strength"] < 1 else ""
    detail = [
        f"seed {row['seed']}",
        f"noise moved {row['noise_moves']}" if row["noise_moves"] not in (None, "[]") else "",
        f"{format_count(row['nfe'], 'step')} run",
        "" if row["elapsed_ms"] is None else f"{format_number(row['elapsed_ms'] / 1000)} s",
        row["error"] or "",
    ]
    alt = ", ".join(filter(None, [f"{method_name(row['method'])} {row['name']}", row["stage"], remark]))
    origin = f"{row['stage']}{parent}{strength}"
    scores = [_score(name, row[name]) for name in metrics if row[name] is not None]
    words = alt, row["name"], state, remark, origin, row.get("potential"), scores, ", ".join(filter(None, detail))
    return Card(pictures(row["image_path"]), *words)


def _state(row: Row) -> tuple[CandidateState, str]:
    if row["chosen"]:
        return "chosen", "winner"
    if row["image_path"] is None:
        return "failed", "failed"
    if row["stop_step"] < row["num_steps"]:
        return "stopped", f"stopped at step {row['stop_step']} of {row['num_steps']}"
    return "", ""


def _score(metric: str, value: float) -> str:
    if metric in ("carried_out", "preserved") and value in (0, 1):
        return f"{metric_label(metric)}: {'yes' if value else 'no'}"
    return f"{metric_label(metric)} {format_number(value)}"
