"""A file of embeddings, filled part by part: the same bytes as written at once, however often it is cut."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from m3lib.data import batches, files
from m3lib.data.files import Stream
from m3lib.errors import InputError
from m3lib.retrieval.ranking import KINDS, Embeddings
from m3lib.training import inference
from m3lib.training.trainer import Trainer
from stripes import PREPARED, short
from tiny import make_variant


def make_parts(seed: int = 0, rows: int = 23) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {"rows": np.sort(rng.choice(1000, rows, replace=False))}
    for name, shape in (("attribute", (3, 5)), ("posterior", (7,)), ("classes", (7, 4))):
        found[name] = rng.standard_normal((rows, *shape)).astype(np.float16)
    return found


def fill(stream: Stream, parts: dict[str, np.ndarray], stop: int, step: int = 4) -> None:
    while stream.done < stop:
        part = slice(stream.done, min(stream.done + step, stop))
        stream.add({name: value[part] for name, value in parts.items()})


@pytest.mark.parametrize("absent", [(), ("attribute",), ("posterior", "classes")])
def test_a_stream_ends_as_the_file_that_embeddings_save(absent, tmp_path):
    parts = {name: value for name, value in make_parts().items() if name not in absent}
    whole = Embeddings(*(torch.from_numpy(parts[n]) if n in parts else None for n in ("rows", *KINDS)))
    whole.save(tmp_path / "whole.safetensors")
    stream = Stream(tmp_path / "stream.safetensors", "print", 23)
    fill(stream, parts, 23)
    stream.finish()
    assert (tmp_path / "stream.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stream.safetensors", "whole.safetensors"]


def saved(path: Path, stop: int, fingerprint: str = "print") -> None:
    """A stream that was cut off after some rows."""
    stream = Stream(path, fingerprint, 23)
    fill(stream, make_parts(), stop)
    stream.save()


def test_a_cut_stream_goes_on_from_the_rows_on_the_disk(tmp_path):
    path, parts = tmp_path / "e.safetensors", make_parts()
    for stop in (8, 20):
        saved(path, stop)
        fill(Stream(path, "print", 23), make_parts(9), min(stop + 2, 23))  # never saved: to be written again
        again = Stream(path, "print", 23)
        assert again.done == stop
    fill(again, parts, 23)
    again.finish()
    for name, value in vars(Embeddings.load(path)).items():
        assert np.array_equal(value.numpy(), parts[name])


@pytest.mark.parametrize("spoil", ["fingerprint", "cut", "missing", "journal"])
def test_what_does_not_belong_to_the_run_is_left_aside(spoil, tmp_path):
    path = tmp_path / "e.safetensors"
    saved(path, 12, "other" if spoil == "fingerprint" else "print")
    part, journal = path.with_suffix(".partial"), path.with_suffix(".journal")
    if spoil == "cut":
        os.truncate(part, 100)
    if spoil == "missing":
        part.unlink()
    if spoil == "journal":
        journal.write_text('{"fingerprint": ')
    stream = Stream(path, "print", 23)
    assert stream.done == 0
    fill(stream, make_parts(1), 23)
    stream.finish()
    assert np.array_equal(Embeddings.load(path).classes.numpy(), make_parts(1)["classes"])


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=r"e\.safetensors needs 0\.0 GB, but .* GB are free .*class_embedding"
    ) as error:
        fill(Stream(tmp_path / "e.safetensors", "print", 23), make_parts(), 4)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", ["m3", "asen", "classifier"])
def test_embedding_to_a_file_is_embedding_and_goes_on_where_it_was_killed(network, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "EMBED_BATCH", 5)
    monkeypatch.setattr(files, "SAVE_EVERY", 0.0)
    system, rows = Trainer(PREPARED, short(network), 0, 1).system, PREPARED.rows("valid")
    path, whole = tmp_path / "e.safetensors", inference.embed(system, PREPARED, rows, "fp32")
    whole.save(tmp_path / "whole.safetensors")
    read, seen = batches.read, []

    def spy(images: np.ndarray, some: np.ndarray, pin: bool, killed: int = -1) -> torch.Tensor:
        seen.extend(some.tolist())
        if some[0] == killed:
            raise KeyboardInterrupt
        return read(images, some, pin)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "read", partial(spy, killed=rows[10]))
        with pytest.raises(KeyboardInterrupt):
            inference.embed_to_file(path, system, PREPARED, rows, "fp32")
        assert not path.exists()
        seen.clear()
        patch.setattr(batches, "read", spy)
        inference.embed_to_file(path, system, PREPARED, rows, "fp32")
    assert seen == rows[10:].tolist()  # two parts of five were on the disk
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_another_models_rows_are_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "EMBED_BATCH", 5)
    first, second = (Trainer(PREPARED, make_variant("m3"), seed, 1).system for seed in (0, 1))
    path, rows = tmp_path / "e.safetensors", PREPARED.rows("valid")
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "finish", Stream.save)
        inference.embed_to_file(path, first, PREPARED, rows, "fp32")
    assert not path.exists()
    inference.embed_to_file(path, second, PREPARED, rows, "fp32")
    expected = inference.embed(second, PREPARED, rows, "fp32")
    assert torch.equal(Embeddings.load(path).classes, expected.classes)
