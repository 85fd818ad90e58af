"""Execute a notebook as a pipeline stage: `python -m m3lib.pipeline.run_notebook 02_train m3`.

The stage hands a notebook one value at most, the variant's name; everything else the notebook reads from params.yaml.
What is written to notebooks/executed/ holds no time, duration or random id, so that equal runs give equal bytes; how
long a stage took goes to timings.csv in data/work instead.
"""

import fcntl
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient.exceptions import DeadKernelError
from nbstripout import strip_output
from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from m3lib.config import find_root
from m3lib.errors import InputError
from m3lib.validation import NAME

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # where an object lay in memory
VOLATILE = [
    "metadata.papermill",
    "cell.metadata.papermill",
    "cell.metadata.execution",
    "metadata.language_info.version",
]
MEMORY = "memory ran out: lower train.batch, or images.height and images.width (params.yaml), or free some"
TOLD = {  # what a cell's error says where no code of ours is to blame, and what a person is told
    r"No space left on device|Disk quota exceeded|File too large": "the disk is full: free some space, then run again",
    r"MemoryError|[Cc]an't allocate memory|Cannot allocate memory|[Oo]ut of memory": MEMORY,
}


def run(root: Path, notebook: str, variant: str | None) -> Path:
    """Execute data/notebooks/<notebook>.ipynb from the repository's root; returns the executed copy's path.

    Raises InputError with a person's mistake as its sentence, PapermillExecutionError for any other failing cell. The
    executed copy then ends at that cell.
    """
    for name in (notebook, variant):
        if name is not None and not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name of a notebook or a variant")
    source = root / "data" / "notebooks" / f"{notebook}.ipynb"
    if not source.is_file():
        raise InputError(f"{source.relative_to(root)} does not exist; run the stages with `dvc repro`")
    stem = f"{notebook}-{variant}" if variant else notebook
    executed = root / "notebooks" / "executed" / f"{stem}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(root, stem):
        executed.unlink(missing_ok=True)
        for left in (root / "data" / "work").glob(f"{stem}-ipc-*"):  # sockets of a run that was killed
            left.unlink()
        started = time.time()
        try:
            execute(source, executed, {"variant": variant} if variant else {}, root)
        except BaseException:
            if executed.exists():
                print(f"\nexecuted up to there: {executed.relative_to(root)}", file=sys.stderr)
            raise
        finally:
            if executed.exists():
                record(root, stem, started, clean(executed))
    return executed


def execute(source: Path, executed: Path, parameters: dict[str, str], root: Path) -> None:
    """Run the cells; a cell that raises InputError is reported as that sentence.

    The kernel listens on sockets in data/work. ipykernel itself adds one port on loopback, for the output of forked
    children, which takes nothing without a random key.
    """
    try:
        nbformat.validate(nbformat.read(source, as_version=4))
    except Exception:  # nbformat raises whatever it stumbles over
        raise InputError(f"{source.relative_to(root)} is no notebook; run `dvc repro --force notebooks`") from None
    sockets = Config({"KernelManager": {"transport": "ipc", "ip": str(Path("data", "work", f"{executed.stem}-ipc"))}})
    try:
        execute_notebook(
            source,
            executed,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,  # a cell's tqdm bar reaches the terminal as it is
            cwd=root,
            config=sockets,
            shutdown_kernel="immediate",  # nothing is left to do; asked to end, it may print a traceback of its own
        )
    except PapermillExecutionError as error:
        if error.ename == InputError.__name__:
            raise InputError(error.evalue) from None
        for pattern, sentence in TOLD.items():
            if re.search(pattern, f"{error.ename}: {error.evalue}"):
                raise InputError(sentence) from None
        raise


def clean(executed: Path) -> float:
    """Take out what differs between equal runs; returns the seconds that the cells took."""
    notebook = nbformat.read(executed, as_version=4)
    cells = sum(cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells)
    strip_output(notebook, True, True, False, extra_keys=VOLATILE, drop_output_types={"stream:stderr"})
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "text/plain" in output.get("data", {}):
            output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])
    nbformat.write(notebook, executed)
    return cells


def record(root: Path, stem: str, started: float, cells: float) -> None:
    """Append to the timings, which are no output of any stage; `make bench` reads them."""
    path = root / "data" / "work" / "timings.csv"
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # the largest process: the kernel
    new = not path.exists()
    with path.open("a") as file:
        if new:
            file.write("notebook,started,seconds,cell_seconds,peak_mb\n")
        file.write(f"{stem},{started:.1f},{time.time() - started:.2f},{cells:.2f},{peak:.0f}\n")


@contextmanager
def only_writer(root: Path, stem: str) -> Iterator[None]:
    """Hold a lock on this notebook's results: an orphan of a killed run must not write over a new one's."""
    folder = root / "data" / "work"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{stem}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{stem} is already being run in this folder; wait for it, or end that process") from None
        yield


def main(arguments: list[str]) -> int:
    """Run one notebook; 0 when it went through, 1 with a sentence (or the cell's traceback) when it didn't."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m m3lib.pipeline.run_notebook NOTEBOOK [VARIANT]", file=sys.stderr)
        return 2
    os.environ.setdefault("TQDM_MININTERVAL", "1")
    stem = "-".join(arguments)
    try:
        run(find_root(), *arguments, *[None] * (2 - len(arguments)))
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
    except DeadKernelError:
        print(f"\nerror: the kernel of {stem} died; most likely {MEMORY}", file=sys.stderr)
    except PapermillExecutionError as error:
        print("\n".join(error.traceback), file=sys.stderr)
    except OSError as error:
        print(f"\nerror: {error.filename or stem}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{stem} was interrupted; `dvc repro` goes on from its last checkpoint", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
