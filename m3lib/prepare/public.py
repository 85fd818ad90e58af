"""The public benchmarks, from their official downloads and the split files that all published rows use.

A data set's own module reads what its download says of every photo (`Known`); here this is brought together with the
released query and candidate files (`released`), or with a draw where they are not there, and becomes a `Source`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Benchmark, Settings, data_path
from m3lib.data.manifest import Source, assign_splits, unit_hash
from m3lib.errors import InputError
from m3lib.prepare import asen_split, pack
from m3lib.prepare.photos import PhotoLoader
from m3lib.taxonomy import Taxonomy

PROTOCOLS = {"deepfashion": "pair", "fashionai": "row", "darn": "row"}  # behind the published tables


@dataclass(frozen=True)
class Known:
    """What a download says of its photos.

    labels: photo to its class ids, rising, in the order of the files; None where the released files alone know them.
    told_by: the file that says so. splits: photo to train | valid | test, where the download has its own.
    boxes: photo to (left, top, right, bottom) in pixels. doubtful: photos to leave out of training.
    """

    taxonomy: Taxonomy
    labels: dict[str, list[int]] | None
    told_by: str = ""
    splits: dict[str, str] | None = None
    boxes: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Need:
    """A part of a download. paths: any one of them will do, relative to the folder. optional: what happens without."""

    paths: tuple[str, ...]
    what: str
    optional: str = ""

    def found(self, folder: Path) -> Path | None:
        return next((folder / path for path in self.paths if (folder / path).exists()), None)


SPLIT_NEED = Need(
    ("filenames_test.txt",),
    "filenames_, query_ and candidate_ of valid and test (.txt): the split of all published rows",
    optional="the split is drawn, and written to data/prepared/split/",
)


@dataclass(frozen=True)
class Dataset:
    """One public benchmark. photos: where the photos' paths start, any one of them; origin: where it is had."""

    name: str
    needs: tuple[Need, ...]
    photos: Need
    origin: str
    read: Callable[[Path, Settings], Known]


def folder_of(name: str, settings: Benchmark) -> Path:
    return data_path(settings.folder or f"data/{name}")


def survey(dataset: Dataset, folder: Path) -> tuple[str, bool]:
    """One screen on what is there, what is missing, and where it is had; and whether the data set can be read."""
    lines, missing = [f"{dataset.name}, looked for in {folder}", ""], 0
    for need in (*dataset.needs, dataset.photos, SPLIT_NEED):
        found = need.found(folder)
        lines.append(f"  {'there  ' if found else 'missing'}  {' or '.join(need.paths)}: {need.what}")
        if not found and need.optional:
            lines.append(f"           can be done without: {need.optional}")
        missing += not found and not need.optional
    lines += ["", dataset.origin, "The split files of the published rows: data.zip of github.com/Maryeon/asen."]
    lines.append(
        f"Put what is missing there as it was downloaded, or set benchmark.folder in params.yaml ({missing} missing)."
        if missing
        else f"All that is needed is there: dvc exp run -S source={dataset.name} -S preset=published (or preset=mini)."
    )
    return "\n".join(lines), not missing


def read(dataset: Dataset, settings: Settings) -> Source:
    """The data set as a source; raises InputError naming file, line or photo of the first fault."""
    folder = folder_of(dataset.name, settings.benchmark)
    if not survey(dataset, folder)[1]:
        raise InputError(f"{dataset.name} is not complete in {folder}; `make data SOURCE={dataset.name}` says what is")
    known = dataset.read(folder, settings)
    frame, notes = split_up(known, folder, settings)
    frame, shared = take_share(frame, settings.benchmark.share)
    base = dataset.photos.found(folder).parent
    frame, gone = leave_out_missing(frame, base, settings.images.max_bad)
    protocol = settings.benchmark.protocol
    protocol = PROTOCOLS[dataset.name] if protocol == "published" else protocol
    frame = asked(frame, protocol)
    frame, unlabelled = with_labels(frame)
    boxes, boxless = boxes_of(known, frame)
    return Source(
        known.taxonomy,
        frame,
        PhotoLoader(base, tuple(frame["image"]), boxes),
        (*known.notes, *notes, *shared, *gone, *unlabelled, *boxless, f"protocol: {protocol}"),
        "any" if protocol == "any" else "pair",
    )


