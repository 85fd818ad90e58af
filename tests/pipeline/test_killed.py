"""Stages that are killed, interrupted, or run out of disk: the next run ends with the same bytes.

A stage's notebook runs in a forked child (see `forked`); its outputs are removed before each try, as DVC does.
test_pipeline kills stages under `dvc repro`; test_checkpoint covers every epoch, test_pack every shard of images.
"""

import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from forked import Server
from m3lib.pipeline.run_notebook import KNOWN_FAILURES
from tiny import ROOT
from workspace import Copy

STAGES = [("01_prepare", ""), ("02_train", "m3"), ("03_evaluate", "m3"), ("04_umap", "m3"), ("05_report", "")]
KILLS = 3  # of each stage
EPOCHS = "6"


def outputs_of(notebook: str, row: str) -> list[str]:
    """The paths that DVC removes before it runs a stage, except the executed notebook."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    (outs,) = [stage["outs"] for stage in stages if f"m3lib.pipeline.run_notebook {notebook}" in str(stage["cmd"])]
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
    return [path.replace("${item.variant}", row) for path in paths if not path.startswith("notebooks/")]


class Workshop:
    """A tiny copy of the repository in which every stage ran once: the files it wrote, and its duration."""

    def __init__(self, folder: Path):
        copy, self.folder = Copy(folder), folder
        copy.put("train.epochs", EPOCHS)
        self.server = Server(folder)
        self.seconds = {}
        self.run(("02_train", "m3"))  # fails at once; then the server has imported everything
        for stage in [STAGES[0], ("02_train", "asen"), ("03_evaluate", "asen"), *STAGES[1:]]:
            self.run_to_end(stage)
        self.expected = self.contents()

    def contents(self) -> dict[str, bytes]:
        """All files under data/, those in data/work too."""
        files = (path for path in sorted((self.folder / "data").rglob("*")) if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def run(self, stage: tuple[str, str], limit: int = 0) -> tuple[int, str]:
        """Remove a stage's outputs and run it; return its exit status and error."""
        self.clear(stage)
        self.server.start(*stage, limit)
        return self.server.wait()

    def run_to_end(self, stage: tuple[str, str]) -> None:
        started = time.monotonic()
        assert self.run(stage) == (0, "")
        self.seconds[stage] = time.monotonic() - started

    def clear(self, stage: tuple[str, str]) -> None:
        for path in map(self.folder.joinpath, outputs_of(*stage)):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)

    def kill(self, stage: tuple[str, str], share: float, how: signal.Signals) -> bool:
        """Send a signal to a stage after a share of its last duration; return whether the signal ended it."""
        self.clear(stage)
        started = time.monotonic()
        child = self.server.start(*stage)
        time.sleep(share * self.seconds[stage])
        with suppress(ProcessLookupError):  # it has ended, or has no session of its own yet
            os.killpg(child, how)
        if self.server.wait()[0] != 0:
            return True
        self.seconds[stage] = time.monotonic() - started  # the machine is faster now
        return False


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.server.close()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0])
def test_a_stage_killed_at_random_moments_ends_with_the_same_bytes(workshop, stage):
    rng = random.Random(stage[0])
    for how in [signal.SIGKILL, signal.SIGINT] + [signal.SIGKILL] * (KILLS - 2):
        while not workshop.kill(stage, rng.uniform(0.02, 0.9), how):
            pass
    workshop.run_to_end(stage)
    contents = workshop.contents()
    assert contents.keys() == workshop.expected.keys()
    assert [name for name, data in contents.items() if data != workshop.expected[name]] == []


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0])
def test_a_full_disk_is_one_sentence_and_the_next_run_ends_with_the_same_bytes(workshop, stage):
    """The disk is simulated by a limit on the size of a file: half of the largest that the stage writes."""
    sizes = [len(data) for name, data in workshop.expected.items() if name.startswith(tuple(outputs_of(*stage)))]
    status, error = workshop.run(stage, max(sizes) // 2)
    assert status == 1
    assert re.search("|".join([next(iter(KNOWN_FAILURES)), "the disk of .* is full"]), error)
    workshop.run_to_end(stage)
    assert workshop.contents() == workshop.expected
