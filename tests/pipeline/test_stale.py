"""What an edit makes stale, in a copy of the repository in which the pipeline ran; and a system that is added."""

import json
from contextlib import contextmanager

import pytest

from tiny import VALUES
from workspace import VARIANTS, every, stages_run


@contextmanager
def undone(copy):
    """Undo all edits of a copy at the end."""
    try:
        yield
    finally:
        copy.reset()
        copy.git("checkout", "--quiet", "--", "data", "dvc.lock", "tests")


def after(copy, change) -> set[str]:
    """The stages that an edit makes stale, once the first stages have seen it; the edit is undone."""
    with undone(copy):
        change()
        copy.refresh()
        return copy.stale()


def test_a_setting_makes_stale_what_it_reaches(whole):
    assert whole.stale() == set()
    m3_row = r"(?ms)^(  m3:\n.*?    train: {)lr: [\d.]+"

    # Directly; umap depends on the embeddings that these stages write.
    assert after(whole, lambda: whole.edit("params.yaml", m3_row, r"\g<1>lr: 0.5")) == {
        "train@m3",
        "evaluate@m3",
        "report",
        "index",
    }
    trained = every("train", "evaluate") | {"report", "index"}
    assert after(whole, lambda: whole.put("train.weight_decay", "0.3")) == trained
    assert after(whole, lambda: whole.put("umap.neighbors", "14")) == every("umap")
    assert after(whole, lambda: whole.put("model.trainable", "layer3")) == trained | {"weights"}
    assert after(whole, lambda: whole.put("wardrobe.seed", "1")) == {"prepare"}
    assert after(whole, lambda: whole.edit("params.yaml", "^# All settings", "# Every setting")) == set()
    own = rf"\g<0>train: {{lr: {VALUES['train']['lr']}}}, "  # the general value
    assert after(whole, lambda: whole.edit("params.yaml", r"(?m)^  asen_l1: {", own)) == set()


def test_a_block_of_another_source_reaches_nothing_and_the_sources_own_what_reads_it(whole):
    def epochs(source: str, value: int) -> None:
        whole.edit("params.yaml", rf"(?ms)^(  {source}:[^:]*\n    images:.*?epochs: )\d+", rf"\g<1>{value}")

    def own_epochs(value: int) -> None:
        whole.put("train.epochs", "auto")  # 2
        epochs("wardrobe", value)

    whole_block = {"prepare", "index", *every("umap")}  # DVC compares it as one
    assert after(whole, lambda: epochs("csv", 9)) == set()
    assert after(whole, lambda: own_epochs(2)) == whole_block
    assert after(whole, lambda: own_epochs(3)) == whole_block | every("train", "evaluate") | {"report"}


def test_an_edit_of_a_parent_row_retrains_exactly_its_heirs(whole):
    """asen is made an heir of m3, as if it had been trained like that; then other rows change, and m3."""
    with undone(whole):
        whole.edit("params.yaml", r"(?m)^  asen: {network: asen.*$", "  asen: {like: m3, network: m3_a}")
        whole.refresh()
        heir = json.loads((whole.folder / "data/rows/asen.json").read_text())["settings"]
        assert (heir["network"], heir["train"]["lr"]) == ("m3_a", VALUES["systems"]["m3"]["train"]["lr"])
        whole.dvc("commit", "--force", "train@asen", "evaluate@asen", "report", "index")
        assert whole.stale() == set()
        whole.edit("params.yaml", r"(?m)^  m3_no_loss2: {like: m3", "  m3_no_loss2: {like: m3, train: {lr: 0.5}")
        whole.edit("params.yaml", r"(?m)^  asen_l1: {", "  asen_l1: {train: {lr: 0.5}, ")
        whole.refresh()
        assert whole.stale() == set()
        whole.edit("params.yaml", r"(?ms)^(  m3:\n.*?    train: {)lr: [\d.]+", r"\g<1>lr: 0.5")
        whole.refresh()
        assert {name for name in whole.stale() if name.startswith("train")} == {"train@m3", "train@asen"}


NOT_OF_TRAINING = (
    "m3lib/analysis/comparison.py",
    "m3lib/search/explore_page.py",
    "m3lib/pipeline/execute.py",
    "m3lib/prepare/catalogue.py",
    "tests/bench/train.py",
)


