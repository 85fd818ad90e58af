"""Atomic writes, digests, disk space, and a safetensors file written in blocks."""

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from m3lib.data import files
from m3lib.errors import InputError
from m3lib.retrieval.embeddings import Embeddings
from m3lib.training import inference
from m3lib.training.trainer import Trainer
from stripes import PREPARED, short


def test_an_atomic_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new folder" / "file.txt"
    with files.atomic(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with files.atomic(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def write_half(path: Path, error: BaseException) -> None:
    with files.atomic(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), OSError(errno.EIO, "broken")])
def test_a_failed_atomic_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", files.FULL_DISK)
def test_a_full_disk_is_one_sentence(tmp_path, number):
    sentence = f"the disk of {tmp_path} is full: free some space, then run again"
    with pytest.raises(InputError, match=sentence):
        write_half(tmp_path / "file.txt", OSError(number, os.strerror(number)))
    assert not list(tmp_path.iterdir())


def test_a_digest_covers_files_bytes_and_text_in_order(tmp_path):
    (tmp_path / "file").write_bytes(b"photo\0")
    expected = hashlib.sha256("é".encode() + b"photo\0" + b"rest").hexdigest()
    assert files.digest("é", tmp_path / "file", b"rest") == expected
    assert files.digest(b"rest", tmp_path / "file", "é") != expected


def test_missing_disk_space_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2e9))
    files.require_space(tmp_path, 2e9, "the store needs", "free some space")
    with pytest.raises(InputError, match=rf"^the store needs 2\.1 GB, but 2\.0 GB are free in {tmp_path}: free some"):
        files.require_space(tmp_path, 2.1e9, "the store needs", "free some space")


def make_tensors(rows: int = 23) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {"rows": np.sort(rng.choice(1000, rows, replace=False))}
    for name, shape in (("posterior", (7,)), ("attribute", (3, 5)), ("classes", (7, 4))):
        tensors[name] = rng.standard_normal((rows, *shape)).astype(np.float16)
    tensors["weights"] = rng.standard_normal((rows, 3)).astype(np.float32)
    return tensors


def blocks(tensors: dict[str, np.ndarray], size: int = 4):
    for start in range(0, len(tensors["rows"]), size):
        yield {name: values[start : start + size] for name, values in tensors.items()}


@pytest.mark.parametrize("names", [("rows",), ("rows", "attribute"), tuple(make_tensors())])
def test_tensors_written_in_blocks_have_the_bytes_of_save_file(names, tmp_path):
    tensors = {name: make_tensors()[name] for name in names}
    save_file(tensors, tmp_path / "expected")
    files.write_tensors(tmp_path / "result", 23, blocks(tensors))
    assert (tmp_path / "result").read_bytes() == (tmp_path / "expected").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "result"]


def test_tensors_that_do_not_fit_on_the_disk_are_refused_before_they_are_written(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="is full: free some space"):
        files.write_tensors(tmp_path / "result", 23, blocks(make_tensors()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", ["m3", "asen", "classifier"])
def test_embedding_to_a_file_writes_what_embeddings_save(network, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "EMBED_BATCH", 5)
    system, rows = Trainer(PREPARED, short(network), 0, 1).system, PREPARED.rows("valid")
    inference.embed(system, PREPARED, rows, "fp32").save(tmp_path / "expected")
    inference.embed_to_file(tmp_path / "result", system, PREPARED, rows, "fp32")
    assert (tmp_path / "result").read_bytes() == (tmp_path / "expected").read_bytes()
    assert torch.equal(Embeddings.load(tmp_path / "result").rows, torch.from_numpy(rows))
