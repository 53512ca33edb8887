"""What is sent, before any server is asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from flexy_assets.inpaint.plan import InpaintPlan
from flexy_assets.inpaint.push_predictions import (
    FormField,
    find_text_field,
    prediction_document,
    prediction_regions,
    prediction_score,
)
from flexy_assets.storage.labels import LabelTaskRow, SelectedImage, SentPrediction, label_task_id

TASK = LabelTaskRow(label_task_id(3, "7001"), "7001", 3, 7101, "CHA-1", "Ada", "Ada at sea", "d" * 64)
PLAN = InpaintPlan("mini_instruct", 4, 2.0)
ONE = SelectedImage(TASK, uuid4(), "edits/a.png", None, PLAN.to_json(), datetime(2025, 1, 1), {"potential": 30.0})


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (
            '<TextArea name="comments" toName="a"/><TextArea name="result_url" toName="b"/>',
            FormField("result_url", "b"),
        ),
        ('<TextArea name="comments" toName="a"/>', FormField("comments", "a")),
        ('<View><TextArea name="image" toName="a" perRegion="true"/></View>', None),
        ('<TextArea toName="a"/><TextArea name="image"/>', None),
        ('<Choices name="issues" toName="a"/>', None),
    ],
)
def test_a_url_goes_to_a_text_field_of_the_form(form: str, field: FormField | None) -> None:
    assert find_text_field(f"<View>{form}</View>") == field


def test_a_form_that_cannot_be_read_shows_nothing() -> None:
    assert find_text_field("<View>") is None
    assert prediction_regions(None, "/data/a.png") == []
    (region,) = prediction_regions(FormField("result", "final"), "/data/a.png")
    assert region["value"] == {"text": ["/data/a.png"]} and region["type"] == "textarea", "no verdict is claimed"


@pytest.mark.parametrize(
    ("weights", "potentials", "scores"),
    [
        ((1, 1, 2), (None, -1.0, 0.0, 10.0, 40.0, 99.0), [None, 0, 0, 0.25, 1, 1]),
        ((1, 0, 4), (0.0, 25.0, 50.0), [0, 0.5, 1]),
        ((1, 1, -2), (-20.0, 0.0, 20.0), [0, 0.5, 1]),
        ((0, 0, 0), (0.0,), [None]),
    ],
)
def test_a_score_is_scaled_to_the_bounds_of_the_weights(
    weights: tuple[float, ...], potentials: tuple[float | None, ...], scores: list[float | None]
) -> None:
    plan = replace(PLAN, **dict(zip(("alpha", "beta", "gamma"), weights, strict=True)))
    of = [{} if value is None else {"potential": value} for value in potentials]
    assert [prediction_score(replace(ONE, plan=plan.to_json(), scores=each)) for each in of] == scores


def test_the_file_has_the_last_choice_of_each_version() -> None:
    later = replace(
        ONE,
        candidate=uuid4(),
        plan=replace(PLAN, editor="kontext").to_json(),
        selected_at=ONE.selected_at + timedelta(days=1),
    )
    nameless = replace(ONE, task=replace(TASK, id=uuid4(), label_studio_id=None))
    assert [each["model_version"] for each in prediction_document([ONE, later, nameless], [])] == [
        "flexy/kontext",
        "flexy/mini_instruct",
    ]
    result = [{"type": "textarea"}]
    sent = SentPrediction(TASK.id, "mine", later.candidate, 0.75, result, outcome="created")
    (only,) = prediction_document([later, ONE], [sent], "mine")
    assert only == {
        "task": 7101,
        "project": 3,
        "model_version": "mine",
        "score": 0.75,
        "result": result,
        "picture": "edits/a.png",
    }
    (other,) = prediction_document([ONE], [sent], "mine")
    assert other["result"] == [], "what was sent of another candidate is not this one's"
