"""The notebook runner, on small notebooks made on the spot in a small workspace of its own."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[2]
PARAMETERS = 'variant = "none"'
PATIENCE = 90  # seconds that a kernel gets to start on a busy machine


class Workspace:
    """A folder with dvc.yaml, a copy of m3lib, and notebooks as the pipeline hands them to the runner."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(ROOT / "m3lib", folder / "m3lib", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "dvc.yaml").write_text("stages: {}\n")
        (folder / "data" / "notebooks").mkdir(parents=True)

    def notebook(self, name: str, *cells: str) -> None:
        parts = [new_markdown_cell("# A title"), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        notebook = new_notebook(cells=parts + [new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(notebook, self.folder / "data" / "notebooks" / f"{name}.ipynb")

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "m3lib.pipeline.run_notebook", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, start_new_session=True, **pipes, **options)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def executed(self, stem: str) -> Path:
        return self.folder / "notebooks" / "executed" / f"{stem}.ipynb"

    def wait_for(self, name: str, process: subprocess.Popen) -> None:
        end = time.monotonic() + PATIENCE
        while not (self.folder / name).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, f"{name} never came"
            time.sleep(0.05)


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "w").mkdir()
    return Workspace(tmp_path / "w")


@contextmanager
def running(workspace, *arguments):
    """A run that has reached its cell, which waits for the file `go`; ended with the test, kernel included."""
    workspace.notebook(
        "slow",
        "from pathlib import Path\nimport time",
        'Path("reached").touch()\nwhile not Path("go").exists():\n    time.sleep(0.05)',
        'print("went through")',
    )
    process = workspace.start("slow", *arguments)
    try:
        workspace.wait_for("reached", process)
        yield process
    finally:
        (workspace.folder / "go").touch()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def everything(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def outputs(path):
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def test_equal_runs_give_equal_bytes_here_and_in_another_folder(workspace, tmp_path):
    cells = [
        "import sys, time\nfrom tqdm import tqdm\nimport m3lib",
        'for _ in tqdm(range(3), desc="bar"):\n    time.sleep(0.01)\nprint("variant:", variant)',
        'print("a warning", file=sys.stderr)\nprint("to stdout")\n{"a": 1}',
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "object()",  # shown with its address in memory
        'import atexit, os\natexit.register(os.write, 2, b"a kernel at its end");',
    ]
    elsewhere = tmp_path / "another folder"
    elsewhere.mkdir()
    texts = []
    for place in (workspace, Workspace(elsewhere)):
        place.notebook("small", *cells)
        before = everything(place.folder)
        done = place.run("small", "m3")
        assert done.returncode == 0, done.stderr
        assert "variant: m3" in done.stdout
        assert "bar: 100%" in done.stderr
        assert "a warning" in done.stderr
        assert "Traceback" not in done.stderr
        assert "a kernel at its end" not in done.stderr  # which can trip over its own threads, and say so at length
        texts.append(place.executed("small-m3").read_text())
        made = everything(place.folder) - before
        assert {name for name in made if not name.startswith("data/work")} == {
            "notebooks",
            "notebooks/executed",
            "notebooks/executed/small-m3.ipynb",
        }
    assert texts[0] == texts[1]
    first = workspace.executed("small-m3")
    assert [output.output_type for output in outputs(first)] == [
        *("stream", "stream", "execute_result", "display_data", "execute_result")
    ]
    assert all(output.get("name") != "stderr" for output in outputs(first))
    for word in (str(tmp_path), "papermill", "duration", "iopub", "100%", time.strftime("%Y-")):
        assert word not in texts[0], word

    assert workspace.run("small", "m3").returncode == 0  # over an executed copy that is there already
    assert first.read_text() == texts[0]
    with (workspace.folder / "data" / "work" / "timings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["notebook"] for row in rows] == ["small-m3", "small-m3"]
    assert all(0 < float(row["cell_seconds"]) < float(row["seconds"]) for row in rows)


def test_timings_and_locks_lie_outside_the_hash_chain():
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for kind in ("deps", "outs", "metrics", "plots"):
            assert not any("data/work" in str(path) for path in stage.get(kind, [])), name


def test_input_error_is_one_sentence_and_leaves_the_notebook_up_to_there(workspace):
    workspace.notebook(
        "wrong",
        'print("this far")',
        'from m3lib.errors import InputError\nraise InputError("the hat is too large; buy a smaller one")',
        'print("never")',
    )
    done = workspace.run("wrong")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "the hat" in line]
    assert said == ["error: the hat is too large; buy a smaller one"]
    assert "Traceback" not in done.stderr
    assert "notebooks/executed/wrong.ipynb" in done.stderr
    kept = outputs(workspace.executed("wrong"))
    assert any(output.get("text") == "this far\n" for output in kept)
    assert kept[-1].output_type == "error"
    assert (kept[-1].ename, kept[-1].evalue) == ("InputError", "the hat is too large; buy a smaller one")
    assert "never\\n" not in "".join(str(output) for output in kept)


def test_a_bug_shows_its_traceback(workspace):
    workspace.notebook("bug", "def divide():\n    return 1 / 0", "divide()")
    done = workspace.run("bug", "m3")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "divide" in done.stderr
    assert "papermill/" not in done.stderr  # the cell's traceback, not the runner's
    assert "error: " not in done.stderr.replace("ZeroDivisionError: ", "")
    assert outputs(workspace.executed("bug-m3"))[-1].ename == "ZeroDivisionError"


def test_a_killed_kernel_is_told_in_a_sentence(workspace):
    workspace.notebook("dead", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    done = workspace.run("dead")
    assert done.returncode not in (0, None)
    assert "died" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_unknown_notebook_and_wrong_use(workspace):
    done = workspace.run("06_none")
    assert done.returncode == 1
    assert "error: data/notebooks/06_none.ipynb does not exist; run the stages with `dvc repro`" in done.stderr
    assert "Traceback" not in done.stderr
    assert "executed up to there" not in done.stderr  # nothing was
    for arguments in ([], ["a", "b", "c"]):
        done = workspace.run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: ")


def test_code_of_another_copy_is_refused(workspace, tmp_path):
    workspace.notebook("small", "1")
    other = tmp_path / "other"
    other.mkdir()
    Workspace(other)
    command = [
        sys.executable,
        "-c",
        "import sys, m3lib.pipeline.run_notebook, os; os.chdir(sys.argv[1]); m3lib.pipeline.run_notebook.find_root()",
        other,
    ]
    done = subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "InputError: m3lib was imported from" in done.stderr


def test_second_writer_is_refused_while_the_first_runs(workspace):
    with running(workspace, "m3") as first:
        second = workspace.run("slow", "m3")
        assert second.returncode == 1
        assert "error: slow-m3 is already being run in this folder" in second.stderr
        assert "Traceback" not in second.stderr
        (workspace.folder / "go").touch()
        stdout, stderr = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, stderr
    assert "went through" in stdout
    assert outputs(workspace.executed("slow-m3"))[-1].text == "went through\n"


def test_interrupt_ends_the_run_with_a_sentence(workspace):
    with running(workspace) as process:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the kernel too
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode not in (0, None)
        assert "slow was interrupted; `dvc repro` goes on from its last checkpoint" in stderr
        assert "KeyboardInterrupt" not in stderr  # the kernel may complain of its closed socket, the runner may not
        assert "m3lib/pipeline/run_notebook.py" not in stderr
    assert not kernels_of(workspace)


def kernels_of(workspace):
    """Processes that still work in the workspace, after a moment to end."""
    end = time.monotonic() + 20
    while time.monotonic() < end and processes_in(workspace.folder):
        time.sleep(0.1)
    return processes_in(workspace.folder)


def processes_in(folder):
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == folder:
                found.append(link.parent.name)
        except OSError:
            continue
    return found
