"""The sensor of labels where no server answers; with a real one it is in tests/inpaint/test_label_assets.py."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from flexy_assets.scoring.work import Work
from resources.errors import BadInputError
from resources.settings import Settings
from sensors.label_studio import new_labels
from sensors.nightly_backfill import nightly_backfill


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "no project is set: set FLEXY_LABEL_STUDIO_PROJECT to its number"),
        ({"FLEXY_LABEL_STUDIO_PROJECT": "3"}, "no Label Studio is configured: set LABEL_STUDIO_URL"),
        (
            {
                "FLEXY_LABEL_STUDIO_PROJECT": "3",
                "LABEL_STUDIO_URL": "http://127.0.0.1:9",
                "LABEL_STUDIO_API_KEY": "opensesame",
            },
            "no connection to Label Studio at 127.0.0.1",
        ),
    ],
)
def test_why_the_sensor_skips_is_one_line(home: Path, variables: dict[str, str], reason: str) -> None:
    settings = Settings.read(variables)
    sensor = new_labels(settings)
    running = dg.DefaultSensorStatus.RUNNING
    assert (sensor.default_status == running) == ("FLEXY_LABEL_STUDIO_PROJECT" in variables)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        answer = sensor(dg.build_sensor_context(instance, resources={"work": Work.from_settings(settings)}))
    assert isinstance(answer, dg.SkipReason)
    message = answer.skip_message or ""
    assert message.startswith(reason) and "\n" not in message and "opensesame" not in message


def test_a_project_is_a_number() -> None:
    with pytest.raises(BadInputError, match="invalid FLEXY_LABEL_STUDIO_PROJECT 'faces': must be an integer"):
        Settings.read({"FLEXY_LABEL_STUDIO_PROJECT": "faces"})


def test_an_invalid_cron_schedule_is_named() -> None:
    with pytest.raises(BadInputError, match=r"invalid FLEXY_NIGHTLY '61 \* \* \* \*': write five fields, for example"):
        nightly_backfill(Settings.read({"FLEXY_NIGHTLY": "61 * * * *"}))
