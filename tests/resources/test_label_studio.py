"""Against a real Label Studio: tasks come as in an export, and each prediction is there once, whoever is killed when.

All that needs the server is in this file, because each test process would start one of its own.
"""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from resources.http.client import HttpLimits
from resources.http.downloads import DownloadError, ImageDownloader
from resources.label_studio import client
from resources.label_studio.client import LabelStudioClient, LabelStudioError, Prediction, PushResult
from resources.label_studio.export import ReviewVerdict, parse_tasks, read_export_file
from resources.settings import Settings
from tests.resources.brush_strokes import encode_rle
from tests.support.label_studio import TOKEN, Server

pytestmark = pytest.mark.slow(seconds=50)

# What a reviewer sees: the character, the scene before and after, and what was sent back.
FORM = """
<View>
  <Image name="character" value="$character_image_url"/>
  <Image name="init" value="$init_image_url"/>
  <BrushLabels name="mask" toName="init"><Label value="Face"/></BrushLabels>
  <Image name="final" value="$image_url"/>
  <Choices name="issues" toName="final" choice="multiple">
    <Choice value="No Issues"/><Choice value="Inconsistent Character"/><Choice value="Error"/>
  </Choices>
  <TextArea name="result" toName="final"/>
</View>
"""


def data(name: str) -> dict[str, str]:
    fields = {"id": name, "character_id": "CHA-1", "character_name": "Ada é", "prompt": "Ada in a garden"}
    return fields | {f"{each}_url": f"https://pictures.example/{each}.png" for each in PICTURES}


PICTURES = ("image", "init_image", "mask_image", "character_image")


def says(link: str) -> list[dict[str, Any]]:
    """A prediction's result in the form above."""
    return [
        {"from_name": "result", "to_name": "final", "type": "textarea", "value": {"text": [link]}},
        {"from_name": "issues", "to_name": "final", "type": "choices", "value": {"choices": ["No Issues"]}},
    ]


@pytest.fixture
def studio(label_studio_server: Server) -> LabelStudioClient:
    settings = {"LABEL_STUDIO_URL": label_studio_server.url, "LABEL_STUDIO_API_KEY": TOKEN}
    return LabelStudioClient.from_settings(Settings.read(settings))


@pytest.fixture
def project(studio: LabelStudioClient) -> int:
    return created(studio, FORM)


def created(studio: LabelStudioClient, form: str) -> int:
    number: int = studio.call("POST", "api/projects/", {"title": "Faces to review", "label_config": form})["id"]
    return number


def imported(studio: LabelStudioClient, project: int, *names: str) -> list[int]:
    """The numbers of new tasks, as Label Studio gave them."""
    tasks = [{"data": data(name)} for name in names]
    numbers: list[int] = studio.call("POST", f"api/projects/{project}/import?return_task_ids=true", tasks)["task_ids"]
    return numbers


def held(studio: LabelStudioClient, task: int) -> list[tuple[int, str, float, Any]]:
    return [(p["id"], p["model_version"], p["score"], p["result"]) for p in studio.predictions(task)]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((32, 24), 90).save(buffer, "PNG")
    return buffer.getvalue()


def test_tasks_come_page_by_page_with_what_people_said_of_them(
    studio: LabelStudioClient, project: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client, "PAGE_TASKS", 3)
    numbers = imported(studio, project, *"abcdefg")
    chosen = {"from_name": "issues", "to_name": "final", "type": "choices", "value": {"choices": ["Error"]}}
    rle = encode_rle(np.eye(4, 6, dtype=bool))
    brush = {"from_name": "mask", "to_name": "init", "type": "brushlabels", "original_width": 6, "original_height": 4}
    brush["value"] = {"format": "rle", "rle": rle, "brushlabels": ["Face"]}
    made = studio.call("POST", f"api/tasks/{numbers[1]}/annotations/", {"result": [chosen, brush]})
    studio.call("POST", f"api/tasks/{numbers[1]}/annotations/", {"result": [chosen], "was_cancelled": True})
    studio.push(Prediction(numbers[2], "flexy", 0.5, says("x")))

    listed = list(studio.tasks(project))
    assert [task["id"] for task in listed] == numbers
    tasks, problems = parse_tasks(listed)
    assert problems == []
    assert [task.id for task in tasks] == list("abcdefg")
    assert {task.project for task in tasks} == {project}
    (verdict,) = tasks[1].verdicts
    assert verdict == ReviewVerdict(("Error",), made["id"], made["updated_at"], "1")
    assert [list(stroke.rle) for stroke in tasks[1].strokes] == [rle]
    assert listed[2]["predictions"][0]["model_version"] == "flexy"

    # The server's own export says the same.
    exported = requests.get(
        f"{studio.url}/api/projects/{project}/export?exportType=JSON&download_all_tasks=true",
        headers={"Authorization": studio.authorization()},
        timeout=60,
    )
    file = tmp_path / "export.json"
    file.write_bytes(exported.content)
    again, problems = read_export_file(file)
    assert problems == []
    assert sorted(again, key=lambda task: task.id) == tasks
    assert [task.digest for task in sorted(again, key=lambda task: task.id)] == [task.digest for task in tasks]