@pytest.mark.parametrize(
    ("files", "retrained"),
    [
        (("m3lib/figures/charts.py", *NOT_OF_TRAINING), set()),
        (("m3lib/systems/losses.py",), set(VARIANTS)),
        (("m3lib/training/schedule.py",), set(VARIANTS)),
        (("m3lib/systems/m3net.py",), {"m3"}),
        (("m3lib/systems/asen.py", "m3lib/systems/modc.py"), {"asen"}),
    ],
)
def test_an_edit_of_code_retrains_the_rows_that_it_touches(whole, files, retrained):
    """test_copy_notebooks.py compares the code that a stage depends on with what its notebook imports."""

    def append():
        for name in files:
            path = whole.folder / name
            path.write_text(path.read_text() + "\n# a comment\n")

    stale = after(whole, append)
    whole.refresh()  # the copies of notebooks too, which git does not keep
    assert {name for name in stale if name.startswith("train")} == {f"train@{name}" for name in retrained}
    if files[0] == "m3lib/figures/charts.py":
        assert {"report", "index", *every("evaluate", "umap")} <= stale


TOY = """
from m3lib.systems.attention import unit
from m3lib.systems.base import Outputs, System
from torch import nn


class Toy(System):
    \"\"\"One projection of the mean feature per attribute.\"\"\"

    outputs = {"attribute"}
    losses = {"asen_triplet"}
    settings = {"attribute_embedding"}

    def __init__(self, variant, taxonomy):
        super().__init__(variant, taxonomy)
        self.width = variant.model.attribute_embedding
        self.project = nn.Linear(self.backbone.channels, taxonomy.num_attributes * self.width)

    def forward(self, images):
        pooled = self.backbone(images).mean(dim=1)  # (B, C)
        return Outputs(attribute=unit(self.project(pooled).unflatten(1, (-1, self.width))))
"""


@pytest.mark.slow
def test_a_system_is_one_file_one_line_and_one_row(whole):
    """README's five lines: the new row goes through training, evaluation and the report; no other row is retrained."""
    row = "  toy: {network: toy, score: attribute, loss: {asen_triplet: 1}, model: {attribute_embedding: 16}}\n"
    try:
        (whole.folder / "m3lib/systems/toy.py").write_text(TOY)
        whole.edit("m3lib/systems/__init__.py", r"(?m)^(SYSTEMS\b.*\n)", r'\g<1>    "toy": "toy.Toy",\n')
        whole.edit("params.yaml", r"(?m)^(systems:.*\n)", rf"\g<1>{row}")
        whole.put("variants", "[asen, m3, toy]")
        said = whole.dvc("repro", "report")
        assert set(stages_run(said)) == {"inputs", "notebooks", "train@toy", "evaluate@toy", "report"}
        metrics = json.loads((whole.folder / "data/metrics.json").read_text())
        assert 0 < metrics["toy"]["map_all"] < 1
        assert "toy" in (whole.folder / "notebooks/executed/05_report.ipynb").read_text()
    finally:
        (whole.folder / "m3lib/systems/toy.py").unlink()
        whole.git("checkout", "--quiet", "--", ".")
        whole.git("clean", "--quiet", "--force", "data")
        whole.dvc("checkout")
    assert whole.stale() == set()


def test_new_embeddings_make_stale_what_reads_them(whole):
    path = whole.folder / "data" / "embeddings" / "m3.safetensors"
    content = path.read_bytes()
    path.unlink()  # the cache may be the same file
    path.write_bytes(content + b"\0")
    try:
        assert whole.stale() == {"train@m3", "evaluate@m3", "umap@m3", "report"}
    finally:
        path.write_bytes(content)
    assert whole.stale() == set()


def test_a_notebook_run_by_hand_makes_nothing_stale(whole):
    """JupyterLab writes outputs, counts and its kernel's version into the file; the copy stays as it is."""

    def run_by_hand():
        path = whole.folder / "notebooks" / "04_umap.ipynb"
        notebook = json.loads(path.read_text())
        notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.99"}
        for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
            cell["execution_count"] = number
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["x\n"]}]
        path.write_text(json.dumps(notebook, indent=1) + "\n")

    assert after(whole, run_by_hand) == {"notebooks"}
    assert whole.git("status", "--porcelain") == ""
