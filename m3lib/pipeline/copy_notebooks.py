"""Copy the pipeline's notebooks to data/notebooks without outputs: `python -m m3lib.pipeline.copy_notebooks`.

Running a notebook by hand changes its outputs and some metadata, which makes no stage stale. The command `nbstripout`
would take further keys from a person's git configuration.
"""

import sys
from pathlib import Path

import nbformat
from nbstripout import strip_output

from m3lib.config import find_root
from m3lib.errors import InputError, exit_status

WHOLE = ("language_info", "signature", "widgets")
OF_A_CELL = ("ExecuteTime", "collapsed", "execution", "heading_collapsed", "hidden", "scrolled")
KEYS = [*(f"metadata.{key}" for key in WHOLE), *(f"cell.metadata.{key}" for key in OF_A_CELL)]


def copy(root: Path) -> None:
    """Write the copies. Raises InputError for a file that is no notebook."""
    folder = root / "data" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(root.glob("notebooks/0*.ipynb")):
        try:
            notebook = nbformat.read(path, as_version=4)
        except Exception as error:  # nbformat raises many types
            raise InputError(f"{path} can't be read as a notebook ({error}); restore it with git") from None
        nbformat.write(strip_output(notebook, False, False, False, extra_keys=KEYS), folder / path.name)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: copy(find_root())))
