"""Killed anywhere: SIGKILL, Ctrl-C and a full disk at random moments of every stage, and the bytes come out the same.

A stage's notebook runs in a forked child (see `forked`), its outputs removed before each try, as DVC does. Through
papermill and `dvc repro` the same is done a few times in test_pipeline; epoch by epoch in test_checkpoints; the image
store in test_store.
"""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from forked import Server
from m3lib.pipeline import run_notebook as runner
from tiny import ROOT
from workspace import Copy

STAGES = [("01_prepare", ""), ("02_train", "m3"), ("03_evaluate", "m3"), ("04_umap", "m3"), ("05_report", "")]
KILLS = 4  # of each stage
EPOCHS = "6"


def outs_of(notebook: str, variant: str) -> list[str]:
    """What DVC removes before it runs the stage, but for the executed notebook."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    (outs,) = [
        stage["outs"]
        for stage in stages
        if notebook in str(stage["cmd"]) and "m3lib.pipeline.run_notebook" in str(stage["cmd"])
    ]
    named = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
    return [out.replace("${item.variant}", variant) for out in named if not out.startswith("notebooks/")]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything under data/ that a stage wrote, the working folder too."""
    files = (path for path in sorted((folder / "data").rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Workshop:
    """A tiny copy of the repository in which every stage ran once, undisturbed: what it left, and how long it took."""

    def __init__(self, folder: Path):
        self.copy, self.folder = Copy(folder), folder
        for setting in ({"train.epochs": EPOCHS, "threads": "1"}).items():
            self.copy.put(*setting)
        self.server = Server(folder)
        self.seconds, self.expected = {}, {}
        self.go("02_train", "m3")  # a child that ends at once: by then the server has imported everything
        for stage in [STAGES[0], ("02_train", "asen"), ("03_evaluate", "asen"), *STAGES[1:]]:
            started = time.monotonic()
            assert self.go(*stage) == 0, self.server.said.read_text()[-2000:]
            self.seconds[stage] = time.monotonic() - started
        self.expected = contents(folder)

    def clear(self, stage: tuple[str, str]) -> None:
        for out in map(self.folder.joinpath, outs_of(*stage)):
            if out.is_dir():
                for path in sorted(out.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
            else:
                out.unlink(missing_ok=True)

    def go(self, notebook: str, variant: str, limit: int = 0) -> int:
        self.server.start(notebook, variant, limit)
        return self.server.wait()

    def killed(self, stage: tuple[str, str], moment: float, how: signal.Signals) -> bool:
        """Whether the stage was ended by the signal, `moment` seconds after its start, rather than by itself."""
        self.clear(stage)
        child = self.server.start(*stage)
        time.sleep(moment)
        with suppress(ProcessLookupError):  # it has ended, or has not yet its own session
            os.killpg(child, how)
        return self.server.wait() != 0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    yield made
    made.server.close()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0])
def test_killed_at_random_moments_a_stage_ends_with_the_same_bytes(workshop, stage):
    chance, counted, tries = random.Random(stage[0]), 0, 0
    while counted < KILLS:
        tries += 1
        assert tries < 60
        moment = chance.uniform(0.02, 0.9) * workshop.seconds[stage]
        how = signal.SIGINT if counted == 1 else signal.SIGKILL
        counted += workshop.killed(stage, moment, how)
    workshop.clear(stage)
    assert workshop.go(*stage) == 0, workshop.server.said.read_text()[-2000:]
    found = contents(workshop.folder)
    assert found.keys() == workshop.expected.keys()
    assert [name for name, data in found.items() if data != workshop.expected[name]] == []


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0])
def test_a_disk_that_fills_is_told_and_the_next_run_ends_with_the_same_bytes(workshop, stage):
    """A limit of the largest file stands for it: half of the largest that the stage writes."""
    own = [len(data) for name, data in workshop.expected.items() if name.startswith(tuple(outs_of(*stage)))]
    workshop.clear(stage)
    assert workshop.go(*stage, max(own) // 2) == 1
    said = workshop.server.said.read_text().splitlines()[-1]
    assert re.search("|".join([*runner.TOLD, "the disk of .* is full"]), said), (
        said
    )  # what the runner tells in a sentence
    workshop.clear(stage)
    assert workshop.go(*stage) == 0
    assert contents(workshop.folder) == workshop.expected
