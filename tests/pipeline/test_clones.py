"""The pipeline in other folders: equal bytes in a second clone, and a sweep by two workers."""

import io
import json
import re
import shutil
import subprocess
import time

import pandas as pd
import pytest
import yaml

from workspace import ENVIRONMENT, Clone, finished, stages_run

pytestmark = pytest.mark.slow

RATES = ("0.004", "0.016")
SETTING = "systems.m3.train.lr"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A committed copy in which the pipeline has run."""
    copy = finished(tmp_path_factory, "first")
    yield copy
    copy.kill()


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    """A clone of it in another folder, with its outputs."""
    clone = Clone.of(first, tmp_path_factory.mktemp("elsewhere") / "a longer name, with spaces")
    for name in ("data", "notebooks"):
        ignore = shutil.ignore_patterns("work")
        shutil.copytree(first.folder / name, clone.folder / name, ignore=ignore, dirs_exist_ok=True)
    yield clone
    clone.kill()


def hashes(clone: Clone) -> dict[str, str]:
    """Map the path of every output in dvc.lock to its hash."""
    stages = yaml.safe_load((clone.folder / "dvc.lock").read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def test_the_pipeline_writes_equal_bytes_in_another_clone(first, second):
    """dvc.lock has a hash of every output, including executed notebooks and figures.

    The other stages run in another folder in test_environment.py, which compares their bytes too.
    """
    again = ["weights", "evaluate@m3", "umap@m3", "ablation", "index"]
    assert stages_run(second.dvc("repro", "--force", "--single-item", *again)) == again
    hashes1, hashes2 = hashes(first), hashes(second)
    assert {path for path in hashes1 | hashes2 if hashes1.get(path) != hashes2.get(path)} == set()
    assert (second.folder / "dvc.lock").read_bytes() == (first.folder / "dvc.lock").read_bytes()
    assert second.git("status", "--porcelain") == ""
    names = [path.relative_to(second.folder) for path in (second.folder / "notebooks/executed").iterdir()]
    assert len(names) == 10
    for name in names:
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes(), name
        assert str(first.folder) not in (first.folder / name).read_text()


def test_a_sweep_by_two_workers(first):
    """Every experiment runs in its own copy; one fails without stopping the others; the best one is applied."""
    sweep = ["exp", "run", "--queue", "-S", "variants=[m3]"]
    first.dvc(*sweep, "-n", "lr", "-S", f"{SETTING}={','.join(RATES)}", "report")
    first.dvc(*sweep, "-n", "broken", "-S", "+systems.m3.model.beta=0.5", "report")
    before = first.git("status", "--porcelain")
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)  # the workers would keep a pipe open
    subprocess.run(["dvc", "queue", "start", "-j", "2"], cwd=first.folder, env=ENVIRONMENT, check=True, **quiet)
    while first.processes():  # the workers end when the queue is empty
        time.sleep(0.2)
    status = first.dvc("queue", "status")
    assert re.search(r"broken\s.*Failed", status), status
    assert len(re.findall(r"lr-\d\s.*Success", status)) == len(RATES), status
    assert first.git("status", "--porcelain") == before

    table = pd.read_csv(io.StringIO(first.dvc("exp", "show", "--csv")))
    table = table[table["Experiment"].astype(str).str.startswith("lr-")]
    assert sorted(table[SETTING]) == [float(rate) for rate in RATES]
    best = table.loc[table["m3.map_all"].idxmax()]
    first.dvc("exp", "apply", best["Experiment"])
    try:
        metrics = json.loads((first.folder / "data/metrics.json").read_text())
        assert metrics["m3"]["map_all"] == pytest.approx(best["m3.map_all"])
        params = yaml.safe_load((first.folder / "params.yaml").read_text())
        assert params["systems"]["m3"]["train"]["lr"] == best[SETTING]
        assert (first.folder / "data/models/m3.safetensors").exists()
    finally:
        first.git("checkout", "--quiet", "--", ".")
        first.dvc("checkout")
