"""Training goes on where it was killed and ends with the same weights."""

from __future__ import annotations

import json
import shutil
import socket
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from resources.faces.insight import FaceSwapper
from resources.mini.training import architecture, loop, train
from resources.mini.world import CAPTIONED_SCENES

pytestmark = pytest.mark.slow(seconds=30)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training run of one worker, in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fitted(folder: Path, killed_at: int | None = None) -> list[Tensor]:
    """A small net after its stage; killed and begun again on the way where asked."""
    run = loop.TrainingRun(out=folder, work=folder, seed=7, rank=0, workers=1, scale=1.0)
    folder.mkdir(exist_ok=True)
    seen: list[int] = []

    def lesson(net: nn.Module, fatal: int | None) -> None:
        def loss(rng: np.random.Generator) -> Tensor:
            seen.append(1)
            if fatal is not None and len(seen) > fatal:
                raise KeyboardInterrupt
            x = torch.from_numpy(rng.standard_normal((8, 3), dtype=np.float32))
            return ((net(x).squeeze(-1) - x.sum(1)) ** 2).mean()

        loop.train_model(run, "toy", net, loss, average=0.9)

    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    if killed_at is not None:
        with pytest.raises(KeyboardInterrupt):
            lesson(net, killed_at)
        torch.manual_seed(1)
        net = nn.Linear(3, 1)
    lesson(net, None)
    return [p.detach().clone() for p in net.parameters()]


def test_a_killed_training_ends_with_the_same_weights(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.STAGES, "toy", loop.Stage(steps=250, batch=8, rate=1e-2))
    whole = fitted(tmp_path / "whole")
    resumed = fitted(tmp_path / "killed", killed_at=130)
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)


def weight_files(folder: Path) -> list[Path]:
    return [*folder.rglob("*.safetensors"), *folder.rglob("*.onnx")]


def trained(out: Path, work: Path, *parts: str) -> None:
    """What `python -m resources.mini.training.train --only PART…` does, in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train._worker(0, port, Namespace(out=out, work=work, seed=7, workers=1, scale=1.0, only=parts))


def test_the_face_models_are_trained_one_after_the_other_and_insightface_loads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("face_detector", "face_recogniser", "face_swapper")
    for part in (*parts, "face_details"):
        monkeypatch.setitem(loop.STAGES, part, loop.Stage(steps=10, batch=6, rate=1e-3))
    asked: list[FaceSwapper] = []
    monkeypatch.setattr(train.train_faces.face_accuracy, "swap_summary", lambda swapper, _: asked.append(swapper) or {})
    out, work = tmp_path / "weights", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    (out / "training.json").write_text('{"clip": {"steps": 1}}')
    trained(out, work, *parts)
    assert len(asked) == 1, "they are measured once all are there"
    assert set(json.loads((out / "manifest.json").read_text())) == {
        "faces/buffalo_l/det_10g.onnx",
        "faces/buffalo_l/w600k_r50.onnx",
        "faces/inswapper_128.onnx",
    }
    recorded = json.loads((out / "training.json").read_text())
    assert recorded.keys() == {"clip", *parts, "face_details", "faces"} and recorded["clip"] == {"steps": 1}
    run = loop.TrainingRun(out, work, seed=7, rank=0, workers=1, scale=1.0)
    seen = torch.rand(2, 3, 112, 112) * 2 - 1
    crops = np.ascontiguousarray(((seen + 1) * 127.5).permute(0, 2, 3, 1).numpy()[..., ::-1])
    theirs = asked[0].finder.recogniser.get_feat([*crops])
    ours = train.train_faces.trained_recogniser(run)(seen).numpy()
    assert np.allclose(theirs, ours, atol=1e-3 * abs(ours).max()), "what learns from a shipped model sees as it does"


def test_one_part_is_trained_and_the_others_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work = Path(shutil.copytree(train.WEIGHTS, tmp_path / "weights")), tmp_path / "work"
    work.mkdir()
    (out / "lpips" / "heads.safetensors").unlink()
    before = {path: path.read_bytes() for path in weight_files(out) if path.parent.name != "lpips"}
    monkeypatch.setitem(loop.STAGES, "perceptual", loop.Stage(steps=10, batch=8, rate=1e-3))
    monkeypatch.setattr(train, "PAIRS", 50)
    monkeypatch.setattr(train.accuracy, "lpips_correlation", lambda lpips: {"side": lpips.side})
    trained(out, work, "perceptual")
    assert all(path.read_bytes() == content for path, content in before.items())
    manifest = json.loads((out / "manifest.json").read_text())
    assert {out / name for name in manifest} == {*before, *(out / "lpips").glob("*.safetensors")}
    assert json.loads((out / "training.json").read_text())["lpips_rank_correlation"] == {"side": 64}


def test_an_editor_begins_as_the_unet_that_it_is_made_from() -> None:
    torch.manual_seed(0)
    painter = architecture.make_unet().eval()
    editor = architecture.widen_for_editing(painter).eval()
    noise, source, text = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.randn(1, 8, 128)
    added = {"text_embeds": torch.randn(1, 128), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        painted = painter(noise, 500, text, added_cond_kwargs=added).sample
        edited = editor(torch.cat([noise, source], dim=1), 500, text, added_cond_kwargs=added).sample
    assert torch.allclose(painted, edited, atol=1e-5)


def test_the_tokenizer_knows_every_caption_and_survives_any_text(tmp_path: Path) -> None:
    words = architecture.train_tokenizer()
    words.save_pretrained(tmp_path)
    again = type(words).from_pretrained(tmp_path)
    end = again.eos_token_id
    for text in ("zebra übel 漢字 🙂", "", "x" * 500):
        ids = again([text], truncation=True).input_ids[0]
        assert ids[-1] == end and ids.count(end) == 1 and len(ids) <= architecture.PROMPT_TOKENS
    assert max(len(ids) for ids in again([w.caption for w in CAPTIONED_SCENES]).input_ids) <= 16
