"""The first stage: settings checked, the source fingerprinted, one file of resolved settings per row."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.numpy import save_file

from downloads import darn, fashionai
from m3lib import config
from m3lib.pipeline import check_inputs
from m3lib.prepare import contents
from tiny import VALUES

ROOT = Path(__file__).parents[2]
ROWS = config.load(ROOT / "params.yaml").variants
M3 = {"m3_a", "m3_c", "m3"}
M3_RATE = f"train: {{lr: {VALUES['systems']['m3']['train']['lr']}}}"


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
    (folder / "data" / "work" / "backbones.txt").write_text("tf_efficientnet_lite0\nresnet50\n")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_the_fingerprint_changes_with_the_source_only(workspace, tiny_catalogue):
    written = workspace / "data/inputs.json"
    assert check_inputs.main() == 0
    first = written.read_bytes()
    assert json.loads(first)["rows"] == 60
    assert str(workspace) not in first.decode()
    tiny_catalogue.photos[0].touch()
    assert check_inputs.main() == 0
    assert written.read_bytes() == first
    tiny_catalogue.photos[0].write_bytes(b"shorter")
    assert check_inputs.main() == 0
    second = read(written)
    assert second["photos"] != json.loads(first)["photos"]
    tiny_catalogue.photos[0].write_bytes(b"SHORTER")  # of equal size, as a photo that was retouched may be
    assert check_inputs.main() == 0
    assert read(written)["photos"] not in (second["photos"], json.loads(first)["photos"])
    tiny_catalogue.change(lambda rows: rows[1].__setitem__(1, "blue"))
    assert check_inputs.main() == 0
    assert read(written)["table"] != second["table"]
    assert sorted(path.name for path in written.parent.iterdir()) == ["backbones.json", "inputs.json", "rows", "work"]


def test_an_experiment_in_a_copy_takes_the_digests_of_the_original(workspace, tmp_path_factory, monkeypatch):
    """DVC_ROOT names the original repository, whose photos an experiment reads."""
    copy = tmp_path_factory.mktemp("copy")
    (copy / "params.yaml").write_bytes((workspace / "params.yaml").read_bytes())
    monkeypatch.setattr(contents, "SETTLED", -1)  # seconds; the photos were written just now
    assert check_inputs.main() == 0
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    for module in (check_inputs, config):
        monkeypatch.setattr(module, "find_root", lambda: copy)
    monkeypatch.setattr(contents, "digest_of", lambda path: pytest.fail(f"{path} is read again"))
    assert check_inputs.main() == 0
    assert (copy / "data" / "inputs.json").read_bytes() == (workspace / "data" / "inputs.json").read_bytes()
    assert not (copy / "data" / "work" / "contents").exists()


def rows(workspace: Path) -> dict[str, bytes]:
    assert check_inputs.main() == 0
    return {path.stem: path.read_bytes() for path in (workspace / "data/rows").iterdir()}


def edit_params(workspace: Path, old: str, new: str) -> None:
    text = (workspace / "params.yaml").read_text()
    assert old in text
    (workspace / "params.yaml").write_text(text.replace(old, new, 1))


def changed_rows(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        (
            "m3_classification: 4, m3_instance: 1, m3_cluster: 1",
            "m3_classification: 4, m3_instance: 1, m3_cluster: 2",
            M3,
        ),
        ("m3_a: {like: m3, network: m3_a", "m3_a: {like: m3, network: m3_a, train: {lr: 0.5}", {"m3_a"}),
        ("  weight_decay: 0.01", "  weight_decay: 0.02", set(ROWS)),
        ("  beta: 0.6", "  beta: 0.5", {"asen_pp"}),
        ("  class_embedding: 64", "  class_embedding: 32", M3),
        ("  neighbors: 15", "  neighbors: 14", set()),
        ("m3_loss1:", "m3_other: {like: m3}\n  m3_loss1:", set()),
        ("variants: [frozen, ", "variants: [", {"frozen"}),
    ],
)
def test_a_setting_changes_the_rows_that_it_reaches(workspace, old, new, changed):
    before = rows(workspace)
    assert set(before) == set(ROWS)
    edit_params(workspace, old, new)
    assert changed_rows(before, rows(workspace)) == changed


def test_a_row_file_covers_the_code_of_its_system(workspace, monkeypatch):
    before = rows(workspace)
    real = check_inputs.digest
    monkeypatch.setattr(check_inputs, "digest", lambda *items: real(*items) + "x" * str(items[0]).endswith("modc.py"))
    assert changed_rows(before, rows(workspace)) == {"modc"}
    code = json.loads(before["m3"])["code"]
    assert "m3lib/systems/m3net.py" in code
    assert "m3lib/systems/asen.py" not in code
    assert "m3lib/systems/__init__.py" not in code


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


def test_without_a_name_make_data_lists_the_benchmarks(workspace, capsys):
    assert check_inputs.main([""]) == 1
    error = "error: name a public benchmark: make data SOURCE=deepfashion | fashionai | darn\n"
    assert capsys.readouterr() == ("", error)


@pytest.mark.parametrize(
    ("draw", "spoil", "sentence"),
    [
        (fashionai, lambda folder: [path.unlink() for path in sorted(folder.rglob("*.jpg"))[5:]], "photos are missing"),
        (fashionai, lambda folder: put_first(folder, "label.csv", "path,name,letters"), "label.csv, line 1: "),
        (darn, lambda folder: put_first(folder, "labels.csv", "path,a,b,c,d,e,f,g,h,i"), "the header must be path,"),
    ],
)
def test_a_download_whose_labels_or_photos_are_wrong_is_not_called_complete(workspace, capsys, draw, spoil, sentence):
    download = draw(workspace / "set")
    edit_params(workspace, "source: csv", f"source: {download.name}")
    edit_params(workspace, "  folder: ''", f"  folder: {download.folder}")
    spoil(download.folder)
    for arguments in ([], [download.name]):
        assert check_inputs.main(arguments) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert sentence in shown.err


def put_first(folder: Path, name: str, line: str) -> None:
    for path in folder.rglob(name):
        path.write_text(f"{line}\n{path.read_text()}")


def test_the_first_stage_runs_as_a_module(workspace):
    shutil.copytree(ROOT / "m3lib", workspace / "m3lib", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "m3lib.pipeline.check_inputs"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    column, own, rows, source = done.stdout.splitlines()
    images, rest = "images.height 96, images.width 72, images.fit 'pad'", "model.trainable 'blocks.3', train.epochs 6"
    assert own == f"set by sources.csv: {images}, {rest}"
    assert column == "note: column 'product' is left out: fewer than two classes with 20 or more images"
    assert source == "source csv, 60 photos"
    assert rows.startswith("note: rows replace these general settings: ")
    (workspace / "table.csv").unlink()
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert json.loads((workspace / "data/inputs.json").read_text())["rows"] == 60


def test_photos_that_do_not_exist_stop_the_first_stage(workspace, tiny_catalogue, capsys):
    tiny_catalogue.change(lambda rows: [row.__setitem__(0, row[0][7:9]) for row in rows[1:]])
    assert check_inputs.main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "60 of 60 photos are missing" in printed.err
    assert "there is 'photos/00.jpg': name the photos with their folder and extension" in printed.err
    assert not (workspace / "data/inputs.json").exists()


def test_the_first_stage_prints_how_labels_were_read(workspace, tiny_catalogue, capsys):
    tiny_catalogue.change(lambda rows: [row.__setitem__(1, row[1].upper()) for row in rows[1:40:2]])
    tiny_catalogue.change(lambda rows: [row.__setitem__(1, "N/A") for row in rows[50:52]])
    assert check_inputs.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "note: colour: read as unknown (csv.missing): 'N/A' (2)"
    assert lines[1].startswith(
        "note: colour: spellings of one class are merged (csv.spellings): 'green' (13), 'GREEN' (6);"
    )
    assert "source csv, 60 photos" in lines


def test_an_unknown_backbone_stops_it_with_the_nearest_names(workspace, capsys):
    params = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(params.replace("backbone: tf_efficientnet_lite0", "backbone: resnet51"))
    assert check_inputs.main() == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: unknown backbone in params.yaml")
    assert "'resnet50'" in shown.err
    assert shown.err.count("\n") == 1
    # a name that the kept list lacks is looked up in timm itself, and the list renewed
    assert (workspace / "data" / "work" / "backbones.txt").read_text().split() == timm.list_models()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("modc_l1: {like: modc", "modc_l1: {like: modc, score: weighted", "compares class"),
        ("    network: m3\n", "    network: m3\n    model: {beta: 0.5}\n", "model.beta: m3 has no such setting"),
        (
            "asen_l1: {like: asen",
            "asen_l1: {like: asen, stages: [{epoch_share: 1, loss: {m3_cluster: 1}}]",
            "asen can't be",
        ),
    ],
)
def test_settings_that_do_not_fit_a_rows_network_stop_it(workspace, capsys, old, new, sentence):
    edit_params(workspace, old, new)
    assert check_inputs.main() == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: params.yaml")
    assert sentence in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("source", "old", "held_out", "sentence"),
    [
        ("csv", "  held_out: []", "  held_out: ['colour: blu']", "params.yaml, train.held_out: 'colour: blu' is no"),
        ("csv", M3_RATE, M3_RATE[:-1] + ", held_out: [sleeve]}", "systems.m3.train.held_out: 'sleeve' is no"),
        ("csv", "  held_out: []", "  held_out: ['a: b', 'colour: grey', 'colour: red']", "params.yaml has 2 faults:"),
        ("wardrobe", "  held_out: []", "  held_out: ['texture: plad']", "did you mean 'plaid'"),
    ],
)
def test_a_held_out_class_that_the_source_lacks_stops_it(workspace, capsys, source, old, held_out, sentence):
    edit_params(workspace, "source: csv", f"source: {source}")
    edit_params(workspace, old, held_out)
    assert check_inputs.main() == 1
    assert sentence in capsys.readouterr().err
    assert not (workspace / "data/inputs.json").exists()


@pytest.mark.parametrize(
    ("splits", "sentences"),
    [
        (["train"], ["no test image has a label: mark labelled photos as test in the column 'product'"]),
        (["test"], ["no train image has a label: mark labelled photos as train in the column 'product'"]),
        (["valid"], ["has 2 faults", "no train image", "no test image"]),
        (["test", *["train"] * 59], ["no test ", "mark labelled photos as test", "or set split.query"]),
    ],
)
def test_a_split_column_that_leaves_nothing_to_train_or_evaluate_stops_it(
    workspace, tiny_catalogue, capsys, splits, sentences
):
    edit_params(workspace, "split_column: ''", "split_column: product")
    tiny_catalogue.change(lambda rows: [row.__setitem__(4, splits[i % len(splits)]) for i, row in enumerate(rows[1:])])
    assert check_inputs.main() == 1
    printed = capsys.readouterr().err
    assert all(sentence in printed for sentence in sentences)
    assert printed.count("image has a label") == 1 + (splits == ["valid"])
    assert not (workspace / "data/inputs.json").exists()


def test_a_weight_file_is_part_of_the_rows_that_start_from_it(workspace, capsys):
    edit_params(workspace, "  weights: ''", "  weights: start.safetensors")
    assert check_inputs.main() == 1
    assert "start.safetensors can't be read (No such file or directory)" in capsys.readouterr().err
    digests = []
    for value in (0.0, 1.0):
        save_file({"weight": np.array([value])}, workspace / "start.safetensors")
        assert check_inputs.main() == 0
        digests.append(read(workspace / "data/rows/m3.json")["weights"])
    assert [list(entry) for entry in digests] == [["start.safetensors"]] * 2
    assert digests[0] != digests[1]
