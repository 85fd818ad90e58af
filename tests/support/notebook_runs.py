"""Small notebooks run as stages, in a folder with a copy of m3lib; checks of error sentences and of written files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tiny import ROOT

PARAMS = (ROOT / "params.yaml").read_text()
CSV_PARAMS = PARAMS.replace("source: wardrobe", "source: csv").replace("data/catalogue/catalogue.csv", "table.csv")
MAX_WAIT = 600  # seconds until a hanging run fails its test


def listing(folder: Path) -> dict[str, bytes | None]:
    """Map every path below a folder to the content of the file; None for what is not a file."""
    paths = (path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def check_sentence(text: str, words: list[str]) -> None:
    """Assert that a message is printable, neither empty nor endless, and contains some words."""
    assert all(line.isprintable() for line in text.split("\n")), text
    assert 20 < len(text) < 1300
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


class Workspace:
    """A folder with dvc.yaml, a copy of m3lib, and notebooks where the runner reads them."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(ROOT / "m3lib", folder / "m3lib", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "dvc.yaml").write_text("stages: {}\n")
        (folder / "data" / "notebooks").mkdir(parents=True)

    def notebook(self, name: str, *cells: str) -> None:
        """Write a notebook with a title, a parameters cell, and these code cells."""
        parameters = new_code_cell('variant = "none"', metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[new_markdown_cell("# A title"), parameters, *map(new_code_cell, cells)])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(notebook, self.folder / "data" / "notebooks" / f"{name}.ipynb")

    def copy_notebook(self, name: str, params: str) -> None:
        """Take a notebook of the repository, and a text as params.yaml."""
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", self.folder / "data" / "notebooks")
        (self.folder / "params.yaml").write_text(params)

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "m3lib.pipeline.run_notebook", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, start_new_session=True, **pipes)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=MAX_WAIT)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def executed(self, stem: str) -> Path:
        return self.folder / "notebooks" / "executed" / f"{stem}.ipynb"

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen]:
        """Start the notebook `slow`, which waits for the file `go`; yield once it runs, and kill it in the end."""
        self.notebook(
            "slow",
            "from pathlib import Path\nimport time",
            'Path("reached").touch()\nwhile not Path("go").exists():\n    time.sleep(0.05)',
            'print("finished")',
        )
        process = self.start("slow", *arguments)
        try:
            while not (self.folder / "reached").exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            yield process
        finally:
            (self.folder / "go").touch()  # the kernel, in a session of its own, ends
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def outputs(executed: Path) -> list[nbformat.NotebookNode]:
    """The outputs of all cells of an executed notebook."""
    return [output for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", ())]
