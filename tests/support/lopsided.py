"""Small and lopsided catalogues, and the code of the notebooks, run on them in this process."""

import ast
import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import PIL.Image

from m3lib import config
from tiny import MODEL, ROOT, VALUES

SIDE = 32
ROWS = ("classifier", "asen", "modc", "m3")
PER_ROW = ("02_train", "03_evaluate", "04_umap")
TINY = {
    "source": "csv",
    "threads": 1,
    "images": {"height": SIDE, "width": SIDE},
    "model": MODEL,
    "train": {"epochs": 1},
    "umap": {"attributes": 9},
    "csv": {"table": "catalogue/table.csv", "min_images": 1},
    "variants": list(ROWS),
}


class Lopsided:
    """A folder with photos of noise, a table, and params.yaml; `run` is where the pipeline's stages run.

    photos: one mapping per photo, column to cell. changes: settings over TINY, by section.
    """

    def __init__(self, folder: Path, photos: Sequence[Mapping[str, str]], **changes: object):
        self.folder, columns = folder, ["image", *dict.fromkeys(name for photo in photos for name in photo)]
        (folder / "catalogue").mkdir(parents=True)
        with (folder / "catalogue" / "table.csv").open("w") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows({"image": f"{i:03}.png"} | photo for i, photo in enumerate(photos))
        rng = np.random.default_rng(0)
        for i in range(len(photos)):
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
            PIL.Image.fromarray(coarse).save(folder / "catalogue" / f"{i:03}.png")
        (folder / "params.yaml").write_text(json.dumps(merged(merged(VALUES, TINY), changes)))
        (folder / "data" / "results").mkdir(parents=True)
        for name in ("published.csv", "training.csv"):
            shutil.copy(ROOT / "data" / "results" / name, folder / "data" / "results")

    def run(self, monkeypatch, *notebooks: str, rows: Sequence[str] = ROWS) -> dict[str, str]:
        """Run notebooks on the folder, by default every stage that reads the catalogue; returns what each printed."""
        monkeypatch.setattr(config, "find_root", lambda: self.folder)
        said = {}
        for name in notebooks or ("01_prepare", *PER_ROW, "05_report", "07_index"):
            for row in rows if name in PER_ROW else [None]:
                parameters = {"variant": row} if row else {}
                said[f"{name}-{row}" if row else name] = run_code(ROOT / "notebooks" / f"{name}.ipynb", parameters)
        return said


def merged(values: Mapping, changes: Mapping) -> dict:
    """Lay changes over settings, section by section."""
    nested = {key: merged(values.get(key, {}), new) if isinstance(new, dict) else new for key, new in changes.items()}
    return {**values, **nested}


def run_code(path: Path, parameters: Mapping[str, object]) -> str:
    """Execute the code cells of a notebook; returns what they printed, and the text of each table they show."""
    namespace, said = {"display": show}, StringIO()
    with redirect_stdout(said):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                execute(cell.source, namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace |= parameters
    plt.close("all")
    return said.getvalue()


def execute(source: str, namespace: dict) -> None:
    """Run a cell, and show the value of its last line as a notebook does; a semicolon hides it."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
        if value is not None:
            show(value)


def show(value: object) -> None:
    print(value._repr_html_() if hasattr(value, "to_html") else value)
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
