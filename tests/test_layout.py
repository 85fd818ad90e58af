"""The house: floors of m3lib, what dvc.yaml names, what git ignores, what the lock file and the README hold."""

import ast
import re
import subprocess
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "m3lib"
MODULES = sorted(path.stem for path in LIBRARY.glob("*.py") if path.stem != "__init__")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PLUMBING = {"checked", "config", "errors", "run"}  # named in no stage: an edit of theirs reruns nothing by itself


def floors():
    """Module to floor, read from the package's docstring."""
    text = ast.get_docstring(ast.parse((LIBRARY / "__init__.py").read_text()))
    found = {}
    for number, names in re.findall(r"^(\d+)\. (`\w+`(?:,\s+`\w+`)*):", text, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(number))
    return found


def imported(source):
    """The m3lib modules that code imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "m3lib":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m3lib."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("m3lib.")}
    return names


def graph():
    return {name: imported((LIBRARY / f"{name}.py").read_text()) for name in MODULES}


def reached(names):
    """Those modules and all that they import in turn."""
    edges, found, waiting = graph(), set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= edges[name] - found
    return found


def outs(stage):
    """Path and options of everything that a stage makes, for variant m3."""
    listed = stage.get("outs", []) + stage.get("metrics", []) + stage.get("plots", [])
    pairs = [next(iter(out.items())) if isinstance(out, dict) else (out, {}) for out in listed]
    return {path.replace("${item.variant}", "m3"): options for path, options in pairs}


def all_outs():
    return {path: options for stage in STAGES.values() for path, options in outs(stage).items()}


def is_ignored(path):
    done = subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False)
    assert done.returncode in (0, 1)
    return done.returncode == 0


def test_every_module_has_a_floor():
    assert sorted(floors()) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(ast.parse((LIBRARY / f"{name}.py").read_text()))


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    level = floors()
    above = {other for other in graph()[name] if level[other] > level[name]}
    assert not above, f"{name} (floor {level[name]}) imports from above: {sorted(above)}"


def test_imports_of_one_floor_have_no_cycle():
    list(TopologicalSorter(graph()).static_order())  # raises CycleError, naming it


def notebook_of(stage):
    words = stage["cmd"].split() if isinstance(stage["cmd"], str) else []
    return words[3] if words[:3] == ["python", "-m", "m3lib.pipeline.run_notebook"] else None


RUNS = [name for name, stage in STAGES.items() if notebook_of(stage)]


def test_stages_with_a_notebook():
    assert {notebook_of(STAGES[name]) for name in RUNS} == {path.stem for path in (ROOT / "notebooks").glob("0*.ipynb")}


@pytest.mark.parametrize("name", RUNS)
def test_stage_names_the_modules_that_its_notebook_reaches(name):
    stage = STAGES[name]
    notebook = nbformat.read(ROOT / "notebooks" / f"{notebook_of(stage)}.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    uses = reached(imported(code)) - PLUMBING
    named = {Path(dep).stem for dep in stage["deps"] if dep.startswith("m3lib/")}
    assert uses - named == set(), "used, not named"
    assert named - uses == set(), "named, not used"


@pytest.mark.parametrize("name", RUNS)
def test_stage_depends_on_its_stripped_notebook_and_gives_it_back_executed(name):
    stage = STAGES[name]
    stem = notebook_of(stage)
    assert [dep for dep in stage["deps"] if dep.endswith(".ipynb")] == [f"data/notebooks/{stem}.ipynb"]
    suffix = "-m3" if "matrix" in stage else ""
    assert [out for out in outs(stage) if out.endswith(".ipynb")] == [f"notebooks/executed/{stem}{suffix}.ipynb"]


def test_stages_without_a_notebook():
    """The look at the source runs always, so needs no deps; the copies depend on every notebook."""
    assert set(STAGES) - set(RUNS) == {"inputs", "notebooks"}
    assert STAGES["inputs"]["always_changed"]
    assert "deps" not in STAGES["inputs"]
    module = STAGES["inputs"]["cmd"].removeprefix("python -m m3lib.")
    assert module in MODULES
    assert 'if __name__ == "__main__":' in (LIBRARY / f"{module}.py").read_text()
    sources = sorted(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("0*.ipynb"))
    assert sorted(STAGES["notebooks"]["deps"]) == sources


def test_every_dep_is_there_or_made():
    made = all_outs()
    for name, stage in STAGES.items():
        for dep in stage.get("deps", []):
            dep = dep.replace("${item.variant}", "m3")
            by_stage = any(out == dep or out.startswith(f"{dep}/") or dep.startswith(f"{out}/") for out in made)
            assert by_stage or (ROOT / dep).is_file(), f"{name}: {dep}"


def test_git_ignores_what_the_pipeline_makes_except_what_it_keeps():
    kept = {path for path, options in all_outs().items() if options.get("cache") is False}
    assert kept == {
        "data/inputs.json",
        "data/weights.json",
        "data/pairs.csv",
        "data/metrics/m3.json",
        "data/curves/m3.csv",
        "data/metrics.json",
    }
    for path in all_outs():
        assert is_ignored(path) == (path not in kept), path
    made = [f"data/{folder}/{name}" for folder, name in (("work", "timings.csv"), ("work", "m3.safetensors"))]
    for path in (*made, "data/x.bak", ".venv/x", "dvc_plots/x"):
        assert is_ignored(path), path
    for path in (
        "data/results/published.csv",
        "notebooks/01_prepare.ipynb",
        "dvc.lock",
        "params.yaml",
        "m3lib/pipeline/run_notebook.py",
    ):
        assert not is_ignored(path), path


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_file_is_whole_hashed_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    options = [line for line in text.splitlines() if line.startswith("-")]
    assert options == []
    pinned = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^]]*])?==\S+(?: ;[^\\\n]*)?( \\)?$", text, re.MULTILINE)
    starts = [line for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    assert len(pinned) == len(starts), "a line that is no exact pin"
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        if re.match(r"[A-Za-z0-9]", block):
            assert "--hash=sha256:" in block, block.splitlines()[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {normal(re.match(r"[\w.-]+", dependency)[0]) for dependency in project["dependencies"]}
    assert wanted - {normal(name) for name, _ in pinned} == set()


def named_files(text):
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


def test_readme_names_files_that_exist():
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("no README.md yet")
    for name in named_files(readme.read_text()):
        there = any(ROOT.glob(name.rstrip("/"))) if "*" in name else (ROOT / name).exists()
        assert there or is_ignored(name) or name in all_outs() or name == "dvc.lock", name
