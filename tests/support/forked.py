"""Run notebooks as stages in forked children, so that another try after a kill need not import everything again.

`python forked.py` in a copy of the repository reads a `Task` as JSON from each line of stdin and runs the notebook's
cells in a child with a session of its own. It answers with an `End` as a line of JSON.

The steps of a run are the starts of its cells and the changes that it makes to files and folders in data/. Between two
steps it leaves nothing behind, so that a signal before each step covers every moment.
"""

import json
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

MODULES = (
    "matplotlib.pyplot seaborn timm torch "
    "m3lib.figures.charts m3lib.analysis.comparison m3lib.prepare m3lib.training.trainer"
)


WRITING = os.O_WRONLY | os.O_RDWR
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}  # audit events, besides `open`


class Task(NamedTuple):
    """A stage to run; the largest file in bytes that it may write, as on a full disk; a signal before a step."""

    notebook: str
    row: str
    limit: int = 0
    signal: int = 0
    step: int = 0


class End(NamedTuple):
    """How a stage ended: exit status, negative for a signal, its error as one line, and how many steps it made.

    The last two are missing (empty, 0) after SIGKILL.
    """

    status: int
    error: str
    steps: int


class Server:
    """Start `python forked.py` and talk to it."""

    def __init__(self, folder: Path):
        environment = {
            "PYTHONPATH": str(folder),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "PATH": os.environ["PATH"],
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen([sys.executable, __file__], cwd=folder, env=environment, **pipes)

    def run(self, task: Task) -> End:
        self.process.stdin.write(json.dumps(task) + "\n")
        return End(*json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.kill()  # an orderly end of so many libraries takes long
        self.process.communicate()


class Projection:
    """In the place of UMAP, which would be compiled for half a minute; these tests are about files."""

    def __init__(self, **_: object):
        pass

    def fit_transform(self, points: np.ndarray) -> np.ndarray:
        return points[:, :2]


class Steps:
    """Counts the steps of this process, and sends a signal to its session before one of them."""

    def __init__(self, task: Task):
        self.task, self.data, self.count = task, str(Path("data").absolute()), 0
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple) -> None:
        writes = event in CHANGES or (event == "open" and arguments[2] & WRITING)
        if writes and str(arguments[0]).startswith(self.data):
            self.step()

    def step(self) -> None:
        if self.task.signal and self.count == self.task.step:
            os.killpg(0, self.task.signal)
        self.count += 1


def run(task: Task, steps: Steps) -> None:
    """Execute the cells of a notebook in this process."""
    if task.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task.limit, task.limit))
    for stream in (1, 2):  # printed text would count towards the limit if it went to a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    scope: dict = {"display": print}
    for cell in json.loads(Path(f"notebooks/{task.notebook}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            steps.step()
            exec("".join(cell["source"]), scope)
            if "parameters" in cell["metadata"].get("tags", ()) and task.row:
                scope["variant"] = task.row


def run_child(task: Task) -> tuple[str, int]:
    """Run a task; return its error, or nothing, and its steps."""
    os.setsid()
    steps = Steps(task)
    try:
        run(task, steps)
    except BaseException as exception:
        return f"{type(exception).__name__}: {exception}"[:1000], steps.count
    return "", steps.count


def main() -> None:
    sys.modules["umap"] = ModuleType("umap")
    sys.modules["umap"].UMAP = Projection
    for name in MODULES.split():
        __import__(name)
    for line in sys.stdin:
        memory = mmap.mmap(-1, 8192)  # shared with the child
        child = os.fork()
        if not child:
            error, steps = run_child(Task(*json.loads(line)))
            memory.write(json.dumps([error, steps]).encode())
            os._exit(1 if error else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = memory[:].rstrip(b"\0")
        print(json.dumps([status, *json.loads(said or '["", 0]')]), flush=True)


if __name__ == "__main__":
    main()
