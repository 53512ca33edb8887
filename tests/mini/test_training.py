"""A killed training run resumes and ends with the same weights."""

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
def single_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training run of one worker, in this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train_small_net(folder: Path, killed_at: int | None = None) -> list[Tensor]:
    """Return a small net's parameters after its stage, optionally killed and resumed on the way."""
    run = loop.TrainingRun(out=folder, work=folder, seed=7, rank=0, workers=1, scale=1.0)
    folder.mkdir(exist_ok=True)
    calls: list[int] = []

    def train_net(net: nn.Module, last_call: int | None) -> None:
        def loss(rng: np.random.Generator) -> Tensor:
            calls.append(1)
            if last_call is not None and len(calls) > last_call:
                raise KeyboardInterrupt
            x = torch.from_numpy(rng.standard_normal((8, 3), dtype=np.float32))
            return ((net(x).squeeze(-1) - x.sum(1)) ** 2).mean()

        loop.train_model(run, "toy", net, loss, average=0.9)

    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    if killed_at is not None:
        with pytest.raises(KeyboardInterrupt):
            train_net(net, killed_at)
        torch.manual_seed(1)
        net = nn.Linear(3, 1)
    train_net(net, None)
    return [p.detach().clone() for p in net.parameters()]


def test_a_killed_training_ends_with_the_same_weights(
    single_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.STAGES, "toy", loop.Stage(steps=250, batch=8, rate=1e-2))
    whole = train_small_net(tmp_path / "whole")
    resumed = train_small_net(tmp_path / "killed", killed_at=130)
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)


def weight_files(folder: Path) -> list[Path]:
    return [*folder.rglob("*.safetensors"), *folder.rglob("*.onnx")]


def train_parts(out: Path, work: Path, *parts: str) -> None:
    """Run `python -m resources.mini.training.train --only PART…` in this process."""
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
    measured: list[FaceSwapper] = []
    monkeypatch.setattr(
        train.train_faces.face_accuracy, "swap_summary", lambda swapper, _: measured.append(swapper) or {}
    )
    out, work = tmp_path / "weights", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    (out / "training.json").write_text('{"clip": {"steps": 1}}')
    train_parts(out, work, *parts)
    assert len(measured) == 1, "they are measured once, after the last one"
    assert set(json.loads((out / "manifest.json").read_text())) == {
        "faces/buffalo_l/det_10g.onnx",
        "faces/buffalo_l/w600k_r50.onnx",
        "faces/inswapper_128.onnx",
    }
    recorded = json.loads((out / "training.json").read_text())
    assert recorded.keys() == {"clip", *parts, "face_details", "faces"} and recorded["clip"] == {"steps": 1}
    run = loop.TrainingRun(out, work, seed=7, rank=0, workers=1, scale=1.0)
    faces = torch.rand(2, 3, 112, 112) * 2 - 1
    crops = np.ascontiguousarray(((faces + 1) * 127.5).permute(0, 2, 3, 1).numpy()[..., ::-1])
    theirs = measured[0].finder.recogniser.get_feat([*crops])
    ours = train.train_faces.load_trained_recogniser(run)(faces).numpy()
    assert np.allclose(theirs, ours, atol=1e-3 * abs(ours).max()), (
        "the recogniser read back from its ONNX file computes the same"
    )


def test_one_part_is_trained_and_the_others_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work = Path(shutil.copytree(train.WEIGHTS, tmp_path / "weights")), tmp_path / "work"
    work.mkdir()
    (out / "lpips" / "heads.safetensors").unlink()
    before = {path: path.read_bytes() for path in weight_files(out) if path.parent.name != "lpips"}
    monkeypatch.setitem(loop.STAGES, "perceptual", loop.Stage(steps=10, batch=8, rate=1e-3))
    monkeypatch.setattr(train, "PAIRS", 50)
    monkeypatch.setattr(train.accuracy, "lpips_correlation", lambda lpips: {"side": lpips.side})
    train_parts(out, work, "perceptual")
    assert all(path.read_bytes() == content for path, content in before.items())
    manifest = json.loads((out / "manifest.json").read_text())
    assert {out / name for name in manifest} == {*before, *(out / "lpips").glob("*.safetensors")}
    assert json.loads((out / "training.json").read_text())["lpips_rank_correlation"] == {"side": 64}


def test_an_untrained_editor_equals_its_unet() -> None:
    torch.manual_seed(0)
    generator = architecture.make_unet().eval()
    editor = architecture.widen_for_editing(generator).eval()
    noise, source, text = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.randn(1, 8, 128)
    added = {"text_embeds": torch.randn(1, 128), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        generated = generator(noise, 500, text, added_cond_kwargs=added).sample
        edited = editor(torch.cat([noise, source], dim=1), 500, text, added_cond_kwargs=added).sample
    assert torch.allclose(generated, edited, atol=1e-5)


def test_the_tokenizer_encodes_every_caption_and_any_text(tmp_path: Path) -> None:
    tokenizer = architecture.train_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    reloaded = type(tokenizer).from_pretrained(tmp_path)
    end = reloaded.eos_token_id
    for text in ("zebra übel 漢字 🙂", "", "x" * 500):
        ids = reloaded([text], truncation=True).input_ids[0]
        assert ids[-1] == end and ids.count(end) == 1 and len(ids) <= architecture.PROMPT_TOKENS
    assert max(len(ids) for ids in reloaded([w.caption for w in CAPTIONED_SCENES]).input_ids) <= 16