def test_the_form_comes_as_it_was_written(studio: LabelStudioClient, project: int) -> None:
    assert studio.label_config(project).split() == FORM.split()


def test_a_prediction_pushed_twice_is_there_once(studio: LabelStudioClient, project: int) -> None:
    (task,) = imported(studio, project, "a")
    prediction = Prediction(task, "flexy 1", 0.1 + 0.2, says("https://pictures.example/é 1.png"))
    first = studio.push(prediction)
    before = studio.predictions(task)
    assert (first.action, first.removed) == ("created", 0)
    assert studio.push(prediction) == PushResult(first.id, "unchanged")
    assert studio.predictions(task) == before, "not even its time changed"
    assert held(studio, task) == [(first.id, "flexy 1", 0.1 + 0.2, says("https://pictures.example/é 1.png"))]


def test_a_changed_prediction_is_replaced_and_others_are_left_alone(studio: LabelStudioClient, project: int) -> None:
    task, other = imported(studio, project, "a", "b")
    first = studio.push(Prediction(task, "flexy 1", 0.5, says("1")))
    second = studio.push(Prediction(task, "flexy 2", None, says("2")))
    elsewhere = studio.push(Prediction(other, "flexy 1", 0.5, says("1")))
    for score, link in ((0.75, "1"), (0.75, "3")):
        assert studio.push(Prediction(task, "flexy 1", score, says(link))) == PushResult(first.id, "replaced")
    assert held(studio, task) == [
        (first.id, "flexy 1", 0.75, says("3")),
        (second.id, "flexy 2", None, says("2")),
    ]
    assert held(studio, other) == [(elsewhere.id, "flexy 1", 0.5, says("1"))]


def test_doubles_are_removed_wherever_a_push_was_killed(studio: LabelStudioClient, project: int) -> None:
    """What two pushers at once, or one that was killed while its answer was under way, may leave."""
    (task,) = imported(studio, project, "a")
    for score in (0.1, 0.5, 0.5):
        prediction = {"task": task, "model_version": "flexy", "score": score, "result": says("1")}
        studio.call("POST", "api/predictions/", prediction)
    first, *_ = held(studio, task)
    pushed = studio.push(Prediction(task, "flexy", 0.5, says("1")))
    assert pushed == PushResult(first[0], "replaced", removed=2)
    assert held(studio, task) == [(first[0], "flexy", 0.5, says("1"))]
    studio.delete(first[0])
    studio.delete(first[0])
    assert held(studio, task) == []


def test_what_the_server_refuses_is_said_in_its_words(studio: LabelStudioClient, project: int) -> None:
    with pytest.raises(LabelStudioError, match=r"status 400 \(.*task.*\): check what was sent") as caught:
        studio.push(Prediction(10**6, "flexy", 0.5, says("1")))
    assert "\n" not in str(caught.value)
    with pytest.raises(LabelStudioError, match=r"status 404 .*: check the project and the task"):
        list(studio.tasks(10**6))
    with pytest.raises(LabelStudioError, match=r"status 404 .*: check the project and the task"):
        studio.label_config(10**6)


