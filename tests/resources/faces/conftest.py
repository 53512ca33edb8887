"""The embedded face models, and scenes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from resources.faces.insight import FaceSwapper
from resources.mini.faces import FaceTask, face_task
from resources.models import registry
from resources.settings import Settings


@pytest.fixture(scope="session")
def swapper() -> FaceSwapper:
    model = registry.find_face_swapper(Settings.read({})).load()
    assert isinstance(model, FaceSwapper)
    return model


@pytest.fixture
def given() -> dict[str, FaceTask]:
    """A task of each kind."""
    rng = np.random.default_rng(11)
    return {kind: face_task(kind, rng) for kind in ("one", "several", "edge", "none")}
