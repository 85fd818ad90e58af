"""The pipeline in a second clone: the same bytes elsewhere, a sweep by two workers."""

import io
import json
import re
import subprocess
import time

import pandas as pd
import pytest
import yaml

from workspace import ENVIRONMENT, Clone, finished, stages_run

RATES = ("0.004", "0.016")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A copy in which the whole pipeline went through, committed."""
    copy = finished(tmp_path_factory, "first")
    yield copy
    copy.kill()


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    """A clone of it elsewhere, which has to make everything anew."""
    clone = Clone.of(first, tmp_path_factory.mktemp("elsewhere") / "a longer name, with spaces")
    yield clone
    clone.kill()


def hashes(clone: Clone) -> dict[str, str]:
    """Path to hash of every output that dvc.lock names."""
    stages = yaml.safe_load((clone.folder / "dvc.lock").read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def test_everything_made_anew_elsewhere_has_the_same_bytes(first, second):
    """dvc.lock holds a hash of every output, the executed notebooks and the figures among them."""
    said = second.dvc("repro", "--force")
    assert set(stages_run(said)) >= {"prepare", "train@m3", "evaluate@m3", "umap@m3", "report", "index"}
    mine, theirs = hashes(first), hashes(second)
    assert {path for path in mine | theirs if mine.get(path) != theirs.get(path)} == set()
    assert (second.folder / "dvc.lock").read_bytes() == (first.folder / "dvc.lock").read_bytes()
    assert second.git("status", "--porcelain") == ""
    names = [str(path.relative_to(first.folder)) for path in (first.folder / "notebooks/executed").iterdir()]
    assert len(names) >= 10
    for name in names:  # not by their hashes alone
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes(), name
        assert str(first.folder) not in (first.folder / name).read_text()


def test_a_sweep_by_two_workers(first):
    """Each run in a copy of its own; one fails and takes none along; the best is brought back."""
    sweep = ["exp", "run", "--queue", "-S", "variants=[asen]"]
    first.dvc(*sweep, "-n", "lr", "-S", f"train.lr={','.join(RATES)}", "report")
    first.dvc(*sweep, "-n", "broken", "-S", "systems.asen.score=weighted", "report")
    before = first.git("status", "--porcelain")
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)  # the workers would hold a pipe open
    subprocess.run(["dvc", "queue", "start", "-j", "2"], cwd=first.folder, env=ENVIRONMENT, check=True, **quiet)
    deadline = time.time() + 400
    while re.search(r"(?i)queued|running", said := first.dvc("queue", "status").split("Worker status")[0]):
        assert time.time() < deadline, said
        time.sleep(1)
    assert re.search(r"broken\s.*Failed", said), said
    assert len(re.findall(r"lr-\d\s.*Success", said)) == len(RATES), said
    assert first.git("status", "--porcelain") == before  # nobody worked in this folder

    table = pd.read_csv(io.StringIO(first.dvc("exp", "show", "--csv")))
    table = table[table["Experiment"].astype(str).str.startswith("lr-")]
    assert sorted(table["train.lr"]) == [float(rate) for rate in RATES]
    best = table.loc[table["asen.map_all"].idxmax()]
    first.dvc("exp", "apply", best["Experiment"])
    try:
        metrics = json.loads((first.folder / "data/metrics.json").read_text())
        assert metrics["asen"]["map_all"] == pytest.approx(best["asen.map_all"])
        assert re.search(rf"(?m)^  lr: {best['train.lr']}\b", (first.folder / "params.yaml").read_text())
        assert (first.folder / "data/models/asen.safetensors").exists()
    finally:
        first.git("checkout", "--quiet", "--", ".")
        first.dvc("checkout")
