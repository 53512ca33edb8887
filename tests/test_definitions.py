"""The code location: quick to load, named as agreed, and each room knowing only those it may know."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from resources.parquet import ParquetTables
from resources.settings import Settings

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "diffusers", "transformers", "insightface", "onnxruntime", "matplotlib", "plotly", "scipy", "sklearn"}
SCORES = ("clip_scores", "aesthetic_scores", "aes_v2_scores", "hps_v2_scores")
ANALYSIS = ("metric_correlations", "sweep_regression", "sweet_spots")
FITTED = ("sweep_response", "sweep_effects", "diminishing_returns", "pareto_front", "sweep_comparison")
FURTHER = ("metric_components", "sweep_times", *FITTED)
BATCHED = ("generated_images", "clip_embeddings", *SCORES)
GROUPS = {
    "sweep": {"sweep_plan", "generated_images"},
    "scores": {"clip_embeddings", *SCORES, "sweep_scores", "sweep_csv"},
    "results": {*ANALYSIS, *FURTHER, "sweep_report"},
}
"""Made, scored, understood."""
MADE_FROM = {
    "sweep_plan": set(),
    "generated_images": {"sweep_plan"},
    "clip_embeddings": {"generated_images"},
    "clip_scores": {"clip_embeddings"},
    "aesthetic_scores": {"clip_embeddings"},
    "aes_v2_scores": {"clip_embeddings"},
    "hps_v2_scores": {"generated_images"},
    "sweep_scores": set(SCORES),
    "sweep_csv": {"sweep_scores"},
    "metric_correlations": {"sweep_scores"},
    "sweep_regression": {"sweep_scores"},
    "sweet_spots": {"sweep_scores"},
    "metric_components": {"sweep_scores"},
    "sweep_times": {"sweep_scores"},
    **{name: {"sweep_scores"} for name in FITTED},
    "sweep_report": {"sweep_scores", "sweep_csv", *ANALYSIS, *FURTHER},
}
"""The sweep's assets, under the names that notebooks and schedules use, and what each is made from."""


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    from flexy_assets.definitions import build_definitions

    return build_definitions(Settings.read())


def spec(defs: dg.Definitions, name: str) -> dg.AssetSpec:
    return defs.resolve_assets_def(dg.AssetKey(name)).get_asset_spec(dg.AssetKey(name))


# The webserver, the daemon and every sensor tick load this module.


def test_the_definitions_load_in_under_four_seconds_and_without_any_model_library(home: Path) -> None:
    # The processor's seconds: those of the clock on an idle machine, and the same on a busy one. The first
    # import after an install compiles every module, and keeps the result unless it is told not to.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    script = (
        "import json, sys, time; began = time.process_time(); import flexy_assets.definitions;"
        " print(json.dumps([time.process_time() - began, sorted(sys.modules)]))"
    )
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=4) >= 4:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        took, loaded = json.loads(done.stdout)
        seconds.append(took)
        assert not HEAVY & set(loaded)
    assert min(seconds) < 4, f"the best of {len(seconds)} tries took {min(seconds):.1f} s"
    assert list(home.iterdir()) == [], "loading alone writes nothing"


