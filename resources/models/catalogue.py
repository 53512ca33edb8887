"""The list of models, with what is on this machine."""

from typing import Any

from resources.models import registry, weights
from resources.models.entry import ModelEntry
from resources.settings import MODEL_SETS, Settings


def list_models(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per model of each set.

    `state` is `embedded`, `present`, `your folder`, `missing`, `gated` (missing, with a licence to accept), or `user
    must supply` (missing and never downloaded: name the folder of its `files` in FLEXY_MODEL_REGISTRY). `gigabytes` is
    its size on disk or, where it is missing, the size to download.
    """
    rows = []
    for entry in registry.MODELS.values():
        sets = [models for models in MODEL_SETS if entry.in_set(models)]
        if not (entry.published or entry.user_provided or entry.embedded):
            sets = ["both"]
        rows += [_row(entry, models, settings) for models in sets]
    return rows


def _row(entry: ModelEntry, models: str, settings: Settings) -> dict[str, Any]:
    model = registry.local_model(entry, settings.with_models(models))
    published = None if models == "mini" else entry.published
    source = published or model.user_provided
    missing = bool(model.folder and weights.missing_files(model.folder, model.published, model.user_provided))
    if model.user_provided and not model.folder:
        missing, state = True, "user must supply"
    elif missing:
        state = "gated" if model.published and model.published.gated else "missing"
    elif models == "mini":
        state = "embedded"
    else:
        state = "your folder" if model.folder and not model.published else "present"
    present_bytes = weights.folder_bytes(model.folder) if model.folder else 0
    size = source.gigabytes if missing and source else present_bytes / 1e9
    return {
        "name": model.name,
        "kind": entry.kind,
        "set": models,
        "state": state,
        "folder": str(model.folder) if model.folder and not missing else None,
        "gigabytes": round(size, 6),
        "memory": (entry.memory or None) if models != "mini" else None,
        "licence": source.licence if source else None,
        "commercial": source.commercial if source else None,
        "gated": bool(published and published.gated),
        "repo": published.repo if published else None,
        "revision": published.revision if published else None,
        "files": [*model.user_provided.files] if model.user_provided else None,
    }
