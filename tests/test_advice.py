"""Every setting that a sentence names exists."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from m3lib import prepare
from tiny import ROOT, SETTINGS, VALUES

SECTIONS = "|".join(section for section, values in VALUES.items() if isinstance(values, dict))
NAMES = re.compile(rf"(?<![\w./])(?:{SECTIONS})(?:\.\w+)+")
FILES = (".npy", ".bin", ".json", ".parquet", ".safetensors")  # images.npy is a file, no setting
METHODS = (".search", ".attributes", ".add", ".delete")  # of a search.Index that the pages call `index`
PAGES = [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def texts(path: Path) -> Iterator[str]:
    """Yield the texts in code (docstrings too) and in the prose of a notebook or a page."""
    if path.suffix == ".md":
        yield path.read_text()
    code = [path.read_text()] if path.suffix == ".py" else []
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        yield from ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    nodes = (node for text in code for node in ast.walk(ast.parse(text)))
    yield from (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def exists(name: str) -> bool:
    """Return whether params.yaml has a setting, or a row can have it: `systems.m3_c.train.lr`."""
    values, path = VALUES, name.split(".")
    path = path[2:] if path[0] == "systems" and path[1] in VALUES["systems"] and len(path) == 4 else path
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


@pytest.mark.parametrize("folder", ["m3lib", "pages"])
def test_every_setting_that_a_text_names_exists(folder):
    paths = PAGES if folder == "pages" else sorted((ROOT / folder).rglob("*.py"))
    found = {(path.name, name) for path in paths for text in texts(path) for name in NAMES.findall(text)}
    settings = {(file, name) for file, name in found if not name.endswith((*FILES, *METHODS))}
    assert len(settings) >= 20
    assert sorted((file, name) for file, name in settings if not exists(name)) == []


def test_advice_on_the_share_of_a_benchmark_names_the_setting_that_has_an_effect():
    """The preset mini sets it, so that the general setting has none."""
    public = replace(SETTINGS, source="darn", benchmark=replace(SETTINGS.benchmark, fraction=0.03))
    assert set(prepare.remedies(public).values()) == {"raise benchmark.fraction"}
    assert set(prepare.remedies(replace(public, preset="mini")).values()) == {"raise presets.mini.benchmark.fraction"}
    public = replace(public, benchmark=SETTINGS.benchmark)
    assert set(prepare.remedies(public).values()) == {"complete the download (`make data SOURCE=darn` lists its files)"}


@pytest.mark.parametrize(("min_images", "helps"), [(20, True), (1, False)])
def test_a_setting_at_its_lowest_value_is_no_advice(min_images, helps):
    catalogue = replace(SETTINGS, source="csv", csv=replace(SETTINGS.csv, min_images=min_images))
    for sentence in prepare.remedies(catalogue).values():
        assert ("lower csv.min_images" in sentence) == helps
        assert "split." in sentence
    given = replace(catalogue, csv=replace(catalogue.csv, split_column="part"))
    assert prepare.remedies(given) == {
        "train": "mark labelled photos as train in the column 'part'",
        "test": "mark labelled photos as test in the column 'part'",
        "role": "mark labelled photos as test in the column 'part', or set split.query nearer to 0.5",
    }
