"""Runs notebooks as stages in forked children, so that a kill and another try cost no imports.

`python forked.py` in a copy of the repository: a line `NOTEBOOK VARIANT BYTES` on stdin runs the notebook's cells in a
child of its own session; told are the child's process, then its exit status. BYTES: the largest file that the child
may write, as on a full disk; 0 for any. An exception of a cell goes to stderr as one line.
"""

import json
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

WARM = np.random.default_rng(0).random((60, 32), dtype=np.float32)


class Server:
    """The other end."""

    def __init__(self, folder: Path):
        path = {
            "PYTHONPATH": str(folder),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "NUMBA_THREADING_LAYER": "workqueue",
            "PATH": os.environ["PATH"],
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.said = folder / "stderr"
        with self.said.open("w") as file:
            command = [sys.executable, __file__]
            self.process = subprocess.Popen(command, cwd=folder, env=path, stderr=file, **pipes)

    def start(self, notebook: str, variant: str, limit: int = 0) -> int:
        """The child's process."""
        self.process.stdin.write(f"{notebook} {variant or '-'} {limit}\n")
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The child's exit status; negative for a signal."""
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def run(notebook: str, variant: str, limit: int) -> None:
    os.setsid()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    scope: dict = {"display": print}
    for cell in json.loads(Path(f"notebooks/{notebook}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
            if "parameters" in cell["metadata"].get("tags", ()) and variant != "-":
                scope["variant"] = variant


def main() -> None:
    for name in MODULES.split():
        __import__(name)
    sys.modules["umap"].UMAP(random_state=0, n_jobs=1, metric="cosine", n_neighbors=15).fit(WARM)  # compiled for all
    for line in sys.stdin:
        notebook, variant, limit = line.split()
        child = os.fork()
        if not child:
            try:
                run(notebook, variant, int(limit))
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