@pytest.mark.parametrize("key", ["0" * 40, "", "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.opensesame"])
def test_a_wrong_token_is_one_line_that_does_not_hold_it(label_studio_server: Server, key: str) -> None:
    with pytest.raises(LabelStudioError) as caught:
        list(LabelStudioClient(label_studio_server.url, key).tasks(1))
    message = str(caught.value)
    assert message.startswith("Label Studio at 127.0.0.1 answers with status 401 (")
    assert message.endswith("): check LABEL_STUDIO_API_KEY, and that such tokens are enabled there")
    assert "\n" not in message and (not key or key not in message)


def test_a_personal_access_token_is_exchanged_and_renewed(studio: LabelStudioClient, project: int) -> None:
    token = studio.call("POST", "api/token/")["token"]
    mine = LabelStudioClient(studio.url, token)
    numbers = imported(mine, project, "a")
    assert [task["id"] for task in mine.tasks(project)] == numbers
    first = mine.authorization()
    assert first.startswith("Bearer ") and token not in first
    assert mine.authorization() == first, "kept while it lasts"
    # The server forgets it sooner than was thought.
    mine._access = mine._access[:-4] + "AAAA"
    assert len(list(LabelStudioClient(studio.url, token, HttpLimits(backoff=0.01)).tasks(project))) == 1
    mine.http.limits = HttpLimits(backoff=0.01)
    assert [task["id"] for task in mine.tasks(project)] == numbers
    assert token not in repr(mine)


def test_an_upload_is_there_once_and_is_shown_to_who_is_signed_in_alone(
    studio: LabelStudioClient, project: int
) -> None:
    content = picture()
    path = studio.upload(project, content)
    assert path.startswith(f"/data/upload/{project}/") and path.endswith(".png")
    assert studio.upload(project, content) == path
    fresh = LabelStudioClient(studio.url, TOKEN)
    assert fresh.upload(project, content) == path, "found again by who was killed"
    other = fresh.upload(project, picture())
    assert other != path
    assert len(studio.call("GET", f"api/projects/{project}/file-uploads?all=true")) == 2
    assert list(studio.tasks(project)) == [], "no task was made of it"

    assert ImageDownloader(server=studio).download(path).content == content
    assert ImageDownloader(server=studio).download(studio.url + path).content == content
    with pytest.raises(DownloadError, match="is not allowed"):
        ImageDownloader().download(studio.url + path)
    port = int(studio.url.rpartition(":")[2])
    with pytest.raises(DownloadError, match="status 401"):
        ImageDownloader(allowed={("127.0.0.1", port)}).download(studio.url + path)

    single = created(studio, '<View><Image name="final" value="$image_url"/></View>')
    assert ImageDownloader(server=studio).download(studio.upload(single, content)).content == content
    assert list(studio.tasks(single)) == []
    with pytest.raises(LabelStudioError, match=r"status 400 \(.*extension is not supported.*\)"):
        studio.upload(project, content, "exe")
    with pytest.raises(LabelStudioError, match="status 404"):
        studio.upload(10**6, content)

    (task,) = imported(studio, project, "a")
    studio.push(Prediction(task, "flexy", 0.5, says(path)))
    (shown,) = studio.tasks(project)
    assert shown["predictions"][0]["result"] == says(path)


def test_a_server_that_dies_in_the_middle_and_comes_back_has_each_prediction_once(
    label_studio_server: Server, studio: LabelStudioClient, project: int
) -> None:
    tasks = imported(studio, project, *[str(i) for i in range(12)])
    patient = LabelStudioClient(studio.url, TOKEN, HttpLimits(attempts=100, backoff=0.5, longest_wait=1))
    pushed: list[PushResult] = []

    def push_all() -> None:
        for task in tasks:
            pushed.append(patient.push(Prediction(task, "flexy", 0.5, says(str(task)))))

    pushing = threading.Thread(target=push_all)
    pushing.start()
    try:
        while len(pushed) < 4:
            time.sleep(0.001)
        label_studio_server.kill()
        assert len(pushed) < len(tasks)
    finally:
        label_studio_server.start()
        pushing.join(60)
    assert len(pushed) == len(tasks)
    for task in tasks:
        (only,) = held(studio, task)
        assert only[1:] == ("flexy", 0.5, says(str(task)))
    assert {studio.push(Prediction(task, "flexy", 0.5, says(str(task)))).action for task in tasks} == {"unchanged"}
