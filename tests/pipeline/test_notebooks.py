"""The source notebooks: what a reader expects of a page, and what the pipeline expects of a stage."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from m3lib import config
from m3lib.layers import PRESET_SECTIONS, SOURCE_SECTIONS

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGED = [path for path in NOTEBOOKS if path.stem[0].isdigit()]  # the others are only opened by hand
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
VARIANT = "${item.variant}"
SECTIONS = {field.name for field in fields(config.Settings)}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_stage = pytest.mark.parametrize("path", STAGED, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tree(path):
    return ast.parse("\n".join(cell.source for cell in code(path)))


def stage_of(path):
    """The stage that runs a notebook, and the words of its command after the notebook's name."""
    stages = [
        (stage, words[1:])
        for stage in STAGES.values()
        if (words := stage["cmd"].partition("m3lib.pipeline.run_notebook")[2].split())[:1] == [path.stem]
    ]
    assert len(stages) == 1, f"{path.stem} is run by {len(stages)} stages"
    return stages[0]


def test_every_notebook_is_there():
    numbers = [path.stem.split("_")[0] for path in STAGED]
    assert numbers == [f"{i:02}" for i in range(1, len(numbers) + 1)]
    assert len(STAGED) >= 5
    assert {path.stem for path in NOTEBOOKS} - {path.stem for path in STAGED} == {"explore", "sweep"}


@each
def test_saved_without_outputs(path):
    for cell in code(path):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert read(path).metadata.kernelspec.name == "python3"


def test_stripped():
    command = [sys.executable, "-m", "nbstripout", "--verify", *NOTEBOOKS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each
def test_one_title(path):
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert read(path).cells[0].cell_type == "markdown"
    titles = [line for text in texts for line in text.splitlines() if re.match("# ", line)]
    assert titles == [texts[0].splitlines()[0]]


@each
def test_one_parameters_cell_before_other_code(path):
    tagged = [i for i, cell in enumerate(code(path)) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [0]


@each_stage
def test_one_answer_cell_printed_last(path):
    """It is the last code cell before the asserts, and prints the sentences that the runner quotes below the title."""
    tagged = [i for i, cell in enumerate(code(path)) if "answer" in cell.metadata.get("tags", [])]
    assert tagged == [len(code(path)) - 2]
    last = ast.parse(code(path)[tagged[0]].source).body[-1]
    assert re.match(r"(if .*:\n +)?print\(", ast.unparse(last))
    assert "assert" in code(path)[-1].source


@each_stage
def test_title_asks_a_question(path):
    assert re.fullmatch(rf"# {path.stem[:2]} · \w+: .+\?", read(path).cells[0].source.splitlines()[0])


@each
def test_style_is_set_in_one_place(path):
    assert not any("set_option" in cell.source for cell in code(path))


@each
def test_short_cells_and_functions(path):
    for cell in code(path):
        assert len(cell.source.splitlines()) <= 20
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef), f"class {node.name}"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 6, f"{node.name} is longer than 6 lines"


@each
def test_plain_python(path):
    """A cell uses no shell, magic or star import, and changes neither the search path nor the working directory."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert "*" not in [alias.name for alias in node.names]
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"sys.path", "os.chdir", "os.system", "os.popen"}
        if isinstance(node, ast.Import):
            assert not {"subprocess", "sys", "os"} & {alias.name for alias in node.names}
        if isinstance(node, ast.Name):
            assert node.id not in {"get_ipython", "display_html"}


def draws(source, helpers):
    """Whether a cell shows a figure: it calls charts, panels, matplotlib or pandas' plots, or a helper that does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in helpers or re.match(
                r"(charts|panels)\.(?!use_style)|plt\.(subplots|figure)|sns\.\w+plot", called
            ):
                return True
            if ".plot." in called:
                return True
    return False


def defined(cell):
    return [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]


def only(cell, kinds):
    return all(isinstance(node, kinds) for node in ast.parse(cell.source).body)


@each
def test_prose_between_cells(path):
    """At most two code cells in a row, not counting one that shows a picture.

    Parameters, imports and the asserts at the end do not count either.
    """
    helpers = {f.name for cell in code(path) for f in defined(cell) if draws("\n".join(map(ast.unparse, f.body)), ())}
    row = 0
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            row = 0
        elif "parameters" in cell.metadata.get("tags", []) or only(cell, (ast.Import, ast.ImportFrom, ast.Assert)):
            continue
        elif not draws(cell.source, helpers) or only(cell, ast.FunctionDef):
            row += 1
            assert row <= 2, f"a third code cell in a row: {cell.source[:60]!r}"


def imported_objects(path: Path) -> dict:
    """What a notebook imports from m3lib, by name; raises ImportError or AttributeError for what does not exist."""
    objects = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "m3lib":
            package = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                submodule = f"{node.module}.{name}"
                if hasattr(package, "__path__") and importlib.util.find_spec(submodule):
                    objects[name] = importlib.import_module(submodule)
                else:
                    objects[name] = getattr(package, name)
    return objects


@each
def test_imported_and_used_names_of_m3lib_exist(path):
    """For example, the module `ranking` has the function that a cell calls as `ranking.rank`."""
    objects = imported_objects(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in objects:
            assert hasattr(objects[node.value.id], node.attr), ast.unparse(node)


@each_stage
def test_stage_passes_what_the_notebook_takes(path):
    _, passed = stage_of(path)
    assert passed in ([], [VARIANT])
    if passed:
        assert set(papermill.inspect_notebook(path)) == {"variant"}
    else:
        assert "variant" not in papermill.inspect_notebook(path)


def test_default_variant_is_in_the_comparison():
    settings = config.load(ROOT / "params.yaml")
    for path in NOTEBOOKS:
        parameters = papermill.inspect_notebook(path)
        if "variant" in parameters:
            assert parameters["variant"]["default"].strip("'\"") in settings.variants


def sections_read_in(package: str) -> set[str]:
    """The sections that the code of an m3lib package reads of a complete Settings object, as it is annotated."""
    files = [path.read_text() for path in (ROOT / "m3lib" / package).rglob("*.py")]
    code = "".join(text for text in files if re.search(r"\bSettings\b", text))
    return set(re.findall(r"\bsettings\.(\w+)", code)) & SECTIONS


def settings_used(path: Path) -> tuple[set[str], bool]:
    """The sections of params.yaml that a notebook reads, and whether it resolves a row.

    Settings passed on to a function count as what the function's package reads.
    """
    root, used, resolves_row = tree(path), set(), False
    packages = {
        alias.name: [*node.module.split("."), alias.name][1]
        for node in ast.walk(root)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("m3lib")
        for alias in node.names
    }
    for node in ast.walk(root):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "settings":
            resolves_row |= node.attr == "variant"
            used |= {node.attr} - {"variant"}
        elif isinstance(node, ast.Call) and any(ast.unparse(argument) == "settings" for argument in node.args):
            used |= sections_read_in(packages[ast.unparse(node.func).split(".")[0]])
    assert used <= SECTIONS
    presets = {"preset", "presets.${preset}"} if used & {*PRESET_SECTIONS, "presets"} else set()
    sources = {"sources.${source}"} if used & {*SOURCE_SECTIONS} else set()
    return used - {"presets"} | presets | sources, resolves_row


@each_stage
def test_stage_declares_the_settings_that_the_notebook_reads(path):
    """An undeclared setting would leave stale results; a needless one would rerun the stage for nothing."""
    used, resolves_row = settings_used(path)
    assert set(stage_of(path)[0].get("params", [])) == used
    assert any(dep.startswith("data/rows") for dep in stage_of(path)[0]["deps"]) == resolves_row
