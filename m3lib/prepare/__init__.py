"""Read a source of images into a manifest, and pack its images into one store.

photos        decode and fit photos
contents      digests of photos, kept between runs
pack          pack the images of any source into the image store
signatures    a small signature of each photo
duplicates    pairs of near-identical photos, from their signatures
splits        draw splits and roles; photos that belong together share them
catalogue     reader of your own photos and a CSV table; table reads its cells, photo_names finds the photos, and
              labels and spelling make classes
wardrobe      reader of Wardrobe, the benchmark that is rendered here
public        reader of the public benchmarks; with asen_split, the split files that all published results use
deepfashion   annotations of DeepFashion (Category and Attribute Prediction)
fashionai     annotations of FashionAI
darn          annotations of DARN
"""

from dataclasses import replace

from m3lib.config import Settings
from m3lib.data.manifest import Source, check_source
from m3lib.prepare import catalogue, darn, deepfashion, fashionai, public, splits
from m3lib.taxonomy import Taxonomy

DATASETS = {dataset.name: dataset for dataset in (deepfashion.DATASET, fashionai.DATASET, darn.DATASET)}


def read(settings: Settings) -> Source:
    """Read the source that the settings name; raises InputError if it can't be used for training and evaluation."""
    if settings.source == "csv":
        source = catalogue.read(settings.csv, settings.images.max_unreadable)
    elif settings.source == "wardrobe":
        from m3lib.prepare import wardrobe  # only here: other sources don't need the drawing code

        source = wardrobe.read(settings.wardrobe)
    else:
        source = public.read(DATASETS[settings.source], settings)
    return check(source, settings)


def check(source: Source, settings: Settings) -> Source:
    """Return a source with its remedies; raises InputError if its splits leave nothing to train or to evaluate."""
    source = replace(source, remedies=remedies(settings))
    check_source(splits.draw(source, settings.split))  # the final draw also knows which photos are near-identical
    return source


def taxonomy_of(settings: Settings) -> Taxonomy:
    """Return the classes of a source other than csv, without reading labels."""
    if settings.source == "wardrobe":
        from m3lib.prepare import wardrobe  # only here: other sources don't need the drawing code

        return wardrobe.taxonomy_of(settings.wardrobe.track)
    dataset = DATASETS[settings.source]
    return dataset.taxonomy(public.folder_of(dataset.name, settings.benchmark))


def remedies(settings: Settings) -> dict[str, str]:
    """Return what a person can change if no image with a label is in "train" or "test", or has one "role" of test."""
    ways = {"train": "lower split.valid and split.test", "test": "raise split.test"}
    ways["role"] = f"{ways['test']}, or set split.query nearer to 0.5"
    if settings.source == "csv" and (column := settings.csv.split_column):
        given = {split: f"mark labelled photos as {split} in the column {column!r}" for split in ("train", "test")}
        return given | {"role": f"{given['test']}, or set split.query nearer to 0.5"}
    ways = {split: way if ", or " in way else f"or {way}" for split, way in ways.items()}
    if settings.source == "wardrobe":
        return {split: f"raise wardrobe.images, {way}" for split, way in ways.items()}
    if settings.source == "csv":
        lower = "lower csv.min_images, " * (settings.csv.min_images > 1)
        return {split: f"add photos with labels, {lower}{way}" for split, way in ways.items()}
    complete = f"complete the download (`make data SOURCE={settings.source}` lists its files)"
    in_preset = "fraction" in settings.presets[settings.preset].get("benchmark", {})
    fraction = f"raise presets.{settings.preset}.benchmark.fraction" if in_preset else "raise benchmark.fraction"
    return dict.fromkeys(ways, fraction if settings.benchmark.fraction < 1 else complete)
