"""The one manifest: what every source becomes, and all that the later stages know of it.

A prepared folder holds `manifest.parquet` (a row per image), `taxonomy.json`, and an image store, whose picture i is
the image of manifest row i, in one of two kinds (images.store in params.yaml):

    raw     images.npy: (I, H, W, 3) uint8
    jpeg    images.bin: the pictures one after the other, each a JPEG of quality 95 without chroma subsampling;
            images.idx.npy: (I + 1,) int64, picture i is the bytes from index[i] up to index[i + 1]

The manifest's columns:

    image   text, unique: the path within the source, or a drawn image's name
    split   train | valid | test
    role    query | candidate in valid and test, empty in train
    labels  list of class ids, rising; an attribute of which no class is listed is unknown for this image
    factor_*  finer hidden factors where a source knows them (never trained on)
    row     public benchmarks: class id of the row that stands for a valid or test photo in the released split; else -1

`protocol.json` says what makes a candidate right: {"relevance": "pair" | "any"}, see `retrieval.evaluate`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Split
from m3lib.data.store import JpegStore, open_store
from m3lib.errors import InputError
from m3lib.taxonomy import Taxonomy

COLUMNS = ("image", "split", "role", "labels")
PARTS = (("train", ""), ("valid", "query"), ("valid", "candidate"), ("test", "query"), ("test", "candidate"))


@dataclass(frozen=True)
class Source:
    """What a reader returns: `load(i)` gives the picture of manifest row i, (height, width, 3) uint8 RGB.

    load is called from worker processes, so it must be picklable. notes: sentences on what was dropped or folded.
    relevance: what makes a candidate right, see `metrics`: pair | any.
    """

    taxonomy: Taxonomy
    manifest: pd.DataFrame
    load: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()
    relevance: str = "pair"


def unit_hash(keys: Sequence[str], salt: str) -> np.ndarray:
    """(I,) float in [0, 1): the same key gives the same number on every machine, in any order of rows."""
    digests = (hashlib.blake2b(f"{salt}/{key}".encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])


def assign_splits(keys: Sequence[str], split: Split) -> np.ndarray:
    """(I,) train | valid | test by a stable hash of each key: rows with one key never straddle two splits."""
    u = unit_hash(keys, "split")
    return np.where(u < split.test, "test", np.where(u < split.test + split.valid, "valid", "train"))


def assign_roles(keys: Sequence[str], splits: np.ndarray, query: float) -> np.ndarray:
    """(I,) query | candidate in valid and test, empty in train: images are cut at random, 1:4 in the ASEN protocol."""
    roles = np.where(unit_hash(keys, "role") < query, "query", "candidate")
    return np.where(splits == "train", "", roles)


def multi_hot(labels: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """(I, M) bool from lists of class ids."""
    hot = np.zeros((len(labels), num_classes), dtype=bool)
    for row, ids in enumerate(labels):
        hot[row, ids] = True
    return hot


def known_attributes(hot: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """(I, N) bool: the attributes of which an image carries at least one class."""
    return np.logical_or.reduceat(hot, taxonomy.offsets[:-1], axis=1)


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, images mapped into memory."""

    taxonomy: Taxonomy
    manifest: pd.DataFrame
    images: np.ndarray | JpegStore  # (I, H, W, 3) uint8, read-only
    relevance: str = "pair"

    @cached_property
    def labels(self) -> np.ndarray:
        """(I, M) bool."""
        return multi_hot(self.manifest["labels"].tolist(), self.taxonomy.num_classes)

    def rows(self, split: str, role: str | None = None) -> np.ndarray:
        """Row numbers of a split, or of its queries or candidates alone."""
        chosen = self.manifest["split"] == split
        if role is not None:
            chosen &= self.manifest["role"] == role
        return np.flatnonzero(chosen)


