"""The house: who imports whom, what each stage of dvc.yaml depends on, what git ignores, lock file, README."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from m3lib.data.code import imports

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "m3lib"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in LIBRARY.rglob("*.py"))
PYTHON = "python -Es -X utf8 -m"  # without a person's PYTHONPATH, user packages and locale
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
TOP = {"errors", "taxonomy", "validation", "kinds", "layers", "compatibility", "config"}
PACKAGES = {  # a package, and the packages that it may import besides the top files
    "data": set(),
    "systems": {"data.files"},
    "figures": set(),
    "prepare": {"data"},
    "retrieval": {"data"},
    "training": {"data", "systems", "retrieval"},
    "analysis": {"data", "retrieval"},
    "search": {"data", "systems", "training", "retrieval", "figures", "prepare.photos"},
    "pipeline": {"data", "prepare", "systems", "training.checkpoint"},
}
TOP_IMPORTS = {  # a top file, and the top files that it may import
    "errors": set(),
    "taxonomy": {"errors"},
    "compatibility": {"taxonomy", "errors"},
    "validation": {"taxonomy", "errors"},
    "kinds": {"errors"},
    "layers": {"validation", "taxonomy", "errors"},
    "config": {"layers", "kinds", "validation", "compatibility", "taxonomy", "errors"},
}


def imported(path: str) -> set[str]:
    """The m3lib modules that a file imports, also inside functions, without the leading `m3lib.`."""
    return {name.removeprefix("m3lib.") for name in imports(ast.parse((ROOT / path).read_text()))}


def test_every_package_has_its_place_in_the_table():
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(PACKAGES)
    assert {path.stem for path in LIBRARY.glob("*.py")} - {"__init__"} == TOP == set(TOP_IMPORTS)
    assert imported("m3lib/__init__.py") == set()


@pytest.mark.parametrize("path", MODULES)
def test_a_module_imports_what_the_table_allows(path):
    package = Path(path).parts[1]
    for name in imported(path):
        if name in TOP:
            stem = Path(path).stem
            assert stem not in TOP or package != f"{stem}.py" or name in TOP_IMPORTS[stem], f"{path} imports {name}"
        else:
            target = name.split(".")[0]
            allowed = {package} | PACKAGES.get(package, set())
            assert target in allowed or name in allowed, f"{path} imports {name}"


def test_imports_have_no_cycle():
    graph = {path: set() for path in MODULES}
    for path in MODULES:
        for name in imported(path):
            base = LIBRARY.joinpath(*name.split("."))
            file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
            graph[path].add(file.relative_to(ROOT).as_posix())
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the modules


@pytest.mark.parametrize("path", MODULES)
def test_a_module_has_a_docstring_and_at_most_300_lines(path):
    text = (ROOT / path).read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 300


def test_tests_mirror_the_packages():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= set(PACKAGES) | {"bench"}


def notebook_of(stage: dict) -> str | None:
    command, _, notebook = stage["cmd"].removeprefix(f"{PYTHON} ").partition(" ")
    return notebook.split()[0] if command == "m3lib.pipeline.run_notebook" else None


RUNS = [name for name, stage in STAGES.items() if notebook_of(stage)]


@pytest.mark.parametrize("name", RUNS)
def test_a_stage_depends_on_code_through_the_copy_of_its_notebook(name):
    """One file per stage: DVC parses and writes all of dvc.lock after every stage, which takes longer with its size."""
    assert [dep for dep in STAGES[name]["deps"] if dep.startswith("m3lib")] == []
    assert "m3lib" in STAGES["notebooks"]["deps"]


def test_a_training_depends_on_the_file_of_its_row():
    """It has digests of the system's module and of what this imports of systems."""
    assert "data/rows/${item.variant}.json" in STAGES["train"]["deps"]


def outs(stage: dict) -> dict[str, dict]:
    """Path and options of everything that a stage writes, for the row m3."""
    listed = stage.get("outs", []) + stage.get("metrics", []) + stage.get("plots", [])
    pairs = [next(iter(out.items())) if isinstance(out, dict) else (out, {}) for out in listed]
    return {path.replace("${item.variant}", "m3"): options for path, options in pairs}


