"""The first stage: settings checked, the source looked at, nothing written unless something changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.numpy import save_file
from test_catalogue import edit_cell

from m3lib import config
from m3lib.pipeline import check_inputs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tiny_catalogue, monkeypatch):
    """A repository in a temporary folder whose params.yaml names the small catalogue."""
    folder = tiny_catalogue.table.parent
    (folder / "dvc.yaml").touch()
    text = (ROOT / "params.yaml").read_text().replace("source: wardrobe", "source: csv")
    (folder / "params.yaml").write_text(text.replace("data/catalogue/catalogue.csv", "table.csv"))
    for module in (check_inputs, config):
        monkeypatch.setattr(module, "find_root", lambda: folder)
    (folder / "data/work").mkdir(parents=True)  # timm's names as an earlier run left them: its import takes seconds
    (folder / "data" / "work" / "backbones.txt").write_text("resnet10t\nresnet50\n")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def test_the_fingerprint_tells_a_change_of_the_source_alone(workspace, tiny_catalogue, capsys):
    written = workspace / "data/inputs.json"
    assert check_inputs.main() == 0
    first = written.read_bytes()
    assert json.loads(first)["rows"] == 60
    assert str(workspace) not in first.decode()
    stamp = written.stat().st_mtime_ns
    tiny_catalogue.photos[0].touch()
    assert check_inputs.main() == 0
    assert written.stat().st_mtime_ns == stamp
    tiny_catalogue.photos[0].write_bytes(b"shorter")
    assert check_inputs.main() == 0
    second = json.loads(written.read_bytes())
    assert second["photos"] != json.loads(first)["photos"]
    tiny_catalogue.change(edit_cell(1, 1, "blue"))
    assert check_inputs.main() == 0
    assert json.loads(written.read_bytes())["table"] != second["table"]
    assert capsys.readouterr().out.count("\n") == 4
    assert sorted(path.name for path in written.parent.iterdir()) == ["inputs.json", "weights.json", "work"]


def test_a_wrong_setting_stops_the_first_stage_and_keeps_what_was(workspace, capsys):
    (workspace / "data/inputs.json").write_text("before")
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace("min_images: 20", "min_images: many"))
    assert check_inputs.main() == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: params.yaml, csv.min_images")
    assert shown.err.count("\n") == 1
    assert (workspace / "data/inputs.json").read_text() == "before"


def test_the_wardrobes_fingerprint_is_its_name():
    assert check_inputs.fingerprint(config.load(ROOT / "params.yaml")) == {"source": "wardrobe"}


def test_the_first_stage_runs_as_a_module(workspace):
    shutil.copytree(ROOT / "m3lib", workspace / "m3lib", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "m3lib.pipeline.check_inputs"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "source csv, 60 photos: changed\n", "")
    (workspace / "table.csv").unlink()
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert json.loads((workspace / "data/inputs.json").read_text())["rows"] == 60


def test_an_unknown_backbone_stops_it_with_the_nearest_names(workspace, capsys):
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace("backbone: resnet10t", "backbone: resnet51"))
    assert check_inputs.main() == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: unknown backbone in params.yaml")
    assert "'resnet50'" in shown.err
    assert shown.err.count("\n") == 1
    # a name that the kept list lacks is looked up in timm itself, and the list renewed
    assert (workspace / "data" / "work" / "backbones.txt").read_text().split() == timm.list_models()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "score: attribute, loss: {asen_triplet: 1}}",
            "score: weighted, loss: {asen_triplet: 1}}",
            "score weighted needs",
        ),
        ("m3: {network: m3,", "m3: {network: m3, model: {beta: 0.5},", "model.beta: m3 has no such setting"),
        (
            "loss: {asen_triplet: 1}}",
            "loss: {asen_triplet: 1, m3_cluster: 1}}",
            "loss.m3_cluster needs classes outputs",
        ),
    ],
)
def test_settings_that_do_not_fit_a_rows_network_stop_it(workspace, capsys, old, new, told):
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace(old, new, 1))
    assert check_inputs.main() == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: params.yaml, systems.")
    assert told in shown
    assert shown.count("\n") == 1


def test_weight_files_are_told_by_their_content(workspace, capsys):
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace("  weights: ''", "  weights: start.safetensors", 1))
    assert check_inputs.main() == 1
    assert "start.safetensors can't be read (No such file or directory)" in capsys.readouterr().err
    told = []
    for content in (0.0, 1.0):
        save_file({"weight": np.array([content])}, workspace / "start.safetensors")
        assert check_inputs.main() == 0
        told.append(json.loads((workspace / "data/weights.json").read_text()))
    assert [list(each) for each in told] == [["start.safetensors"]] * 2
    assert told[0] != told[1]
