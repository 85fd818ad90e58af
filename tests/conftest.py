"""Shared fixtures: a small catalogue of photos that every test may spoil, and settings that read it."""

import csv
import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from m3lib import config
from m3lib.prepare import contents

torch.set_num_threads(1)  # tiny tensors gain nothing from more
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests with `&` has it ignored
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
LENGTHS = ("long", "short")
DETAILS = ("", "pocket", "collar|pocket", "collar")
HEADER = ("image", "colour", "sleeve", "details", "product")


@dataclass(frozen=True)
class Catalogue:
    """A folder with photos and a table."""

    table: Path
    settings: config.Csv
    split: config.Split

    @property
    def photos(self) -> list[Path]:
        return sorted((self.table.parent / "photos").iterdir())

    def rows(self) -> list[list[str]]:
        with self.table.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    def write(self, rows: Iterable[Iterable[str]]) -> None:
        with self.table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    def change(self, edit: Callable[[list[list[str]]], None]) -> None:
        rows = self.rows()
        edit(rows)
        self.write(rows)

    def set(self, **changes: object) -> config.Csv:
        return replace(self.settings, **changes)


@pytest.fixture(scope="session", autouse=True)
def kept_digests(tmp_path_factory):
    """Digests of photos that tests read stay out of the repository's own data folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "KEPT", str(tmp_path_factory.mktemp("contents")))
        yield


@pytest.fixture
def tiny_catalogue(tmp_path: Path) -> Catalogue:
    """60 JPEGs of 24 x 32 pixels: colour and sleeve (one class each), details (several), product (a group)."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    rows = [HEADER]
    for i in range(60):
        colour = list(COLOURS)[i % 3]
        pixels = np.clip(rng.normal(COLOURS[colour], 20, (32, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i:02}.jpg")
        rows.append((f"photos/{i:02}.jpg", colour, LENGTHS[i % 2], DETAILS[i // 5 % 4], f"p{i // 3}"))
    settings = config.Csv(
        table=str(tmp_path / "table.csv"),
        delimiter="auto",
        image_column="image",
        attributes=["colour", "sleeve", "details"],
        multi=[],
        single=[],
        group_column="",
        split_column="",
        max_broken=0.0,
        separator="|",
        missing=["nan", "n/a", "-", "unknown"],
        spellings="merge",
        rename={},
        min_images=2,
        rare="drop",
    )
    catalogue = Catalogue(
        tmp_path / "table.csv", settings, config.Split(valid=0.25, test=0.25, query=0.4, group_duplicates=True, seed=0)
    )
    catalogue.write(rows)
    return catalogue


LONG = (
    "test_pipeline.py",
    "test_killed.py",
    "test_stale.py",
    "test_clones.py",
    "test_lopsided.py",
    "test_environment.py",
    "test_security.py",
    "test_explore_browser.py",
)


def pytest_addoption(parser):
    parser.addoption("--shuffle", metavar="SEED", help="run the files, and the tests of each file, in a random order")


def pytest_collection_modifyitems(config, items):
    """The files that take minutes come first: started last, one of them would keep a single worker busy at the end."""
    if seed := config.getoption("shuffle"):
        rng = random.Random(seed)
        files = {item.path: rng.random() for item in items}
        items.sort(key=lambda item: (files[item.path], rng.random()))
    else:
        items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
