"""The files of an index folder, which can be moved as a whole; embeddings are mapped into memory.

    index.json               format, settings of the variant and of the images, and the size of every other file
    taxonomy.json            attributes and classes
    model.safetensors        the network's weights
    images.parquet           one row per image: image (name), tie (see retrieval.metrics)
    embeddings.safetensors   as in data/embeddings: manifest rows, f_n, class probabilities and phi_m in half precision
    <n>.faiss                the faiss index of attribute n, see vector_index

Letters: I images in the order of their manifest rows, N attributes, M classes, B images at a time.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file

from m3lib import config, systems
from m3lib.compatibility import SCORES
from m3lib.errors import InputError
from m3lib.retrieval import metrics, scores
from m3lib.retrieval.embeddings import KINDS, Embeddings
from m3lib.search import vector_index
from m3lib.search.vector_index import Vectors
from m3lib.systems.base import System
from m3lib.taxonomy import Taxonomy
from m3lib.validation import validate

FORMAT = 2  # of the folder; raised with every change that older code would misread
REBUILD_HINT = "run `dvc repro index` to rebuild it"


@dataclass(frozen=True)
class Catalogue:
    """The images of an index and their embeddings."""

    taxonomy: Taxonomy
    names: pa.Array  # (I,) text
    ties: np.ndarray  # (I,) int64
    embeddings: Embeddings

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> np.ndarray:
        """(I,) int64, rising: the images' rows in the prepared manifest."""
        return self.embeddings.rows.numpy()

    def position(self, name: str) -> int | None:
        """Return the number of the image with this name."""
        number = pc.index(self.names, pa.scalar(name, self.names.type)).as_py()
        return number if number >= 0 else None

    def for_attribute(self, items: np.ndarray, attribute: int) -> Embeddings:
        """Return the embeddings of images (B,) for one attribute and its classes, so N is 1."""
        return self.embeddings.of_attribute(attribute, self.taxonomy).at(items)

    def vectors(self, score: str, side: Literal["query", "candidate"], attribute: int) -> Vectors:
        """Return a function from image numbers to their vectors as queries or candidates of a score."""
        stored = self.embeddings.of_attribute(attribute, self.taxonomy)
        stored = replace(stored, **{kind: None for kind in KINDS if kind not in SCORES[score]})
        to_vectors = {"query": scores.query_vectors, "candidate": scores.candidate_vectors}[side]
        return lambda items: to_vectors(score, stored.at(items)).numpy()

    def rank_by_classes(
        self, query: Embeddings, attribute: int, classes: list[int], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k items with the largest score by classes (numbers within the attribute), and their scores."""
        ids = self.taxonomy.classes_of(attribute).start + np.array(classes)
        posterior = self.embeddings.posterior.T[ids].numpy()  # (K, I)
        if self.embeddings.classes is None:
            return vector_index.rank_by_classes(posterior, None, None, self.ties, k)
        phi, query_phi = self.embeddings.classes, query.classes[:, classes].numpy()
        return vector_index.rank_by_classes(
            posterior, lambda items: phi[items[:, None], ids].numpy(), query_phi, self.ties, k
        )


def save_images(folder: Path, names: list[str], taxonomy: Taxonomy) -> None:
    pq.write_table(pa.table({"image": names, "tie": metrics.tie_keys(names).numpy()}), folder / "images.parquet")
    taxonomy.save(folder / "taxonomy.json")


def check_finite(embeddings: Embeddings, names: list[str]) -> None:
    """Raise InputError naming the first image whose embedding is NaN or infinite."""
    for kind in KINDS:
        values = getattr(embeddings, kind)
        if values is not None and not values.isfinite().all():
            name = names[int(values.flatten(1).isfinite().all(dim=1).int().argmin())]
            raise InputError(
                f"the network's embedding ({kind}) of {name!r} holds NaN or infinite values, so nothing can be ranked "
                "by it: train the variant again with a smaller train.lr, or with train.precision fp32"
            )


def load_catalogue(folder: Path) -> Catalogue:
    """Map the names and embeddings of a folder; raises InputError if they can't be read."""
    try:
        taxonomy = Taxonomy.load(folder / "taxonomy.json")
        images = pq.read_table(folder / "images.parquet", memory_map=True).combine_chunks()
        names, ties = (images.column(name).combine_chunks() for name in ("image", "tie"))
        return Catalogue(taxonomy, names, ties.to_numpy(), Embeddings.load(folder / "embeddings.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        reason = str(error).partition(";")[0]
        raise InputError(f"{folder} can't be read as a search index ({reason}); {REBUILD_HINT}") from None


def load_system(variant: config.Variant, taxonomy: Taxonomy, path: Path) -> System:
    """Return a variant's trained network; raises InputError if the file is missing or holds another network."""
    offline = replace(variant.model, pretrained=False, weights="", local_weights="")  # the file holds all weights
    system = systems.build(replace(variant, model=offline), taxonomy)
    try:
        system.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} doesn't hold the weights of {variant.name} ({reason}); run `dvc repro train`"
        ) from None
    return system.eval()


def write_manifest(folder: Path, settings: dict) -> None:
    """Write index.json, the last file of a folder: its format, the settings, and the sizes of all other files."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT, **settings, "files": files}, indent=1, ensure_ascii=False)
    (folder / "index.json").write_text(text + "\n")


def read_manifest(folder: Path) -> tuple[config.Variant, config.Images]:
    """Return the settings in index.json.

    Raises InputError if there is no index, if it has another format, or if a file is missing or has another size.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(f"there is no search index in {folder}: run `dvc repro index`, or name an index folder")
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise InputError(f"{folder} has format {content['format']}, but m3lib reads {FORMAT}; {REBUILD_HINT}")
        for name, size in content["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise InputError(f"{folder} lacks {name} or a part of it: copy the whole folder, or {REBUILD_HINT}")
        sections = {"variant": config.Variant, "images": config.Images}
        return tuple(validate(cls, content[name], name, f"{path} is damaged") for name, cls in sections.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {REBUILD_HINT}") from None
