"""Read a public benchmark from its official download.

The module of each data set reads its annotation files (`Annotations`). Here they are joined with the split files that
all published results use (`asen_split`), or with a drawn split if those files are missing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Benchmark, Settings, data_path
from m3lib.data.manifest import Source, unit_hash
from m3lib.errors import InputError
from m3lib.prepare import asen_split
from m3lib.prepare.pack import check_missing
from m3lib.prepare.photos import PhotoLoader
from m3lib.taxonomy import Taxonomy


@dataclass(frozen=True)
class Annotations:
    """The contents of a download's annotation files.

    labels: photo -> class ids, ascending, in the order of the files; None if only the released split files have them.
    file: the name of the file with the labels. splits: photo -> train | valid | test, if the download has a split.
    """

    taxonomy: Taxonomy
    labels: dict[str, list[int]] | None
    file: str = ""
    splits: dict[str, str] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class RequiredFile:
    """A file or folder of a download, under any of several paths. instead: the files that replace it, all together."""

    paths: tuple[str, ...]
    what: str
    instead: tuple[str, ...] = ()

    def find(self, folder: Path) -> Path | None:
        """Return its path inside a folder, if it exists and is not empty."""
        return next((folder / path for path in self.paths if asen_split.is_filled(folder / path)), None)

    def is_missing(self, folder: Path) -> bool:
        replaced = self.instead and all(asen_split.is_filled(folder / name) for name in self.instead)
        return not (self.find(folder) or replaced)

    def fault(self, folder: Path) -> str:
        lacking = [name for name in self.instead if not asen_split.is_filled(folder / name)]
        instead = f", and the released split, which could replace it, lacks {', '.join(lacking)}" if lacking else ""
        return asen_split.fault(folder, *self.paths) + instead


def never(folder: Path) -> Iterator[str]:
    """The faults of a download whose files do not depend on each other."""
    yield from ()


@dataclass(frozen=True)
class Dataset:
    """A public benchmark.

    files: what a download holds; photos: where paths of photos start; origin: a sentence on where to download it;
    taxonomy: returns the classes; faults: yields sentences on files that are missing beside others.
    """

    name: str
    files: tuple[RequiredFile, ...]
    photos: RequiredFile
    origin: str
    protocol: str  # of the published results
    read: Callable[[Path], Annotations]
    taxonomy: Callable[[Path], Taxonomy]
    faults: Callable[[Path], Iterator[str]] = never
    quick: bool = True  # whether its label files are read in seconds


SPLIT_FILES = {
    asen_split.HELD_OUT_FILES: "the split of all published rows; without it, one is drawn to data/prepared/split/",
    asen_split.TRAIN_FILES: "its training photos and their labels",
}
ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tar.gz", ".tgz")


def folder_of(name: str, settings: Benchmark) -> Path:
    """Return the folder of a benchmark's download."""
    return data_path(settings.folder or f"data/{name}")


def incomplete(dataset: Dataset, folder: Path) -> list[str]:
    """Return a sentence on each file without which a download can't be read."""
    files = (*dataset.files, dataset.photos)
    faults = [file.fault(folder) for file in files if file.is_missing(folder)]
    faults += [sentence for names in SPLIT_FILES if (sentence := asen_split.half_there(folder, names))]
    faults += dataset.faults(folder)
    return [*faults, *advice(dataset, folder)] if faults else []


