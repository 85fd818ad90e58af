"""Copy the notebooks to data/notebooks, where the stages read them: `python -m m3lib.pipeline.copy_notebooks`.

A copy has no outputs, so that running a notebook by hand makes no stage stale, and in its metadata digests of the code
that it imports, so that an edit of this code does. One file per stage keeps dvc.lock small, which DVC parses and writes
after every stage. The command `nbstripout` would take further keys from a person's git configuration.
"""

import ast
import sys
from pathlib import Path

import nbformat
from nbstripout import strip_output

from m3lib.config import find_root
from m3lib.data.code import imported_files, imports, relative_names
from m3lib.data.files import digest
from m3lib.errors import InputError, exit_status

WHOLE = ("language_info", "signature", "widgets")
OF_A_CELL = ("ExecuteTime", "collapsed", "execution", "heading_collapsed", "hidden", "scrolled")
KEYS = [*(f"metadata.{key}" for key in WHOLE), *(f"cell.metadata.{key}" for key in OF_A_CELL)]
# Their effect is in the values of settings; the file of a row covers its entry in the registry of systems.
ELSEWHERE = {f"m3lib/{stem}.py" for stem in ("errors", "kinds", "validation", "systems/__init__")}


def copy(root: Path) -> None:
    """Write the copies. Raises InputError for a file that is no notebook of Python code."""
    folder = root / "data" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(root.glob("notebooks/0*.ipynb")):
        try:
            notebook = nbformat.read(path, as_version=4)
            digests = code_digests(notebook)
        except Exception as error:  # nbformat raises many types
            raise InputError(f"{path} can't be read as a notebook ({error}); restore it with git") from None
        stripped = strip_output(notebook, False, False, False, extra_keys=KEYS)
        stripped.metadata["code"] = digests
        nbformat.write(stripped, folder / path.name)


def code_digests(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Map every file of m3lib that a notebook imports, directly or not, to a digest of its content."""
    tree = ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    files = imported_files(*imports(tree))
    return {
        name: digest(path) for name, path in zip(relative_names(files), files, strict=True) if name not in ELSEWHERE
    }


if __name__ == "__main__":
    sys.exit(exit_status(lambda: copy(find_root())))
