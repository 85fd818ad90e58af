"""Real product photos written in DeepFashion's layout give the same numbers as their CSV."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from downloads import CLOTH_FILE, LABEL_FILE, write
from m3lib import config
from m3lib import prepare as sources
from m3lib.data import manifest
from m3lib.data.manifest import Prepared, Source
from m3lib.prepare import asen_split, pack
from m3lib.retrieval import metrics, ranking
from m3lib.retrieval.embeddings import broadcast_over_attributes
from m3lib.taxonomy import Taxonomy
from m3lib.training import inference
from m3lib.training.run import fit
from tiny import ROOT, SETTINGS, make_variant

CATALOGUE = ROOT.parent / "shared/catalogue"
COLUMNS = ("gender", "category", "colour", "season", "usage")  # of the catalogue; DeepFashion's five types here
COUNT = 480
STORE = config.Images(height=32, width=24, fit="pad", format="raw", max_unreadable=0.0)
pytestmark = pytest.mark.skipif(not CATALOGUE.is_dir(), reason="the product photos of ../shared are not here")


def sample() -> list[dict[str, str]]:
    """Return rows of the catalogue at equal distances."""
    with (CATALOGUE / "catalogue.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] for name in COLUMNS)]
    return rows[:: len(rows) // COUNT][:COUNT]


def split_of(i: int) -> tuple[str, str]:
    """Return split and role of photo i: half of them train, then valid and test, a third of both are queries."""
    if i < COUNT // 2:
        return "train", ""
    return ("valid", "test")[i >= COUNT * 3 // 4], ("query", "candidate", "candidate")[i % 3]


def copy_photos(folder: Path, rows: list[dict[str, str]], name: str) -> list[str]:
    """Copy photos to names of the layout's form; return the names."""
    names = []
    for i, row in enumerate(rows):
        names.append(name.format(group=i // 40, i=i))
        (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CATALOGUE / row["image"], folder / names[-1])
    return names


def by_csv(folder: Path, names: list[str], rows: list[dict[str, str]]) -> Source:
    """Read the same photos and labels from a CSV table; it can't name roles, so they are set afterwards."""
    columns = list(COLUMNS)
    table = pd.DataFrame(rows)[columns].assign(image=names, part=[split_of(i)[0] for i in range(len(names))])
    table.to_csv(folder / "table.csv", index=False)
    path, changes = str(folder / "table.csv"), {"attributes": columns, "multi": columns, "min_images": 1}
    settings = replace(SETTINGS.csv, table=path, split_column="part", **changes)
    source = sources.catalogue.read(settings, 0.0)
    return replace(source, manifest=source.manifest.assign(role=[split_of(i)[1] for i in range(len(names))]))


def write_split(folder: Path, names: list[str], labels: list[list[int]], taxonomy: Taxonomy) -> None:
    """The released files; a photo's row has its first class."""
    parts = [split_of(i) for i in range(len(names))]
    frame = pd.DataFrame({"image": names, "split": [s for s, _ in parts], "role": [r for _, r in parts]})
    asen_split.write(frame.assign(labels=labels, row=[ids[0] for ids in labels]), taxonomy, folder)


def read_benchmark(name: str, folder: Path, protocol: str) -> Source:
    benchmark = replace(SETTINGS.benchmark, folder=str(folder), protocol=protocol)
    return sources.read(replace(SETTINGS, source=name, benchmark=benchmark))


def prepare(source: Source, folder: Path) -> Prepared:
    folder.mkdir()
    manifest.save(sources.splits.draw(pack.pack(source, folder, STORE), SETTINGS.split), folder)
    return manifest.open_prepared(folder)


def by_histogram(prepared: Prepared) -> dict[str, dict]:
    """The metrics of a ranking by colour, which needs no training."""
    rows = np.sort(np.concatenate([prepared.rows("valid"), prepared.rows("test")]))
    bins = (prepared.images[rows] // 64).astype(np.int64) @ np.array([16, 4, 1])  # (I, H, W)
    vectors = torch.from_numpy(np.stack([np.bincount(picture.ravel(), minlength=64) for picture in bins]) ** 0.5)
    embedded = broadcast_over_attributes(rows, vectors, prepared.taxonomy)
    return {
        split: metrics.summarise(ranking.evaluate(prepared, split, "attribute", embedded))
        for split in ("valid", "test")
    }


def without_names(summary: dict) -> dict:
    """Attributes by their place: the layouts name them otherwise."""
    found = {
        key: value | {"attributes": list(value["attributes"].values())}
        for key, value in summary.items()
        if key != "queries"
    }
    return found | {"queries": list(summary["queries"].values())}


def test_in_deepfashions_layout_a_training_gives_the_numbers_of_the_csv(tmp_path):
    rows = sample()
    names = copy_photos(tmp_path, rows, "img/Garment_{group}/img_{i:08}.jpg")
    table = by_csv(tmp_path, names, rows)
    taxonomy, labels = table.taxonomy, table.manifest["labels"].tolist()
    classes = [(class_, n + 1) for n, attribute in enumerate(taxonomy.attributes) for class_ in attribute.classes]
    write(
        tmp_path / CLOTH_FILE, [str(len(classes)), "name type", *(f"{class_:<30} {kind}" for class_, kind in classes)]
    )
    hot = np.where(manifest.multi_hot(labels, len(classes)), 1, -1)
    lines = [f"{name:<50} " + " ".join(f"{v:2}" for v in row) for name, row in zip(names, hot, strict=True)]
    write(tmp_path / LABEL_FILE, [str(len(lines)), "image_name attribute_labels", *lines])
    write_split(tmp_path, names, labels, taxonomy)
    found = {}
    for name, source in {"csv": table, "deepfashion": read_benchmark("deepfashion", tmp_path, "published")}.items():
        prepared = prepare(source, tmp_path / f"prepared-{name}")
        assert prepared.manifest["labels"].map(list).tolist() == labels
        variant = make_variant("m3", epochs=1, batch=32)
        system, curves = fit(prepared, variant, 0, 1, tmp_path / f"{name}.safetensors")
        test = np.sort(prepared.rows("test"))
        scores = ranking.evaluate(prepared, "test", "weighted", inference.embed(system, prepared, test, "fp32"))
        found[name] = [
            curves.to_dict("records"),
            without_names(metrics.summarise(scores)),
            without_names(by_histogram(prepared)["test"]),
        ]
    assert found["csv"] == found["deepfashion"]
    assert found["csv"][2]["map_all"]["overall_by_query"] > 0.1