def advice(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Yield what to do about files that lie elsewhere: in a folder further down, or in an archive."""
    inside = sorted(entry for entry in folder.glob("*") if entry.is_dir())
    for file in (*dataset.files, dataset.photos):
        for deeper in inside if file.is_missing(folder) else []:
            if file.find(deeper):
                yield f"{deeper} holds {file.find(deeper).relative_to(deeper)}: set benchmark.folder to that folder"
                return
    archives = sorted(p for f in (folder, *inside) for p in f.glob("*") if p.name.lower().endswith(ARCHIVES))
    if archives:
        yield f"unpack {', '.join(str(path.relative_to(folder)) for path in archives)}"


def survey(dataset: Dataset, folder: Path) -> tuple[str, bool]:
    """Return a text on which files of a download exist and where to get the others, and whether it can be read."""
    lines, faults = [f"{dataset.name}, expected in {folder}", ""], incomplete(dataset, folder)
    for file in (*dataset.files, dataset.photos):
        line = f"{' or '.join(file.paths)}: {file.what}"
        note = f" (not needed beside {', '.join(file.instead)})" if file.instead else ""
        lines.append(f"  {'found  ' if file.find(folder) else 'missing'}  {line}{note}")
    for names, what in SPLIT_FILES.items():
        found = asen_split.all_exist(folder, names)
        lines.append(f"  {'found  ' if found else 'missing'}  {', '.join(names)}: {what} (optional)")
    lines += ["", dataset.origin, "The split files of the published rows: data.zip of github.com/Maryeon/asen."]
    if faults:
        lines += ["", "It can't be read yet:", *(f"  {fault}" for fault in faults)]
        lines.append("Put the missing files there as downloaded, or set benchmark.folder in params.yaml.")
    else:
        command = f"dvc exp run -S source={dataset.name} -S preset=published"
        lines.append(f"All required files are there: {command} (or preset=mini).")
    return "\n".join(lines), not faults


def read(dataset: Dataset, settings: Settings) -> Source:
    """Return a data set as a source; raises InputError naming file, line or photo of the first fault."""
    benchmark, folder = settings.benchmark, folder_of(dataset.name, settings.benchmark)
    if faults := incomplete(dataset, folder):
        problem = f"{dataset.name} is not complete in {folder}: {'; '.join(faults)}"
        raise InputError(f"{problem} (`make data SOURCE={dataset.name}` lists all files)")
    annotations = dataset.read(folder)
    if asen_split.all_exist(folder, asen_split.HELD_OUT_FILES):
        frame, notes = released_split(annotations, folder)
    else:
        frame, notes = drawn_split(annotations, folder)
    labelled = frame["labels"].map(len) > 0
    notes = [*annotations.notes, *notes, *left_out(len(frame), labelled.sum())]
    frame = frame[labelled]
    if benchmark.fraction < 1:
        total, frame = len(frame), frame[unit_hash(frame["image"], "share") < benchmark.fraction]
        notes.append(f"{len(frame)} of {total} photos are used (benchmark.fraction): results can't be compared")
    base = dataset.photos.find(folder).parent
    exists = np.array([os.path.isfile(base / name) for name in frame["image"]], bool)  # Path's raises on long names
    missing = [repr(str(base / name)) for name in frame["image"][~exists]]
    notes += check_missing(missing, len(frame), settings.images.max_unreadable)
    protocol = dataset.protocol if benchmark.protocol == "published" else benchmark.protocol
    notes.append(f"protocol: {protocol}")
    frame = frame[exists].assign(key=frame["image"]).reset_index(drop=True)
    return Source(annotations.taxonomy, frame, PhotoLoader(base, tuple(frame["image"])), tuple(notes), protocol)


def drawn_split(annotations: Annotations, folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return one row per labelled photo: image, split, role (empty: `splits` draws it), labels, row (a drawn class)."""
    names = [name for name, ids in annotations.labels.items() if ids]
    labels = [annotations.labels[name] for name in names]
    splits = ""
    if annotations.splits is not None:
        if absent := [name for name in names if name not in annotations.splits]:
            raise InputError(f"{folder}: the download's partition does not name {absent[0]!r}, which has labels")
        splits = [annotations.splits[name] for name in names]
    rows = asen_split.draw_rows(names, labels)
    frame = pd.DataFrame({"image": names, "split": splits, "role": "", "labels": labels, "row": rows})
    note = "no released split files: valid and test, queries and candidates are drawn; data/prepared/split/ has them"
    return frame, [note, *left_out(len(annotations.labels), len(names))]


def released_split(annotations: Annotations, folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of `drawn_split` from the released files; raises InputError if they contradict the labels."""
    frames, notes, splits = [], [], {}
    for split in asen_split.HELD_OUT:
        frame, note = asen_split.read_held_out(folder, split, annotations.taxonomy)
        for name, class_id, where in zip(frame["image"], frame["row"], frame.pop("where"), strict=True):
            if name in splits:
                raise InputError(f"{where}: {name!r} is in {splits[name]} already")
            check_row(annotations, name, class_id, where)
            splits[name] = split
        labels = annotations.labels or {name: [m] for name, m in zip(frame["image"], frame["row"], strict=True)}
        frames.append(frame.assign(split=split, labels=[labels[name] for name in frame["image"]]))
        notes += note
    labels = released_train_labels(annotations, folder, splits)
    columns = {"image": list(labels), "split": "train", "role": "", "labels": list(labels.values()), "row": -1}
    return pd.concat([pd.DataFrame(columns), *frames], ignore_index=True), notes


def check_row(annotations: Annotations, name: str, class_id: int | None, where: str) -> None:
    """Raise InputError if the download's labels do not name a photo of the released split, or lack its class."""
    if annotations.labels is None:
        return
    if name not in annotations.labels:
        raise InputError(f"{where}: {annotations.file} does not name {name!r}")
    if class_id is not None and class_id not in annotations.labels[name]:
        full_name = annotations.taxonomy.full_name
        labels = ", ".join(map(full_name, annotations.labels[name])) or "without labels"
        raise InputError(f"{where}: {name!r} is {full_name(class_id)!r} here, but {labels} in {annotations.file}")


def released_train_labels(annotations: Annotations, folder: Path, splits: dict[str, str]) -> dict[str, list[int]]:
    """Return photo -> class ids of train: the released photos, or every photo outside valid and test."""
    labels = annotations.labels
    if not asen_split.all_exist(folder, asen_split.TRAIN_FILES):
        return {name: ids for name, ids in labels.items() if name not in splits}
    names = asen_split.read_names(folder / "filenames_train.txt")
    for name, where in names.items():
        if name in splits:
            raise InputError(f"{where}: {name!r} is in {splits[name]} as well")
        check_row(annotations, name, None, where)
    if labels is not None:
        return {name: labels[name] for name in names}
    rows = asen_split.read_rows(folder / "label_train.txt", len(names), annotations.taxonomy)
    return {name: rows[i][1] if i in rows else [] for i, name in enumerate(names)}


def left_out(total: int, used: int) -> list[str]:
    """Return a note on photos without a label, if there are any."""
    return [f"{total - used} of {total} photos are left out: without a label"] if used < total else []
