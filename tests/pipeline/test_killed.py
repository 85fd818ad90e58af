"""Stages that are killed, interrupted, or run out of disk: the next run ends with the same bytes.

A stage's notebook runs in a forked child, which a signal ends before one of its steps (see `forked`); its outputs are
removed before each try, as DVC does.
test_pipeline kills stages under `dvc repro`; test_checkpoint covers every epoch, test_pack every shard of images.
"""

import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from forked import End, Server, Task
from m3lib.pipeline.execute import KNOWN_FAILURES
from tiny import ROOT
from workspace import Copy

pytestmark = pytest.mark.slow

STAGES = [("01_prepare", ""), ("02_train", "m3"), ("03_evaluate", "m3"), ("04_umap", "m3"), ("05_report", "")]
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL)  # one after the other, to each stage


def outputs_of(notebook: str, row: str) -> list[str]:
    """The paths that DVC removes before it runs a stage, except the executed notebook."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    (outs,) = [stage["outs"] for stage in stages if f"m3lib.pipeline.run_notebook {notebook}" in str(stage["cmd"])]
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
    return [path.replace("${item.variant}", row) for path in paths if not path.startswith("notebooks/")]


class Workshop:
    """A tiny copy of the repository in which every stage ran once: the files it wrote, and its number of steps."""

    def __init__(self, folder: Path):
        Copy(folder)
        self.folder = folder
        self.server = Server(folder)
        order = [STAGES[0], ("02_train", "asen"), ("03_evaluate", "asen"), *STAGES[1:]]
        self.steps = {stage: self.run_to_end(stage) for stage in order}
        self.expected = self.contents()

    def contents(self) -> dict[str, bytes]:
        """All files under data/, those in data/work too."""
        files = (path for path in sorted((self.folder / "data").rglob("*")) if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def run(self, stage: tuple[str, str], **options: int) -> End:
        """Remove a stage's outputs and run it."""
        for path in map(self.folder.joinpath, outputs_of(*stage)):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        return self.server.run(Task(*stage, **options))

    def run_to_end(self, stage: tuple[str, str]) -> int:
        """Run a stage; return its number of steps."""
        end = self.run(stage)
        assert (end.status, end.error) == (0, "")
        return end.steps

    def check(self, stage: tuple[str, str]) -> None:
        """Run a stage to its end, and compare every file."""
        self.run_to_end(stage)
        contents = self.contents()
        assert contents.keys() == self.expected.keys()
        assert [name for name, data in contents.items() if data != self.expected[name]] == []


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    yield workshop
    workshop.server.close()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage[0])
def test_a_stage_that_is_killed_and_finds_the_disk_full_ends_with_the_same_bytes(workshop, stage):
    """Killed before some of its steps, one after the other; then the disk is full, which is one sentence.

    The disk is simulated by a limit on the size of a file: half of the largest that the stage writes.
    """
    rng, left = random.Random(stage[0]), workshop.steps[stage]
    for number in SIGNALS:
        step = rng.randrange(left)
        left -= step  # the next run leaves out at most these
        end = workshop.run(stage, signal=number, step=step)
        assert end.status == (-number if number == signal.SIGKILL else 1), end
    sizes = [len(data) for name, data in workshop.expected.items() if name.startswith(tuple(outputs_of(*stage)))]
    end = workshop.run(stage, limit=max(sizes) // 2)
    assert end.status == 1
    assert re.search("|".join([next(iter(KNOWN_FAILURES)), "the disk of .* is full"]), end.error)
    workshop.check(stage)
