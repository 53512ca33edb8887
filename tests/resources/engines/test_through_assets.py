"""Each published engine runs through the assets, from plan to scores, as `FLEXY_MODELS=full` runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from flexy_assets.scoring.work import Work
from flexy_assets.storage.scores import read_scores
from flexy_assets.sweep import assets
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.parquet import ParquetTables
from resources.settings import Settings
from tests.support import references

pytestmark = pytest.mark.slow(seconds=30)

# Which tiny pipeline stands for each engine's, and how many images, of the steps and guidances each asks for.
TINY = {
    **dict.fromkeys(("realvis_xl", "realvis_xl_v4", "sdxl", "sdxl_turbo"), "sdxl"),
    "sdxl_lightning_4": "lightning",
    "flux_schnell": "flux_schnell",
    "flux_1_dev": "flux_1_dev",
    "sd3": "sd3",
    "sd35": "sd3",
    "hidream": "hidream",
    "hidream_dev": "hidream",
    "flux2_dev": "flux2",
}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small scorers of the published classes and file forms."""
    folder = tmp_path_factory.mktemp("scorers")
    clip = references.save_clip(folder / "clip", full=False)
    head = references.save_predictor(folder / "v2", clip, 2)
    hps = references.save_hps(folder / "hps", full=False).parent
    return {"clip": clip, "hps": hps, "aesthetic_v2": head}


@pytest.fixture
def settings(
    tmp_path: Path, tiny: Callable[[str], Path], scorers: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Settings]:
    engine = request.node.callspec.params["engine"]
    folders = scorers | {engine: tiny(TINY[engine])}
    needed = {"llama_31_8b": "llama", "sdxl": "sdxl"}
    folders |= {name: tiny(needed[name]) for name in registry.MODELS[engine].required_models.values()}
    file = tmp_path / "models.toml"
    file.write_text("[models]\n" + "".join(f'{name} = "{folder}"\n' for name, folder in folders.items()))
    yield Settings.read({"FLEXY_HOME": str(tmp_path), "FLEXY_MODELS": "full", "FLEXY_MODEL_REGISTRY": str(file)})


def test_every_engine_of_the_published_set_is_tried_here() -> None:
    same = {"sdxl_lightning_2", "sdxl_lightning_8", "flux2_dev_4bit"}  # as _4; on a GPU alone, see test_engines
    assert TINY.keys() | same == set(registry.model_names("engine", Settings.read({"FLEXY_MODELS": "full"})))


@pytest.mark.parametrize("engine", TINY)
def test_a_published_engine_makes_images_that_are_scored(engine: str, settings: Settings) -> None:
    resources: dict[str, Any] = {
        "work": Work.from_settings(settings),
        "io_manager": ParquetTables(settings.tables),
    }
    config = {
        "engine": engine,
        "images": 3,
        "steps": "4" if "lightning" in engine else "2",
        "prompts": ["a red circle", "a blue square"],
    }
    config |= {"width": 64, "height": 64}
    batched = [assets.generated_images, assets.clip_embeddings, *assets.SCORE_ASSETS]
    with dg.DagsterInstance.ephemeral() as instance:
        planned = dg.materialize(
            [assets.sweep_plan],
            instance=instance,
            resources=resources,
            run_config={"ops": {"sweep_plan": {"config": config}}},
        )
        assert planned.success
        (batch,) = instance.get_dynamic_partitions("seed_batches")
        done = dg.materialize(
            [assets.sweep_plan, *batched],
            selection=batched,
            instance=instance,
            resources=resources,
            partition_key=batch,
        )
        assert done.success
    with resources["work"].database.begin(reading=True) as connection:
        rows = read_scores(connection, Settings.read())
    assert rows["engine"].to_list() == [engine] * 3
    assert rows.select(*METRICS).null_count().sum_horizontal().item() == 0
    # What the engine ignores is recorded as such.
    ignores = registry.MODELS[engine].ignored_settings
    assert (rows["guidance"].null_count() == 3) is ("guidance" in ignores)
    pictures = [resources["work"].store.read(path) for path in rows["image_path"]]
    assert all(picture.size == (64, 64) for picture in pictures)
    assert np.abs(np.asarray(pictures[0], int) - np.asarray(pictures[1], int)).max() > 0