def split_up(known: Known, folder: Path, settings: Settings) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A row per photo: image, split, role, labels (all that is known), row (the class of its released row, or -1)."""
    if asen_split.has_parts(folder):
        return released_split(known, folder)
    if known.labels is None:
        raise InputError(f"{folder}: no split files (filenames_test.txt and so on), and no labels to draw a split from")
    names = [name for name, ids in known.labels.items() if ids]
    labels = [known.labels[name] for name in names]
    if known.splits is None:
        splits = assign_splits(names, settings.split)
    else:
        absent = next((name for name in names if name not in known.splits), None)
        if absent:
            raise InputError(f"{folder}: the download's own partition does not name {absent!r}, which has labels")
        splits = np.array([known.splits[name] for name in names])
    rows = asen_split.draw_rows(names, labels)
    roles = asen_split.draw_roles(names, rows, splits, settings.split.query, known.taxonomy)
    rows = np.where(splits == "train", -1, rows)
    kept = [s != "train" or name not in known.doubtful for name, s in zip(names, splits, strict=True)]
    frame = pd.DataFrame({"image": names, "split": splits, "role": roles, "labels": labels, "row": rows})[kept]
    note = "no released split files: valid and test, queries and candidates were drawn, data/prepared/split/ holds them"
    empty = left_out(len(known.labels), len(names), "without a label")
    return frame.reset_index(drop=True), (note, *empty, *left_out(len(names), len(frame), "marked doubtful"))


def released_split(known: Known, folder: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """As `split_up`, by the released files; every row's class is checked against what the download says."""
    parts = {split: asen_split.read_part(folder, split, known.taxonomy) for split in asen_split.HELD_OUT}
    held_out: dict[str, str] = {}
    frames = []
    for split, part in parts.items():
        for name, class_id, (path, line) in zip(part.names, part.classes, part.lines, strict=True):
            if name in held_out:
                raise InputError(f"{path}, line {line}: {name!r} is in {held_out[name]} already")
            held_out[name] = split
            check_row(known, name, class_id, f"{path}, line {line}")
        labels = [[m] for m in part.classes] if known.labels is None else [known.labels[name] for name in part.names]
        frames.append(
            pd.DataFrame(
                {"image": part.names, "split": split, "role": part.roles, "labels": labels, "row": part.classes}
            )
        )
    names, labels = train_part(known, folder, held_out)
    kept = [(name, ids) for name, ids in zip(names, labels, strict=True) if name not in known.doubtful and ids]
    train = pd.DataFrame(kept, columns=["image", "labels"]).assign(split="train", role="", row=-1)
    notes = [*parts["valid"].notes, *parts["test"].notes, *left_out(len(names), len(kept), "doubtful or without label")]
    columns = ["image", "split", "role", "labels", "row"]
    return pd.concat([train[columns], *frames], ignore_index=True), tuple(notes)


def check_row(known: Known, name: str, class_id: int, where: str) -> None:
    if known.labels is None:
        return
    if name not in known.labels:
        raise InputError(f"{where}: {known.told_by} does not name {name!r}")
    if class_id not in known.labels[name]:
        said = ", ".join(map(known.taxonomy.full_name, known.labels[name])) or "nothing"
        told = known.taxonomy.full_name(class_id)
        raise InputError(f"{where}: {name!r} is {told!r} here, and {said} in {known.told_by}")


def train_part(known: Known, folder: Path, held_out: dict[str, str]) -> tuple[list[str], list[list[int]]]:
    """Names and labels to train on: of the released files, or every other photo that the download labels."""
    if not asen_split.there(asen_split.train_files(folder)):
        if known.labels is None:
            raise InputError(f"{folder}: nothing to train on; put filenames_train.txt and label_train.txt there")
        names = [name for name in known.labels if name not in held_out]
        return names, [known.labels[name] for name in names]
    filenames, label_file = asen_split.train_files(folder)
    names = asen_split.read_names(filenames)
    for number, name in enumerate(names, 1):
        if name in held_out:
            raise InputError(f"{filenames}, line {number}: {name!r} is in {held_out[name]} as well")
        if known.labels is not None and name not in known.labels:
            raise InputError(f"{filenames}, line {number}: {known.told_by} does not name {name!r}")
    if known.labels is not None:
        return names, [known.labels[name] for name in names]
    return names, asen_split.read_labels(label_file, len(names), known.taxonomy)


def take_share(frame: pd.DataFrame, share: float) -> tuple[pd.DataFrame, tuple[str, ...]]:
    if share == 1:
        return frame, ()
    kept = frame[unit_hash(frame["image"].tolist(), "share") < share].reset_index(drop=True)
    return kept, (f"{len(kept)} of {len(frame)} photos are used (benchmark.share): no figure to compare",)


def leave_out_missing(frame: pd.DataFrame, base: Path, max_bad: float) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Without the photos that are gone; raises InputError when their share is above max_bad."""
    here = np.array([os.path.isfile(base / name) for name in frame["image"]])  # False too for a name too long
    if here.all():
        return frame, ()
    first = frame["image"].iloc[int(np.argmin(here))]
    counted = f"{(~here).sum()} of {len(frame)} photos are missing in {base}"
    if pack.too_many(int((~here).sum()), len(frame), max_bad):
        raise InputError(
            f"{counted}, more than the share images.max_bad = {max_bad:g} in params.yaml allows; the first is {first!r}"
        )
    return frame[here].reset_index(drop=True), (f"{counted} and left out, the first is {first!r}",)


def asked(frame: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Under the protocol `row`, a photo of valid or test is asked for the class of its row alone."""
    if protocol != "row":
        return frame
    own = [[int(m)] if m >= 0 else ids for ids, m in zip(frame["labels"], frame["row"], strict=True)]
    return frame.assign(labels=own)


def with_labels(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    known = frame["labels"].map(len) > 0
    return frame[known].reset_index(drop=True), left_out(len(frame), int(known.sum()), "without a label")


def boxes_of(known: Known, frame: pd.DataFrame) -> tuple[tuple, Sequence[str]]:
    """Each photo's box, or None where the download has none; empty where boxes are not asked for."""
    if not known.boxes:
        return (), ()
    boxes = tuple(known.boxes.get(name) for name in frame["image"])
    whole = boxes.count(None)
    return boxes, (f"{whole} of {len(boxes)} photos have no bounding box and are used whole",) if whole else ()


def left_out(total: int, kept: int, why: str) -> Sequence[str]:
    return (f"{total - kept} of {total} photos are left out: {why}",) if kept < total else ()
