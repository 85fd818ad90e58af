"""The pipeline for real, tiny, in a copy of the repository: what runs, what it leaves, what an edit makes stale."""

import json
import re
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell

import downloads
from workspace import PER_VARIANT, VARIANTS, Copy, every, stages_run


@pytest.fixture(scope="module")
def spare(tmp_path_factory):
    """A copy in which nothing ran yet."""
    copy = Copy(tmp_path_factory.mktemp("spare"))
    yield copy
    copy.kill()


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("train.lr", "1e-3", r"params\.yaml, train\.lr: expected a number, got '1e-3' \(.*write 0\.0001\)"),
        ("source", "fashionai", r"fashionai is not complete in .*data/fashionai; the missing files are listed above"),
    ],
)
def test_a_wrong_setting_ends_the_run_at_once_with_one_sentence(spare, setting, value, sentence):
    prepared = spare.folder / "data" / "prepared"
    shutil.rmtree(prepared, ignore_errors=True)  # of another test
    spare.put(setting, value)
    try:
        said = spare.dvc("repro", ok=False)
    finally:
        spare.reset()
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, said
    assert re.search(sentence, told[0]), told[0]
    assert "Traceback" not in said
    assert stages_run(said)[-1] == "inputs"
    assert not prepared.exists()  # before anything slow


def test_own_photos_through_the_command_line(spare, tiny_catalogue):
    options = {
        "source": "csv",
        "csv.table": tiny_catalogue.table,
        "csv.attributes": "[colour,sleeve,details]",
        "csv.min_images": 2,
        "split.valid": 0.25,
        "split.test": 0.25,
        "split.query": 0.4,
    }
    arguments = [word for name, value in options.items() for word in ("-S", f"{name}={value}")]
    spare.dvc("exp", "run", *arguments, "prepare")
    manifest = pd.read_parquet(spare.folder / "data" / "prepared" / "manifest.parquet")
    assert sorted(manifest["image"]) == [f"photos/{i:02}.jpg" for i in range(60)]
    inputs = json.loads((spare.folder / "data" / "inputs.json").read_text())
    assert (inputs["source"], inputs["rows"]) == ("csv", 60)
    spare.put("source", "csv")  # -S wrote it down; a photo that changes is seen although DVC knows no photo
    tiny_catalogue.photos[0].write_bytes(tiny_catalogue.photos[1].read_bytes() + b"\0")
    assert stages_run(spare.dvc("repro", "--dry", "prepare"))[0] == "inputs"
    spare.dvc("repro", "inputs")
    assert "prepare" in spare.stale()
    spare.reset()


def test_a_public_benchmark_through_the_command_line(spare, tmp_path):
    download = downloads.deepfashion(tmp_path)
    downloads.released_split(download)
    options = {"source": "deepfashion", "benchmark.folder": tmp_path, "images.format": "jpeg", "split.query": 0.2}
    for name, value in options.items():
        spare.put(name, value)
    said = spare.dvc("repro", "prepare")
    assert "All required files are there" in said
    prepared = spare.folder / "data" / "prepared"
    assert sorted(path.name for path in prepared.iterdir()) == [
        "images.bin", "images.idx.npy", "manifest.parquet", "protocol.json", "split", "taxonomy.json"
    ]  # fmt: skip
    frame = pd.read_parquet(prepared / "manifest.parquet")
    test = frame[frame["split"] == "test"]
    assert (prepared / "split/filenames_test.txt").read_text().split("\n")[:-1] == test["image"].tolist()
    assert json.loads((spare.folder / "data" / "inputs.json").read_text())["source"] == "deepfashion"
    label_file = tmp_path / downloads.LABEL_FILE
    label_file.write_bytes(label_file.read_bytes() + b"\n")
    spare.dvc("repro", "inputs")
    assert "prepare" in spare.stale()
    spare.reset()


def test_every_output_has_its_documented_name(whole):
    names = [
        "01_prepare",
        "05_report",
        "06_ablation",
        "07_index",
        *(f"{n}-{v}" for n in ("02_train", "03_evaluate", "04_umap") for v in VARIANTS),
    ]
    executed = whole.folder / "notebooks" / "executed"
    assert sorted(path.name for path in executed.iterdir()) == sorted(f"{name}.ipynb" for name in names)
    for path in executed.iterdir():
        assert str(whole.folder) not in path.read_text(), f"{path.name} holds a path of this machine"
        assert '"output_type": "error"' not in path.read_text()
    data = whole.folder / "data"
    for folder, ending in [
        *((f, "safetensors") for f in ("models", "attention", "embeddings", "untrained")),
        ("curves", "csv"),
    ]:
        assert sorted(path.name for path in (data / folder).iterdir()) == [f"{v}.{ending}" for v in VARIANTS]
    figures = ["attributes.png", "curves.png", "retrieved.png", *(f"umap-{v}.png" for v in VARIANTS)]
    assert sorted(path.name for path in (data / "figures").iterdir()) == figures
    assert all((data / "prepared" / name).is_file() for name in ("images.npy", "manifest.parquet", "taxonomy.json"))
    assert not list((data / "work").glob("*.safetensors"))  # checkpoints of runs that went through


