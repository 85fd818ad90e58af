"""The copies of notebooks that the stages depend on: without outputs, with digests of the code that they import."""

import ast
import hashlib
import sys
from pathlib import Path

import nbformat
import pytest

from m3lib.errors import InputError
from m3lib.pipeline import copy_notebooks
from tiny import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
GIT_CONFIG = '[filter "nbstripout"]\n\textrakeys = metadata.kernelspec cell.metadata.tags\n'


def test_copies_have_no_outputs_whatever_git_is_configured_to_strip(tmp_path, monkeypatch):
    (tmp_path / ".gitconfig").write_text(GIT_CONFIG)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["language_info"] = notebook.metadata["widgets"] = {"name": "x"}
        cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="an output")], 7
        cell.metadata["collapsed"] = cell.metadata["scrolled"] = True
        nbformat.write(notebook, tmp_path / "notebooks" / path.name)
    copy_notebooks.copy(tmp_path)
    for path in NOTEBOOKS:
        copy = nbformat.read(tmp_path / "data" / "notebooks" / path.name, as_version=4)
        assert copy.metadata.pop("code")
        assert copy == nbformat.read(path, as_version=4)


def imported_by(notebook: nbformat.NotebookNode) -> set[str]:
    """The files of m3lib that are loaded when the import statements of a notebook's cells are executed."""
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "m3lib"}
    try:
        for cell in notebook.cells:
            for node in ast.parse(cell.source).body if cell.cell_type == "code" else ():
                if isinstance(node, ast.Import | ast.ImportFrom):
                    exec(ast.unparse(node), {})
        found = [module for name, module in sys.modules.items() if name.split(".")[0] == "m3lib"]
        return {Path(module.__file__).relative_to(ROOT).as_posix() for module in found}
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "m3lib"]:
            del sys.modules[name]
        sys.modules.update(kept)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_copy_has_digests_of_the_code_that_its_notebook_imports(path):
    """Without packages that only lead to their modules, and files whose effect is in the values of settings."""
    notebook = nbformat.read(path, as_version=4)
    digests = copy_notebooks.code_digests(notebook)
    loaded = {name for name in imported_by(notebook) if not name.endswith("__init__.py")}
    if "m3lib/prepare/__init__.py" not in digests:  # 07_index uses one module of a package that loads them all
        loaded = {name for name in loaded if not name.startswith("m3lib/prepare/")}
    assert len(loaded) > 5
    assert loaded - digests.keys() == copy_notebooks.ELSEWHERE & loaded
    assert digests == {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in digests}


def test_a_figure_is_no_code_of_a_training():
    """What a notebook does not import is not in its copy, also if it lies in the same folder."""
    digests = copy_notebooks.code_digests(nbformat.read(ROOT / "notebooks" / "02_train.ipynb", as_version=4))
    assert {Path(name).parts[1] for name in digests if name.count("/") > 1} == {
        "data",
        "retrieval",
        "systems",
        "training",
    }
    assert "m3lib/systems/m3net.py" not in digests


@pytest.mark.parametrize("text", ["", "{}", "{", "[1]", "code"])
def test_a_notebook_that_is_none_is_one_sentence(tmp_path, text):
    (tmp_path / "notebooks").mkdir()
    if text == "code":
        cells = [nbformat.v4.new_code_cell("no code")]
        text = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    (tmp_path / "notebooks" / "01_prepare.ipynb").write_text(text)
    with pytest.raises(InputError, match=r"01_prepare\.ipynb can't be read as a notebook \(.*\); restore it with git"):
        copy_notebooks.copy(tmp_path)
