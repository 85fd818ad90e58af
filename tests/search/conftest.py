"""Indexes that the tests of a file share."""

import pytest

from catalogues import build_index, noise_images


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Return the index of `noise_images` for a network and score, built at the first use."""
    built, prepared = {}, noise_images()

    def get(network="m3", score=None, **settings):
        key = (network, score, *settings.items())
        if key not in built:
            built[key] = build_index(tmp_path_factory.mktemp("index"), prepared, network, score, **settings)
        return built[key]

    return get
