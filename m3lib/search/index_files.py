"""What a search index knows of its pictures: names, tie keys and embeddings, in files that are mapped into memory.

The files of an index folder, movable as a whole (I pictures in the order of their manifest rows):

    index.json           format, settings of the variant and of the pictures, and the fingerprint of every other file
    taxonomy.json        attributes and classes
    model.safetensors    the network's weights
    items.parquet        a row per picture: image (name), row (of the prepared set's manifest), tie (see metrics)
    attribute.npy        (N, I, D) float16: f_n; this and the next two where the network gives them
    posterior.npy        (M, I) float16 class probabilities, a class after the other
    classes.npy          (M, I, d) float16: phi_m, a class after the other
    <n>.faiss            the faiss index of attribute n, see neighbors
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from m3lib.compatibility import SCORES
from m3lib.errors import InputError
from m3lib.retrieval import metrics, ranking
from m3lib.retrieval.ranking import KINDS, Embeddings
from m3lib.search.vector_index import Vectors
from m3lib.taxonomy import Taxonomy

FORMAT = 1  # of the folder; a change that old code would misread raises it
WHOLE = 1 << 24  # bytes up to which a file is fingerprinted whole
AGAIN = "run `dvc repro index` to make it anew"


@dataclass(frozen=True)
class Gallery:
    """The pictures of an index, embeddings mapped into memory; the letters as in `retrieval`."""

    taxonomy: Taxonomy
    names: pa.Array  # (I,) text
    rows: np.ndarray  # (I,) int64, rising: in the prepared set that the index was made of
    ties: np.ndarray  # (I,) int64
    attribute: np.ndarray | None  # (N, I, D) float16
    posterior: np.ndarray | None  # (M, I) float16
    classes: np.ndarray | None  # (M, I, d) float16

    def __len__(self) -> int:
        return len(self.rows)

    def position(self, name: str) -> int | None:
        """The number of the picture of that name."""
        found = pc.index(self.names, pa.scalar(name, self.names.type)).as_py()
        return found if found >= 0 else None

    def alone(self, attribute: int) -> Taxonomy:
        """The taxonomy of one attribute, which `of` speaks."""
        return Taxonomy((self.taxonomy.attributes[attribute],))

    def of(
        self,
        items: np.ndarray,
        attribute: int,
        classes: Sequence[int] | None = None,
        parts: Sequence[str] = KINDS,
    ) -> Embeddings:
        """What the embeddings of some pictures (B,) say of one attribute, or of some of its classes: N is 1."""
        own = np.arange(len(self.taxonomy.attributes[attribute].classes)) if classes is None else np.asarray(classes)
        columns = (self.taxonomy.classes_of(attribute).start + own)[:, None]
        f, p, phi = (getattr(self, part) if part in parts else None for part in KINDS)
        return Embeddings(
            torch.from_numpy(np.ascontiguousarray(items)),
            None if f is None else torch.from_numpy(f[attribute, items])[:, None],
            None if p is None else torch.from_numpy(p[columns, items]).T,
            None if phi is None else torch.from_numpy(phi[columns, items]).transpose(0, 1),
        )

    def vectors(self, score: str, side: Literal["query", "candidate"], attribute: int) -> Vectors:
        """The vectors of pictures, by their numbers, as a score's queries or candidates."""
        make = {"query": ranking.query_vectors, "candidate": ranking.candidate_vectors}[side]
        alone, parts = self.alone(attribute), SCORES[score]
        return lambda items: make(score, self.of(items, attribute, parts=parts), 0, alone).numpy()

    @cached_property
    def longest(self) -> np.ndarray:
        """(M,) the largest length of a phi_m: half precision takes unit rows past 1."""
        return np.array([max(map(longest_row, np.array_split(phi, 1 + len(phi) // 65536))) for phi in self.classes])


def longest_row(phi: np.ndarray) -> float:
    """Of (B, d) rows, the largest length."""
    return float(np.sqrt(np.square(phi, dtype=np.float64).sum(axis=1).max()))


def write(folder: Path, items: pd.DataFrame, blocks: Iterable[Embeddings], taxonomy: Taxonomy) -> None:
    """Write the pictures' names and embeddings, given block by block in the order of items (columns image, row).

    Memory holds one block. Raises InputError when there is no picture, or an embedding is NaN or infinite.
    """
    if items.empty:
        raise InputError("there is no picture to index: the gallery is empty (params.yaml, index.gallery)")
    folder.mkdir(parents=True)
    names = items["image"].tolist()
    table = {"image": names, "row": items["row"].to_numpy(np.int64), "tie": metrics.tie_keys(names).numpy()}
    pq.write_table(pa.table(table), folder / "items.parquet")
    taxonomy.save(folder / "taxonomy.json")
    files, start = {}, 0
    for block in blocks:
        check_finite(block, names[start : start + len(block.rows)])
        stop = start + len(block.rows)
        for name in KINDS:
            part = getattr(block, name)
            if part is None:
                continue
            part = part.half().transpose(0, 1).numpy()  # (N or M, B, ...)
            if name not in files:
                shape = (len(part), len(names), *part.shape[2:])
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
            files[name][:, start:stop] = part
        start = stop
    for file in files.values():
        file.flush()


def check_finite(block: Embeddings, names: list[str]) -> None:
    """Raise InputError for an embedding that is NaN or infinite, naming the picture."""
    for part in KINDS:
        values = getattr(block, part)
        bad = [] if values is None else (~values.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"the network's embedding ({part}) of {names[bad[0]]!r} holds NaN or infinite values, so nothing can "
                "be ranked by it: train the variant again with a smaller train.lr, or with train.precision fp32"
            )


def open_gallery(folder: Path) -> Gallery:
    """Map what `write` wrote; raises InputError when parts are missing, cut, or don't belong together."""
    try:
        taxonomy = Taxonomy.load(folder / "taxonomy.json")
        items = pq.read_table(folder / "items.parquet", memory_map=True).combine_chunks()
        parts = {
            name: np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None
            for name in KINDS
            for path in [folder / f"{name}.npy"]
        }
        names, rows, ties = (items.column(name).combine_chunks() for name in ("image", "row", "tie"))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{folder} can't be read as a search index ({error}); {AGAIN}") from None
    return Gallery(taxonomy, names, rows.to_numpy(), ties.to_numpy(), **parts)


def fingerprint(path: Path) -> str:
    """Of a file's size and bytes; of a file above 16 MB, of 4 KB at each of 256 places, so that opening stays quick.

    That tells files of different runs apart, not a flipped bit in between.
    """
    size, told = path.stat().st_size, hashlib.sha256()
    told.update(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            told.update(file.read())
        else:
            for place in np.linspace(0, size - 4096, 256).astype(int):
                file.seek(int(place))
                told.update(file.read(4096))
    return told.hexdigest()


def seal(folder: Path, settings: dict) -> None:
    """Write index.json, the last file: the settings, and the fingerprints of all others."""
    files = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT, **settings, "files": files}, indent=1, ensure_ascii=False)
    (folder / "index.json").write_text(text + "\n")


def check_seal(folder: Path) -> dict:
    """What index.json says, once the folder's files are those that it was written for.

    Raises InputError when there is no index, when it is of another format, or when a file is missing or another.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(f"there is no search index in {folder}: run `dvc repro index`, or give an index's folder")
    try:
        settings = json.loads(path.read_text())
        found, files = settings["format"], dict(settings["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); {AGAIN}") from None
    if found != FORMAT:
        raise InputError(f"{folder} is of format {found}, and this version of m3lib reads format {FORMAT}; {AGAIN}")
    for name, wanted in files.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}; copy the whole folder, or {AGAIN}")
        if fingerprint(folder / name) != wanted:
            raise InputError(f"{folder / name} is not the file that this index was made with (another run's?); {AGAIN}")
    return settings
