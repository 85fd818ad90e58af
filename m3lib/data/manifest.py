"""The manifest: the one table that every source becomes, and all that later stages know of the source.

A prepared folder holds `manifest.parquet` (one row per image), `taxonomy.json`, `protocol.json` (what makes a candidate
relevant, see `retrieval.ranking`) and an image store in the order of the rows, of one of two kinds (images.format):

    raw     images.npy: (I, H, W, 3) uint8
    jpeg    images.bin: JPEGs of quality 95 without chroma subsampling, one after the other
            images.idx.npy: (I + 1,) int64, image i is the bytes from index[i] up to index[i + 1]

The manifest's columns:

    image     text, unique: the path within the source, or the name of a drawn image
    split     train | valid | test, or none for an image without any label, which is neither trained on nor evaluated
    role      query | candidate in valid and test, empty in train; with the split none, why there is no label:
              unlabelled (no value) | rare (only classes that were dropped as rare)
    key       text whose hash decides a drawn split and role; images with equal keys belong together and share them
    labels    list of class ids, ascending; an attribute without a listed class is unknown for this image
    factor_*  finer hidden factors, from sources that know them; never trained on
    row       public benchmarks: the class id that a valid or test image has in the released split; else -1
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Split
from m3lib.data.store import JpegStore, open_store
from m3lib.errors import InputError
from m3lib.taxonomy import Taxonomy

COLUMNS = ("image", "split", "role", "labels")
BOTH = "both"  # the role of an image that asks all others, and is a candidate for them
LABELLED = (("train", ""), ("valid", "query"), ("valid", "candidate"), ("test", "query"), ("test", "candidate"))
SUBSETS = (*LABELLED, ("none", "unlabelled"), ("none", "rare"), ("valid", BOTH), ("test", BOTH))  # splits and roles


@dataclass(frozen=True)
class Source:
    """The result of a reader. Where it gives no split or role, the text is empty, and `prepare.splits` draws them.

    load: returns the image of manifest row i, (h, w, 3) uint8 RGB; picklable, since worker processes call it.
    notes: sentences on what was dropped or folded. relevance: what makes a candidate relevant, pair | any; the reader
    may say row, until `prepare.splits` has kept only the class of the row in valid and test. remedies: what to change
    if nothing can be trained ("train") or evaluated ("test"), or only a role of test is empty ("role"). signatures: of
    packed images, see `prepare.signatures`.
    """

    taxonomy: Taxonomy
    manifest: pd.DataFrame
    load: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()
    relevance: str = "pair"
    remedies: Mapping[str, str] = field(default_factory=dict)
    signatures: np.ndarray | None = None


@dataclass(frozen=True)
class Prepared:
    """An open prepared folder; images are mapped into memory."""

    taxonomy: Taxonomy
    manifest: pd.DataFrame
    images: np.ndarray | JpegStore  # (I, H, W, 3) uint8, read-only
    relevance: str = "pair"

    @cached_property
    def labels(self) -> np.ndarray:
        """(I, M) bool."""
        return multi_hot(self.manifest["labels"].tolist(), self.taxonomy.num_classes)

    def rows(self, split: str, role: str | None = None) -> np.ndarray:
        """Return the row numbers of a split, or of its queries or candidates (images may be both)."""
        in_role = True if role is None else self.manifest["role"].isin([role, BOTH])
        return np.flatnonzero((self.manifest["split"] == split) & in_role)

    @cached_property
    def groups(self) -> np.ndarray:
        """(I,) int: equal for images that must not answer each other, such as near-identical photos."""
        return pd.factorize(self.manifest["key" if "key" in self.manifest else "image"])[0]


def unit_hash(keys: Sequence[str], salt: str) -> np.ndarray:
    """Return (I,) floats in [0, 1) that depend on a key and the salt only, on every machine."""
    digests = (hashlib.blake2b(f"{salt}/{key}".encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])


def assign_splits(keys: Sequence[str], split: Split) -> np.ndarray:
    """Return (I,) train | valid | test by a hash of each key, so that rows with equal keys share a split.

    Of three keys or more, each split that has a share gets one; of five or more, valid and test get two. So only in a
    small set does a key's split depend on the other keys.
    """
    groups, which = np.unique(np.asarray(keys, dtype=object), return_inverse=True)
    u = unit_hash(groups, salted("split", split.seed))
    least = 2 if len(groups) >= 5 else int(len(groups) >= 3)
    least_test, least_valid = least * (split.test > 0), least * (split.valid > 0)
    test, both = np.count_nonzero(u < split.test), np.count_nonzero(u < split.test + split.valid)
    valid, most = both - test, max(0, len(groups) - (split.valid + split.test < 1))
    test = min(max(test, least_test), most - least_valid)
    valid = min(max(valid, least_valid), most - test)
    splits = np.full(len(groups), "train", dtype=object)
    order = np.argsort(u)
    splits[order[:test]], splits[order[test : test + valid]] = "test", "valid"
    return splits[which]


def salted(name: str, seed: int) -> str:
    """Return the salt of a draw; the seed 0 adds nothing."""
    return f"{name} {seed}" if seed else name


def assign_roles(keys: Sequence[str], splits: np.ndarray, query: float, seed: int = 0) -> np.ndarray:
    """Return (I,) query | candidate by a hash of each key, a share `query` of queries; empty in train.

    Of two keys or more in a split, the smallest hash is a query and the largest a candidate. Of a share of 1, all are
    both.
    """
    if query == 1:
        return np.where(splits == "train", "", BOTH).astype(object)
    u = unit_hash(keys, salted("role", seed))
    roles = np.where(u < query, "query", "candidate").astype(object)
    for split in ("valid", "test"):
        own = splits == split
        if 0 < query < 1 and len(set(u[own])) > 1:
            roles[own & (u == u[own].min())], roles[own & (u == u[own].max())] = "query", "candidate"
    return np.where(splits == "train", "", roles)


def multi_hot(labels: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Return (I, M) bool from one list of class ids per image."""
    hot = np.zeros((len(labels), num_classes), dtype=bool)
    for row, ids in enumerate(labels):
        hot[row, ids] = True
    return hot