def hold_out(prepared: Prepared, classes: Sequence[str]) -> Prepared:
    """The same pictures with some classes unseen: their labels are taken from train and valid, and stay in test.

    classes: "attribute: class" each. Raises InputError for one that the taxonomy does not know.
    """
    gone = set()
    for text in classes:
        attribute, _, class_ = str(text).partition(": ")
        gone.add(prepared.taxonomy.class_id(attribute, class_))
    if not gone:
        return prepared
    manifest = prepared.manifest.copy()
    learned = manifest["split"] != "test"
    kept = [[m for m in ids if m not in gone] for ids in manifest["labels"]]
    manifest["labels"] = pd.Series(kept, index=manifest.index).where(learned, manifest["labels"])
    return replace(prepared, manifest=manifest)


def check_source(source: Source) -> None:
    """Raise InputError unless there is something to train on, to ask, and to answer with, for every attribute."""
    manifest, taxonomy = source.manifest, source.taxonomy
    known = known_attributes(multi_hot(manifest["labels"].tolist(), taxonomy.num_classes), taxonomy)
    for split, role in [
        ("train", ""),
        ("valid", "query"),
        ("valid", "candidate"),
        ("test", "query"),
        ("test", "candidate"),
    ]:
        chosen = (manifest["split"] == split).to_numpy() & (manifest["role"] == role).to_numpy()
        empty = [name for name, count in zip(taxonomy.names, known[chosen].sum(axis=0), strict=True) if not count]
        if empty:
            part = f"{split} {role}".strip()
            raise InputError(
                f"no {part} image has a label for {', '.join(empty)}: add images, raise the share of {split} "
                "in params.yaml (split), or leave the attribute out"
            )


def save(source: Source, folder: Path) -> None:
    """Write manifest.parquet, taxonomy.json and protocol.json; the image store is packed by `images.pack`.

    Checks once more: pictures that could not be read may have emptied a part.
    """
    check_source(source)
    source.taxonomy.save(folder / "taxonomy.json")
    (folder / "protocol.json").write_text(json.dumps({"relevance": source.relevance}) + "\n")
    source.manifest.to_parquet(folder / "manifest.parquet", index=False)


def open_prepared(folder: Path) -> Prepared:
    """Open what 01_prepare wrote; raises InputError when it is missing or its parts don't belong together."""
    try:
        taxonomy = Taxonomy.load(folder / "taxonomy.json")
        relevance = json.loads((folder / "protocol.json").read_text())["relevance"]
        manifest = pd.read_parquet(folder / "manifest.parquet")
        images = open_store(folder)
    except Exception as error:  # whatever json, pyarrow and numpy raise on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder} is not a prepared data set ({reason}); run `dvc repro prepare` first") from None
    if fault := find_fault(taxonomy, manifest, images, relevance):
        raise InputError(f"{folder}: {fault}; run `dvc repro --force prepare`")
    return Prepared(taxonomy, manifest, images, relevance)


def find_fault(taxonomy: Taxonomy, manifest: pd.DataFrame, images: np.ndarray | JpegStore, relevance: object) -> str:
    """What does not belong together in a prepared folder, perhaps of another version; empty if all does."""
    missing = [column for column in COLUMNS if column not in manifest]
    if missing:
        return f"manifest.parquet has no column {missing[0]!r}"
    if len(manifest) != len(images):
        return f"{len(manifest)} rows in manifest.parquet and {len(images)} pictures don't match"
    if relevance not in ("pair", "any"):
        return f"protocol.json asks for the relevance {relevance!r}, expected pair or any"
    if not set(zip(manifest["split"], manifest["role"], strict=True)) <= set(PARTS):
        return "manifest.parquet has a split or role that this version does not know"
    try:
        ids = np.concatenate([np.asarray(labels) for labels in manifest["labels"]] or [np.empty(0, np.int64)])
    except ValueError:
        return "manifest.parquet has labels that are no lists of class ids"
    if len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= taxonomy.num_classes):
        return f"manifest.parquet has a label that is none of taxonomy.json's {taxonomy.num_classes} class ids"
    return ""