ALL_OUTS = {path: options for stage in STAGES.values() for path, options in outs(stage).items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_stage_depends_on_its_stripped_notebook_and_writes_it_executed(name):
    stem, suffix = notebook_of(STAGES[name]), "-m3" if "matrix" in STAGES[name] else ""
    assert [dep for dep in STAGES[name]["deps"] if dep.endswith(".ipynb")] == [f"data/notebooks/{stem}.ipynb"]
    assert [out for out in outs(STAGES[name]) if out.endswith(".ipynb")] == [f"notebooks/executed/{stem}{suffix}.ipynb"]


def test_stages_without_a_notebook():
    assert set(STAGES) - set(RUNS) == {"inputs", "notebooks", "weights"}
    assert STAGES["inputs"]["always_changed"]
    assert STAGES["inputs"]["cmd"] == f"{PYTHON} m3lib.pipeline.check_inputs"
    assert STAGES["notebooks"]["cmd"] == f"{PYTHON} m3lib.pipeline.copy_notebooks"
    assert STAGES["weights"]["cmd"] == f"{PYTHON} m3lib.pipeline.convert_weights"
    sources = sorted(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("0*.ipynb"))
    assert sorted(STAGES["notebooks"]["deps"]) == ["m3lib", *sources]
    assert {notebook_of(STAGES[name]) for name in RUNS} == {Path(source).stem for source in sources}


def test_every_dep_exists_or_is_made():
    for name, stage in STAGES.items():
        for dep in stage.get("deps", []):
            dep = dep.replace("${item.variant}", "m3")
            by_stage = any(out == dep or out.startswith(f"{dep}/") or dep.startswith(f"{out}/") for out in ALL_OUTS)
            assert by_stage or (ROOT / dep).exists(), f"{name}: {dep}"


def is_ignored(path: str) -> bool:
    done = subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False)
    assert done.returncode in (0, 1)
    return done.returncode == 0


def test_git_ignores_what_the_pipeline_makes_except_small_results():
    small = {path for path, options in ALL_OUTS.items() if options.get("cache") is False}
    names = {
        "inputs.json",
        "backbones.json",
        "rows",
        "pairs.csv",
        "metrics/m3.json",
        "curves/m3.csv",
        "health/m3.json",
        "metrics.json",
    }
    assert small == {f"data/{name}" for name in names}
    for path in ALL_OUTS:
        assert is_ignored(f"{path}/m3.json" if path == "data/rows" else path) == (path not in small), path
    for path in ("data/work", "data/x.bak", ".venv/x", "dvc_plots/x"):
        assert is_ignored(path), path
    for path in ("data/results/published.csv", "notebooks/01_prepare.ipynb", "dvc.lock", "params.yaml", *MODULES):
        assert not is_ignored(path), path


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_file_is_complete_hashed_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert [line for line in text.splitlines() if line.startswith("-")] == []
    pinned = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^]]*])?==\S+(?: ;[^\\\n]*)?( \\)?$", text, re.MULTILINE)
    starts = [line for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    assert len(pinned) == len(starts), "a line that is no exact pin"
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        if re.match(r"[A-Za-z0-9]", block):
            assert "--hash=sha256:" in block, block.splitlines()[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {normal(re.match(r"[\w.-]+", dependency)[0]) for dependency in project["dependencies"]}
    assert wanted - {normal(name) for name, _ in pinned} == set()


def named_files(text: str):
    """Relative link targets, and words in backticks that start with a folder or are a file of the repository's top."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        if "://" not in target and not target.startswith("mailto:"):
            yield target
    for word in re.findall(r"`([\w./*-]+)`", text):
        if re.match(r"(m3lib|notebooks|data|tests|\.ci)/", word) or re.fullmatch(
            r"(dvc|params)\.\w+|Makefile|\w+\.(toml|lock)", word
        ):
            yield word


def test_readme_names_files_that_exist_and_has_at_most_1000_words():
    text = (ROOT / "README.md").read_text()
    for name in named_files(text):
        exists = any(ROOT.glob(name.rstrip("/"))) if "*" in name else (ROOT / name).exists()
        assert exists or is_ignored(name) or name in ALL_OUTS or name == "dvc.lock", name
    prose = re.sub(r"^```.*?^```|^\|[^\n]*$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) <= 1000


@pytest.mark.parametrize("target", ["repro", "test"])
@pytest.mark.parametrize("installed", [True, False])
def test_a_download_without_git_is_refused_before_anything_is_installed(tmp_path, target, installed):
    folder = tmp_path / "it's é"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    if installed:
        (folder / ".venv").mkdir()
        (folder / ".venv" / ".ready").touch()
    command = ["make", target, "PYTHON=false"]
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "SHUFFLE")  # of the make that runs this test
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment |= {"GIT_CEILING_DIRECTORIES": str(tmp_path), "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    sentence = done.stderr.splitlines()[0]
    assert sentence.startswith("error: no git repository (fatal: not a git repository")
    assert sentence.endswith(
        "get the code with `git clone` instead of a ZIP download, or run `git init` in this folder"
    )
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    if not installed:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == "false -m venv --clear .venv\n"