def test_dagster_can_serve_all_of_it(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


# The names are a contract.


def test_the_sweep_has_the_agreed_assets_and_no_others(defs: dg.Definitions) -> None:
    groups = {
        name: {s.key.to_user_string() for s in defs.resolve_all_asset_specs() if s.group_name == name}
        for name in GROUPS
    }
    assert groups == GROUPS


def test_the_job_of_results_makes_all_that_is_made_from_the_scores(defs: dg.Definitions) -> None:
    made = {key.to_user_string() for key in defs.resolve_job_def("results").asset_layer.selected_asset_keys}
    assert made == {"sweep_scores", "sweep_csv"} | GROUPS["results"]


@pytest.mark.parametrize("name", MADE_FROM)
def test_each_asset_is_made_from_what_the_lineage_says(defs: dg.Definitions, name: str) -> None:
    assert {dep.asset_key.to_user_string() for dep in spec(defs, name).deps} == MADE_FROM[name]


def test_images_and_scores_are_made_in_seed_batches_a_range_in_one_run_and_one_model_at_a_time(
    defs: dg.Definitions,
) -> None:
    for name in MADE_FROM:
        asset = defs.resolve_assets_def(dg.AssetKey(name))
        if name in BATCHED:
            assert isinstance(asset.partitions_def, dg.DynamicPartitionsDefinition), name
            assert asset.partitions_def.name == "seed_batches"
            assert asset.backfill_policy == dg.BackfillPolicy.single_run(), name
            assert asset.op.pool == "gpu", name
        else:
            assert asset.partitions_def is None, name


def test_labels_come_and_go_as_agreed(defs: dg.Definitions) -> None:
    batched = {"label_tasks": False, "label_predictions": True, "label_review": False}
    for name, in_batches in batched.items():
        asset = defs.resolve_assets_def(dg.AssetKey(name))
        assert spec(defs, name).group_name == "labels"
        assert getattr(asset.partitions_def, "name", None) == ("label_batches" if in_batches else None), name
        assert not in_batches or asset.backfill_policy == dg.BackfillPolicy.single_run(), name


def test_every_asset_says_what_it_is_what_it_is_made_with_and_whose(defs: dg.Definitions) -> None:
    for asset in defs.resolve_all_asset_specs():
        assert (asset.description or "").strip(), asset.key
        assert 1 <= len(asset.kinds) <= 3, asset.key
        assert list(asset.owners) == ["team:flexy"], asset.key


def test_owners_are_those_of_the_settings(defs: dg.Definitions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXY_OWNERS", "ada@example.org, team:images")
    from flexy_assets.definitions import build_definitions

    loaded = build_definitions(Settings.read())
    owners = {tuple(asset.owners) for asset in loaded.resolve_all_asset_specs()}
    assert owners == {("ada@example.org", "team:images")}


def test_every_column_of_every_table_has_a_type_and_says_what_it_is(defs: dg.Definitions) -> None:
    tables = {
        key.to_user_string()
        for asset in defs.resolve_asset_graph().assets_defs
        for name, key in asset.keys_by_output_name.items()
        if not asset.op.output_def_named(name).dagster_type.is_nothing
    }
    assert tables >= {"sweep_plan", "sweep_scores", *ANALYSIS, *FURTHER, "edit_scores", "label_tasks"}
    for name in tables:
        of = spec(defs, name)
        columns = of.metadata["dagster/column_schema"].columns
        assert columns and all(column.type and column.description for column in columns), name
        assert "parquet" in of.kinds, name


def test_no_asset_is_kept_by_pickling(defs: dg.Definitions) -> None:
    for asset in defs.resolve_asset_graph().assets_defs:
        for key in asset.keys:
            made = (defs.resources or {})[asset.get_io_manager_key_for_asset_key(key)]
            manager = made(dg.build_init_resource_context())
            assert isinstance(manager, ParquetTables), f"{key.to_user_string()} is kept by {type(manager).__name__}"


def config_fields(defs: dg.Definitions) -> dict[str, Any]:
    """The fields of every launchpad, by op or asset and name."""
    found = {}
    for job in defs.get_repository_def().get_all_jobs():
        for node in job.all_node_defs:
            schema = node.config_schema.as_field() if isinstance(node, dg.OpDefinition) and node.config_schema else None
            for name, field in getattr(schema and schema.config_type, "fields", {}).items():
                found[f"{node.name}.{name}"] = field
    return found


def test_every_field_of_a_launchpad_has_a_description_a_default_and_a_range(defs: dg.Definitions) -> None:
    fields = config_fields(defs)
    assert len(fields) > 100
    required = {"score_beside.metrics", "rescore.metric", "trial.prompt", "inpaint.tasks"}
    assert {name for name, field in fields.items() if field.is_required} <= required
    assert [name for name, field in fields.items() if not (field.description or "").endswith(".")] == []
    numbers = {name: field for name, field in fields.items() if "Int" in repr_of(field) or "Float" in repr_of(field)}
    assert "sweep_plan.images" in numbers and "edit_tasks.alpha" in numbers
    assert [name for name, field in numbers.items() if not re.search(r"\d|any finite", field.description)] == []


def repr_of(field: Any) -> str:
    return " ".join(str(inner) for inner in (field.config_type.key, field.config_type.kind))
