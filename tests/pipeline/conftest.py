"""Fixtures of several files: a workspace for small notebooks, and a prepared folder that a test may damage."""

from pathlib import Path

import numpy as np
import pytest

from m3lib.data import manifest
from notebook_runs import Workspace
from tiny import TAXONOMY, make_prepared, random_labels
from workspace import finished


@pytest.fixture
def notebooks(tmp_path) -> Workspace:
    (tmp_path / "w").mkdir()
    return Workspace(tmp_path / "w")


@pytest.fixture
def prepared(tmp_path) -> Path:
    """A prepared folder with 30 images."""
    labels = random_labels("multi", 30, np.random.default_rng(0))
    data = make_prepared(labels, [manifest.SUBSETS[i % 5] for i in range(30)])
    manifest.save(manifest.Source(TAXONOMY, data.manifest, data.images.__getitem__), tmp_path)
    np.save(tmp_path / "images.npy", data.images)
    assert len(manifest.open_prepared(tmp_path).labels) == 30
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A copy in which the whole pipeline went through, committed; tests leave it as they found it."""
    copy = finished(tmp_path_factory, "whole")
    yield copy
    copy.kill()
