"""Execute a notebook's cells in a kernel, as a pipeline stage, and save an executed copy.

The executed copy has no time, duration or random id, so that equal runs write equal bytes. It opens with the answer of
this run: what the cell tagged `answer` has printed.
"""

import fcntl
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import TextIO

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbstripout import strip_output
from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError
from traitlets import default
from traitlets.config import Config

from m3lib.config import find_root
from m3lib.data.files import FULL_DISK
from m3lib.errors import InputError
from m3lib.pipeline import environment
from m3lib.validation import NAME

OBJECT_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the representation of a Python object
VARYING = ["metadata.papermill", "cell.metadata.papermill", "cell.metadata.execution", "metadata.language_info.version"]
OUT_OF_MEMORY = "memory ran out: lower train.batch, or images.height and images.width (params.yaml), or free some"
PATIENCE = 600  # seconds for the start of a kernel and for the last output of a cell, on a busy machine
# matplotlib reads a matplotlibrc in the working directory, and no setting prevents that
FIRST_LINE = "--InteractiveShellApp.exec_lines=__import__('matplotlib').rcdefaults()"
KNOWN_FAILURES = {  # pattern in the message of an error: the sentence that is printed instead of a traceback
    "|".join(map(os.strerror, FULL_DISK)): "the disk is full: free some space, then run again",
    r"MemoryError|[Cc]an't allocate memory|Cannot allocate memory|[Oo]ut of memory": OUT_OF_MEMORY,
}


class OwnKernel(AsyncKernelManager):
    """Starts kernels in this interpreter, whatever kernel the machine has under the same name."""

    @default("kernel_spec_manager")
    def without_installed_kernels(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def run(root: Path, notebook: str, variant: str | None = None) -> None:
    """Execute data/notebooks/<notebook>.ipynb, in the repository's root, to notebooks/executed/.

    Raises PapermillExecutionError if a cell fails, and InputError if the notebook can't be started. The executed copy
    of a failed run ends at the failed cell.
    """
    for name in (notebook, variant):
        if name is not None and not NAME.fullmatch(name):
            raise InputError(f"{name!r} can't name a notebook or a row")
    source = root / "data" / "notebooks" / f"{notebook}.ipynb"
    try:
        nbformat.validate(nbformat.read(source, as_version=4))
    except Exception:  # nbformat raises many types
        raise InputError(f"{source} is missing or is not a notebook; run `dvc repro --force notebooks`") from None
    stem = f"{notebook}-{variant}" if variant else notebook
    executed = root / "notebooks" / "executed" / f"{stem}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    with locked(root / "data" / "work" / f"{stem}.lock"):
        executed.unlink(missing_ok=True)
        for socket in (root / "data" / "work").glob(f"{stem}-ipc-*"):  # of a run that was killed
            socket.unlink()
        started = time.time()
        try:
            execute(source, executed, {"variant": variant} if variant else {}, root)
        finally:
            if executed.exists():
                finish(root, executed, started)


def execute(source: Path, executed: Path, parameters: dict[str, str], root: Path) -> None:
    """Run the cells, in the working directory `root`; the executed copy is saved after each cell.

    The kernel listens on sockets in data/work instead of ports. ipykernel adds one port on loopback for the output of
    forked children, which accepts only messages with a random key. All paths are relative: a socket's path may have 107
    bytes, and papermill would take braces in a path for a parameter.
    """
    sockets = Config({"KernelManager": {"transport": "ipc", "ip": str(Path("data", "work", f"{executed.stem}-ipc"))}})
    options = {"kernel_name": "python3", "kernel_manager_class": OwnKernel, "config": sockets, "progress_bar": False}
    options |= {"extra_arguments": [FIRST_LINE], "start_timeout": PATIENCE, "iopub_timeout": PATIENCE}
    options |= {"shutdown_kernel": "immediate"}  # a kernel that shuts down by itself may print a traceback
    source, executed = source.relative_to(root), executed.relative_to(root)
    execute_notebook(source, executed, parameters, **options, stdout_file=sys.stdout, stderr_file=sys.stderr)


def finish(root: Path, executed: Path, started: float) -> None:
    """Remove what differs between equal runs from the executed copy; append durations to timings.csv."""
    notebook = nbformat.read(executed, as_version=4)
    cell_seconds = sum(cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells)
    strip_output(notebook, True, True, False, extra_keys=VARYING, drop_output_types={"stream:stderr"})
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "text/plain" in output.get("data", {}):
            output.data["text/plain"] = OBJECT_ADDRESS.sub("", output.data["text/plain"])
    quote_answer(notebook)
    nbformat.write(notebook, executed)
    timings = root / "data" / "work" / "timings.csv"
    header = "" if timings.exists() else "notebook,started,seconds,cell_seconds,peak_mb\n"
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest process, the kernel
    line = f"{executed.stem},{started:.1f},{time.time() - started:.2f},{cell_seconds:.2f},{peak:.0f}\n"
    with timings.open("a") as file:
        file.write(header + line)


def quote_answer(notebook: nbformat.NotebookNode) -> None:
    """Quote the printed text of the cell tagged `answer`, if it was reached, below the title of the notebook."""
    for cell in notebook.cells:
        if "answer" in cell.metadata.get("tags", []) and cell.outputs:
            text = " ".join("".join(output.get("text", "") for output in cell.outputs).split())
            escaped = re.sub(r"([\\`*_$<>\[\]])", r"\\\1", text)  # a name of a class is not Markdown
            title, *rest = notebook.cells[0].source.split("\n", 1)
            notebook.cells[0].source = "\n".join([title, "", f"> **Answer.** {escaped}", *rest])


def locked(path: Path) -> TextIO:
    """Open a file and lock it until it is closed. Raises InputError if another run of the notebook holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path.stem} is already being run in this folder; wait, or end that process") from None
    return file


def describe(error: Exception, stem: str) -> str:
    """Return what a user reads about a failed run: a sentence for a known failure, the cell's traceback for others."""
    if isinstance(error, DeadKernelError):
        return f"error: the kernel of {stem} died; most likely {OUT_OF_MEMORY}"
    in_cell = isinstance(error, PapermillExecutionError)
    kind, message = (error.ename, error.evalue) if in_cell else (type(error).__name__, str(error))
    if kind == InputError.__name__:
        return f"error: {message}"
    for pattern, sentence in KNOWN_FAILURES.items():
        if re.search(pattern, f"{kind}: {message}"):
            return f"error: {sentence}"
    return "\n".join(error.traceback) if in_cell else f"error: {error.filename or stem}: {error.strerror or error}"


def main(arguments: list[str]) -> int:
    """Run one notebook, [NOTEBOOK] or [NOTEBOOK, ROW]; return 0, or 1 after printing what failed."""
    stem = "-".join(arguments)
    try:
        environment.enter(root := find_root())
        run(root, *arguments)
        return 0
    except (InputError, DeadKernelError, PapermillExecutionError, OSError) as error:
        if isinstance(error, PapermillExecutionError | DeadKernelError):
            print(f"\nexecuted up to the failed cell: notebooks/executed/{stem}.ipynb", file=sys.stderr)
        print(f"\n{describe(error, stem)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{stem} was interrupted; `dvc repro` continues from its last checkpoint", file=sys.stderr)
    return 1