def test_git_sees_only_what_is_kept(whole):
    kept = {name for name in whole.git("ls-files", "data").split() if not name.startswith("data/results/")}
    expected = {f"data/{name}" for name in ("backbones.json", "inputs.json", "metrics.json", "pairs.csv")}
    kinds = (("metrics", "json"), ("curves", "csv"), ("health", "json"), ("rows", "json"))
    expected |= {f"data/{kind}/{v}.{end}" for kind, end in kinds for v in VARIANTS}
    assert kept - {"data/README.md"} == expected
    assert whole.git("ls-files", "notebooks/executed") == ""
    assert whole.git("status", "--porcelain") == ""


def test_metrics_and_plots(whole):
    shown = json.loads(whole.dvc("metrics", "show", "--json"))
    values = shown[""]["data"]["data/metrics.json"]["data"]
    assert set(VARIANTS) <= set(values)
    said = whole.dvc("plots", "show")
    page = whole.folder / "dvc_plots" / "index.html"
    assert str(page) in said
    assert "valid_map_all" in page.read_text()
    assert whole.git("status", "--porcelain") == ""


def test_the_second_run_runs_nothing(whole):
    once = {"inputs", "notebooks", "weights", "prepare", "report", "ablation", "index"}
    assert set(stages_run(whole.said)) == once | every(*PER_VARIANT)
    said = whole.dvc("repro")
    assert stages_run(said) == ["inputs"], said
    assert whole.git("status", "--porcelain") == ""


def test_an_experiment_elsewhere_runs_its_own_code(whole):
    """The temporary copy's m3lib puts its own path into the metrics, an edit that is not even committed."""
    path = whole.folder / "m3lib" / "analysis" / "comparison.py"
    marker = (
        "\n\n_metrics = metrics_for_dvc\n\n\ndef metrics_for_dvc(*args):\n"
        "    return _metrics(*args) | {'code': {'path': __file__}}\n"
    )
    path.write_text(path.read_text() + marker)
    try:
        said = whole.dvc("exp", "run", "--temp", "--force", "--single-item", "--name", "elsewhere", "report")
    finally:
        whole.reset()
    assert stages_run(said) == ["report"], said
    refs = whole.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    [ref] = [ref for ref in refs if ref.endswith("/elsewhere")]
    ran = json.loads(whole.git("show", f"{ref}:data/metrics.json"))
    code = Path(ran["code"]["path"])
    assert code.name == "comparison.py"
    assert code.is_relative_to(whole.folder / ".dvc" / "tmp" / "exps"), code
    assert whole.git("status", "--porcelain") == ""


STOP_AFTER_AN_EPOCH = """
from pathlib import Path
from threading import Event
from m3lib.training import checkpoint

def stop(*_):
    Path("reached").touch()
    Event().wait()

save = checkpoint.save
checkpoint.save = lambda *arguments: stop(save(*arguments))
"""


@contextmanager
def held_training(clone):
    """The notebook 02_train begins with a cell that stops it after an epoch; yields the file that is there then."""
    path = clone.folder / "data" / "notebooks" / "02_train.ipynb"
    text = path.read_text()
    source = nbformat.reads(text, as_version=4)
    source.cells.insert(1, new_code_cell(STOP_AFTER_AN_EPOCH))
    path.unlink()  # the cache may be the same file
    nbformat.write(source, path)
    try:
        yield clone.folder / "reached"
    finally:
        path.write_text(text)
        (clone.folder / "reached").unlink(missing_ok=True)


def test_a_second_run_is_refused_and_a_killed_one_continues_with_the_same_bytes(whole):
    checkpoint, command = (
        whole.folder / "data" / "work" / "m3.safetensors",
        ("repro", "--force", "--single-item", "train@m3"),
    )
    with held_training(whole) as reached:
        first = whole.start(*command)
        while not reached.exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        second = whole.dvc(*command, ok=False)
        assert re.search(r"is busy|acquire lock|already being run", second), second
        assert "Traceback" not in second
        assert first.poll() is None
        whole.kill()
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert checkpoint.exists()
    assert "resumed after epoch 1" in whole.dvc(*command)
    assert not checkpoint.exists()
    assert whole.git("diff", "dvc.lock") == ""
    assert whole.stale() == set()
    assert whole.git("status", "--porcelain") == ""
