"""Run notebooks as stages in forked children, so that another try after a kill need not import everything again.

`python forked.py` in a copy of the repository reads lines `NOTEBOOK ROW LIMIT` from stdin and runs each notebook's
cells in a child with a session of its own. LIMIT: the largest file in bytes that the child may write, as on a full
disk; 0 for no limit. The answer has two lines: the child's process id, then JSON [exit status, error].
"""

import json
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

MODULES = (
    "matplotlib.pyplot seaborn timm torch umap "
    "m3lib.figures.charts m3lib.analysis.comparison m3lib.prepare m3lib.training.trainer"
)
POINTS = np.random.default_rng(0).random((60, 32), dtype=np.float32)


class Server:
    """Start `python forked.py` and talk to it."""

    def __init__(self, folder: Path):
        environment = {
            "PYTHONPATH": str(folder),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "NUMBA_THREADING_LAYER": "workqueue",
            "PATH": os.environ["PATH"],
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen([sys.executable, __file__], cwd=folder, env=environment, **pipes)

    def start(self, notebook: str, row: str, limit: int = 0) -> int:
        """Start a stage; return the process id of the child."""
        self.process.stdin.write(f"{notebook} {row or '-'} {limit}\n")
        return int(self.process.stdout.readline())

    def wait(self) -> tuple[int, str]:
        """Return the child's exit status, negative for a signal, and its error as one line, or nothing."""
        return tuple(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def run(notebook: str, row: str, limit: int) -> None:
    """Execute the cells of a notebook in this process."""
    os.setsid()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for stream in (1, 2):  # printed text would count towards the limit if it went to a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    scope: dict = {"display": print}
    for cell in json.loads(Path(f"notebooks/{notebook}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
            if "parameters" in cell["metadata"].get("tags", ()) and row != "-":
                scope["variant"] = row


def main() -> None:
    for name in MODULES.split():
        __import__(name)
    sys.modules["umap"].UMAP(random_state=0, n_jobs=1, metric="cosine", n_neighbors=15).fit(POINTS)  # compiles it
    for line in sys.stdin:
        notebook, row, limit = line.split()
        error = mmap.mmap(-1, 4096)  # memory that is shared with the child
        child = os.fork()
        if not child:
            try:
                run(notebook, row, int(limit))
            except BaseException as exception:
                error.write(f"{type(exception).__name__}: {exception}".encode()[:4096])
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, error[:].rstrip(b"\0").decode(errors="replace")]), flush=True)


if __name__ == "__main__":
    main()