def known_attributes(labels: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Return (I, N) bool from labels (I, M): whether the image has a class of the attribute."""
    return np.logical_or.reduceat(labels, taxonomy.offsets[:-1], axis=1)


def hold_out(prepared: Prepared, classes: Sequence[str]) -> Prepared:
    """Remove the labels of some classes from train and valid, but not from test.

    classes: "attribute: class" each. Raises InputError for a class that the taxonomy does not have.
    """
    ids = {m for text in classes for m in prepared.taxonomy.class_ids(str(text))}
    if not ids:
        return prepared
    manifest = prepared.manifest.copy()
    remaining = pd.Series([[m for m in row if m not in ids] for row in manifest["labels"]], index=manifest.index)
    manifest["labels"] = manifest["labels"].where(manifest["split"] == "test", remaining)
    return replace(prepared, manifest=manifest)


def check_source(source: Source) -> None:
    """Raise InputError if nothing can be trained, or nothing evaluated; `data.gaps` describes lesser gaps."""
    manifest, labelled = source.manifest, source.manifest["labels"].map(len) > 0
    faults = []
    for split, roles in (("train", {""}), ("test", {"query", "candidate"})):
        present = set(manifest["role"][labelled & (manifest["split"] == split)])
        present = roles if BOTH in present else roles & present
        if present != roles:
            missing = f"test {min(roles - present)}" if present else split
            advice = source.remedies.get("role" if present else split, f"add images with labels to {split}")
            faults.append(f"no {missing} image has a label: {advice}")
    if faults:
        raise InputError(*(["the data set"] if len(faults) > 1 else []), *faults)


def save(source: Source, folder: Path) -> None:
    """Write everything but the image store, which `prepare.pack` writes.

    Checks the source again, since images that could not be read may have emptied a subset.
    """
    check_source(source)
    source.taxonomy.save(folder / "taxonomy.json")
    (folder / "protocol.json").write_text(json.dumps({"relevance": source.relevance}) + "\n")
    source.manifest.to_parquet(folder / "manifest.parquet", index=False)


def open_prepared(folder: Path) -> Prepared:
    """Open a prepared folder; raises InputError if files are missing, damaged or don't belong together."""
    try:
        taxonomy = Taxonomy.load(folder / "taxonomy.json")
        relevance = json.loads((folder / "protocol.json").read_text())["relevance"]
        manifest, images = pd.read_parquet(folder / "manifest.parquet"), open_store(folder)
        if missing := [column for column in COLUMNS if column not in manifest]:
            raise ValueError(f"manifest.parquet has no column {missing[0]!r}")
        _, splits, roles, labels = (manifest[column] for column in COLUMNS)
        if len(manifest) != len(images):
            raise ValueError(f"{len(manifest)} rows in manifest.parquet and {len(images)} images don't match")
        if relevance not in ("pair", "any") or not set(zip(splits, roles, strict=True)) <= set(SUBSETS):
            raise ValueError("protocol.json or manifest.parquet is of another version")
        if not {m for ids in labels for m in ids} <= set(range(taxonomy.num_classes)):
            raise ValueError("manifest.parquet has labels that are no class ids of taxonomy.json")
    except Exception as error:  # json, pyarrow and numpy raise many types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "run `dvc repro prepare` first (with --force, if it skips the stage)"
        raise InputError(f"{folder} is not a prepared data set ({reason}); {advice}") from None
    return Prepared(taxonomy, manifest, images, relevance)
