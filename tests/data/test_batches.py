"""Reading batches ahead of their use."""

from itertools import chain, pairwise

import pytest

from m3lib.data import batches
from m3lib.errors import InputError
from stripes import run, same, short


def test_prefetching_keeps_order_and_pairs_and_passes_errors_on():
    drawn, read = [], []

    def items():
        for k in range(5):
            drawn.append(k)
            yield k

    def load(k: int) -> int:
        read.append(k)
        if k == 4:
            raise InputError("damaged")
        return 10 * k

    pairs = batches.prefetch(items(), load)
    for k in range(4):
        assert next(pairs) == (k, 10 * k)
        assert drawn == list(range(k + 2))  # the next one, and no more
    with pytest.raises(InputError, match="damaged"):
        next(pairs)
    assert read == list(range(5))
    assert list(batches.prefetch([], load)) == []


def test_prefetching_changes_no_training(tmp_path, monkeypatch):
    """However long reading takes: its thread draws no random numbers. Without it, too, one batch is drawn ahead."""
    whole, curves = run(short("m3"), tmp_path / "a.safetensors")

    def without_thread(items, read):
        return ((item, read(item)) for item, _ in pairwise(chain(items, [None])))

    monkeypatch.setattr(batches, "prefetch", without_thread)
    system, found = run(short("m3"), tmp_path / "b.safetensors")
    assert same(system, whole)
    assert found == curves
