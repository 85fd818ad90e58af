"""Rubbish in, continued: weights; notebooks run out of order: what is kept, and what is told."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_rubbish import check_sentence, listing
from test_run_notebook import Workspace

from m3lib import config
from m3lib.errors import InputError
from m3lib.pipeline import run_notebook as runner
from m3lib.systems import backbone
from tiny import BACKBONE, ROOT, make_system

# weights, where a network is built


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def cut(path: Path) -> None:
    save_file(make_system("m3").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-7])


WEIGHTS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "a pickle": ("w.pt", pickled, ["w.pt", "does not end in .safetensors", "model.weights"]),
    "a pickle for the Hub": ("w.bin", pickled, ["w.bin", "does not end in .safetensors", "model.weights"]),
    "a renamed pickle": ("w.safetensors", pickled, ["w.safetensors", "model.weights", "safetensors file"]),
    "weights under a pickle's name": (
        "w.pth",
        lambda path: save_file(make_system("m3").state_dict(), path),
        ["w.pth", "does not end in .safetensors"],
    ),
    "numpy's": ("w.npz", lambda path: np.savez(path, a=np.zeros(2)), ["w.npz", "does not end in .safetensors"]),
    "cut off": ("w.safetensors", cut, ["w.safetensors", "model.weights"]),
    "a header without end": (
        "w.safetensors",
        lambda path: path.write_bytes((2**63).to_bytes(8, "little") + b"{"),
        ["w.safetensors", "model.weights"],
    ),
    "of nothing we know": (
        "w.safetensors",
        lambda path: save_file({"layer": torch.zeros(2)}, path),
        ["w.safetensors", "it has nothing for", "model.weights"],
    ),
    "half of ours": (
        "w.safetensors",
        lambda path: save_file({"backbone.trunk.conv1.weight": torch.zeros(2)}, path),
        ["w.safetensors", "model.weights"],
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_another_kind_are_one_sentence(tmp_path, case):
    name, make, words = WEIGHTS[case]
    make(tmp_path / name)
    before = listing(tmp_path)
    with pytest.raises(InputError) as raised:
        backbone.create_trunk("resnet10t", BACKBONE, False, str(tmp_path / name))
    check_sentence(str(raised.value), words)
    assert listing(tmp_path) == before


# the runner, without a kernel


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    (tmp_path / "w").mkdir()
    made = Workspace(tmp_path / "w")
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(config, "__file__", str(made.folder / "m3lib" / "config.py"))
    return made


NAMES = ["../01_prepare", "/etc/passwd", "a/b", "..", "", "-x", "a b", "a;b", "a\nb", "$HOME", "a" * 99]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [0, 1])
def test_a_name_that_leads_elsewhere_is_refused(workspace, capsys, name, place):
    workspace.notebook("small", "1")
    before = listing(workspace.folder)
    assert runner.main([*["small"][:place], name]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    check_sentence(said, ["is no name of a notebook or a variant"])
    assert listing(workspace.folder) == before


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{}", b"[1]", b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5}'])
def test_what_is_no_notebook_is_one_sentence(workspace, capsys, data):
    (workspace.folder / "data" / "notebooks" / "bad.ipynb").write_bytes(data)
    assert runner.main(["bad"]) == 1
    said = capsys.readouterr().err.strip()
    check_sentence(said, ["error: data/notebooks/bad.ipynb is no notebook", "dvc repro --force notebooks"])
    assert not workspace.executed("bad").exists()


# with a kernel


def ended(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return said


def test_notebooks_out_of_order(workspace):
    """Training before anything was prepared: the sentence on the terminal, and at the end of the notebook kept."""
    (workspace.folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    source = (ROOT / "notebooks" / "02_train.ipynb").read_text()
    (workspace.folder / "data" / "notebooks" / "02_train.ipynb").write_text(source)
    done = workspace.run("02_train", "m3")
    check_sentence(ended(done), ["data/prepared is not a prepared data set", "run `dvc repro prepare` first"])
    assert "executed up to there: notebooks/executed/02_train-m3.ipynb" in done.stderr
    kept = nbformat.read(workspace.executed("02_train-m3"), as_version=4)
    outputs = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert outputs[-1].ename == "InputError"
    assert f"error: {outputs[-1].evalue}" == ended(done)
    assert not (workspace.folder / "data" / "models").exists()


LIMITS = {  # what a cell does, and what is told; the notebook is kept in each case
    "memory": ("import torch\ntorch.empty(2**50, dtype=torch.uint8)", ["lower train.batch", "images.height"]),
    "disk": ('import errno\nraise OSError(errno.ENOSPC, "No space left on device")', ["the disk is full"]),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", ["kernel of limit died", "train.batch"]),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_the_machine_is_one_sentence(workspace, limit):
    cell, words = LIMITS[limit]
    workspace.notebook("limit", 'print("this far")', cell)
    done = workspace.run("limit")
    check_sentence(ended(done), words)
    assert "executed up to there: notebooks/executed/limit.ipynb" in done.stderr
    assert "this far" in workspace.executed("limit").read_text()


def test_sockets_lie_in_the_work_folder_and_those_of_a_killed_run_go_with_the_next(workspace):
    workspace.notebook("dead", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(os.getpid(), 9)")
    assert workspace.run("dead").returncode == -signal.SIGKILL
    work = workspace.folder / "data" / "work"
    assert len(list(work.glob("dead-ipc-*"))) == 5
    assert not list(workspace.folder.glob("kernel-ipc-*"))
    workspace.notebook("dead", "print(1)")
    assert workspace.run("dead").returncode == 0
    assert not list(work.glob("dead-ipc-*"))
