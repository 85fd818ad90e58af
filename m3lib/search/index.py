"""Search a catalogue by attribute and by class: `Index.open(folder).search(image, attribute="neckline", k=10)`.

By attribute, images are ranked with the score of the indexed variant (see `retrieval`). By some of its classes m, the
score of an image c is the mean of p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2: does c show the class, and is it similar to
the query q in the class-specific embedding space? Without class-specific embeddings it is the mean of p_m(c). Ties are
broken by a hash of the image's name, as in `retrieval.metrics`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import torch
from PIL import Image

from m3lib import config
from m3lib.data import batches, store
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.prepare import photos
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.scores import query_vectors
from m3lib.search import index_files, vector_index
from m3lib.search.index_files import REBUILD_HINT
from m3lib.systems.base import System
from m3lib.taxonomy import nearest
from m3lib.training import inference

Query = str | Path | Image.Image | np.ndarray  # a file, or the name of an image of the index; (H, W, 3) uint8


@dataclass(frozen=True)
class Match:
    """One result of a search."""

    path: str  # the image's name in the manifest
    score: float
    class_: str | None  # the class that adds most to the score, else the most probable; None without probabilities
    row: int  # in the prepared manifest


class Index:
    """An index folder, opened for searching. The folder can be moved and copied, and needs no other file."""

    def __init__(self, folder: Path) -> None:
        self.variant, self.image_settings = index_files.read_manifest(folder)
        self.folder, self.catalogue = folder, index_files.load_catalogue(folder)
        self.system = index_files.load_system(self.variant, self.catalogue.taxonomy, folder / "model.safetensors")
        self.faiss_indexes: dict[int, faiss.Index] = {}

    @classmethod
    def open(cls, folder: str | Path | None = None) -> "Index":
        """Open the folder that the stage `index` wrote; by default, data/index of the repository.

        Raises InputError if there is none, if it has another format, or if a file is missing or damaged.
        """
        return cls(Path(folder) if folder is not None else config.find_root() / "data" / "index")

    def __len__(self) -> int:
        return len(self.catalogue)

    @property
    def attributes(self) -> list[str]:
        return self.catalogue.taxonomy.names

    def classes(self, attribute: str) -> list[str]:
        return list(self.catalogue.taxonomy.attributes[self.number(attribute)].classes)

    @cached_property
    def images(self) -> list[str]:
        """The names of all images, as in the manifest."""
        return self.catalogue.names.to_pylist()

    def search(self, image: Query, attribute: str, classes: str | Sequence[str] = (), k: int = 10) -> list[Match]:
        """Return the k images most similar to a query by an attribute, or by some of its classes; best first.

        With the scores attribute, segment, concat and top_class, an image of the index finds itself first, up to the
        rounding of half precision. With the other scores and by classes, an image with more certain classes may win.
        Raises InputError for an image that can't be read, an unknown attribute or class, and a k out of range.
        """
        n, names = self.number(attribute), self.classes(attribute)
        classes = dict.fromkeys([classes] if isinstance(classes, str) else classes)
        numbers = [names.index(nearest(name, names, f"class of {attribute!r}")) for name in classes]
        if not 1 <= k <= len(self):
            raise InputError(f"k is {k}, but the index holds {len(self)} images: use a k from 1 to {len(self)}")
        query = self.embed(image, n)
        if numbers and query.posterior is None:
            raise InputError(
                f"the indexed variant {self.variant.name} has no class probabilities, so it can't be searched by "
                "class: leave the classes out, or index another variant (params.yaml, index.variant)"
            )
        if numbers:
            items, scores = self.catalogue.rank_by_classes(query, n, numbers, k)
        else:
            vector = query_vectors(self.variant.score, query)[0].numpy()
            candidates = self.catalogue.vectors(self.variant.score, "candidate", n)
            items, scores = vector_index.rank(self.faiss_index(n), candidates, vector, self.catalogue.ties, k)
        best = self.matched_classes(query, self.catalogue.for_attribute(items, n), numbers)
        return [
            Match(self.catalogue.names[i].as_py(), score, None if m is None else names[m], int(self.catalogue.rows[i]))
            for i, score, m in zip(items.tolist(), scores.tolist(), best, strict=True)
        ]

    def query_vector(self, image: Query, attribute: str) -> np.ndarray:
        """(V,) float32: its inner product with an exported vector of the attribute is the score of a search."""
        return query_vectors(self.variant.score, self.embed(image, self.number(attribute)))[0].numpy()

    def attention_maps(self, image: Query, attribute: str, class_: str | None = None) -> dict[str, np.ndarray]:
        """Return the attention (H, W) to an attribute and to one of its classes, by name ("sleeve", "sleeve: long").

        The maps lie on the image as `read` returns it; each sums to about 1. A network without attention has no maps.
        The index holds no pixels, so the image can't be a name of the index.
        """
        pixels = torch.from_numpy(self.read(image))[None]
        outputs, maps = inference.predict(self.system, pixels, self.variant.train.precision), {}
        if outputs.attribute_maps is not None:
            maps[attribute] = outputs.attribute_maps[:, [self.number(attribute)]]  # (1, 1, P)
        if outputs.class_maps is not None and class_ is not None:
            class_id = self.catalogue.taxonomy.class_id(attribute, class_)
            maps[f"{attribute}: {class_}"] = outputs.class_maps[:, [class_id]]
        size = batches.to_tensor(pixels)
        maps = {name: inference.upsample_attention(self.system, size, level) for name, level in maps.items()}
        return {name: levels[0, 0].cpu().numpy() for name, levels in maps.items()}

    def read(self, image: Query) -> np.ndarray:
        """(H, W, 3) uint8: an image decoded, fitted and stored with the settings of the indexed ones."""
        settings = self.image_settings
        fitted = photos.fit(decode(image), settings.height, settings.width, settings.fit)
        if settings.store == "raw":
            return np.array(fitted)  # a copy, because torch needs writable memory
        return decode(Image.open(io.BytesIO(store.encode(fitted, settings.store))))

    def check(self, prepared: Prepared) -> None:
        """Raise InputError unless the index was built from this prepared set, so that `Match.row` is a row of it."""
        names, rows = prepared.manifest["image"], self.catalogue.rows
        if rows[-1] >= len(names) or names.iloc[rows].tolist() != self.images:
            raise InputError(f"{self.folder} is an index of other images than the prepared ones; {REBUILD_HINT}")

    def number(self, attribute: str) -> int:
        return self.attributes.index(nearest(attribute, self.attributes, "attribute"))

    def faiss_index(self, n: int) -> faiss.Index:
        """Return the faiss index of attribute n, read from its file at the first use."""
        path = self.folder / f"{n}.faiss"
        try:
            if n not in self.faiss_indexes:
                self.faiss_indexes[n] = faiss.read_index(str(path))
        except RuntimeError as error:
            raise InputError(f"{path} can't be read ({' '.join(str(error).split())[:200]}); {REBUILD_HINT}") from None
        return self.faiss_indexes[n]

    def embed(self, image: Query, n: int) -> Embeddings:
        """Return an image's embeddings for attribute n: stored ones for an image of the index, else computed."""
        if isinstance(image, str | Path) and (position := self.catalogue.position(str(image))) is not None:
            return self.catalogue.for_attribute(np.array([position]), n)
        embeddings = embed_image(self.system, self.read(image), self.variant.train.precision)
        index_files.check_finite(embeddings, ["the image"])
        return embeddings.of_attribute(n, self.catalogue.taxonomy)

    def matched_classes(self, query: Embeddings, matches: Embeddings, classes: list[int]) -> list[int | None]:
        """(B,) the class number within its attribute that adds most to the score of each match, see `Match`."""
        if matches.posterior is None:
            return [None] * len(matches.rows)
        by_phi = matches.classes is not None and (classes or self.variant.score == "weighted")
        phi = (matches.classes.numpy(), query.classes.numpy()) if by_phi else (None, None)
        strength = vector_index.class_agreement(matches.posterior.numpy(), *phi)  # (B, M_n)
        if classes:
            return [classes[m] for m in strength[:, classes].argmax(axis=1)]
        if self.variant.score in ("posterior", "weighted"):
            strength = strength * query.posterior.double().numpy()
        return strength.argmax(axis=1).tolist()


@torch.no_grad()
def embed_image(system: System, image: np.ndarray, precision: str) -> Embeddings:
    """Return the embeddings of one image (H, W, 3) uint8, in half precision, on the CPU."""
    outputs = inference.predict(system, torch.from_numpy(image)[None], precision)
    values = system.retrieval_embedding(outputs), system.class_probabilities(outputs), outputs.classes
    return Embeddings(torch.zeros(1, dtype=torch.int64), *(None if v is None else v.half().cpu() for v in values))


def decode(image: Query) -> np.ndarray:
    """(h, w, 3) uint8 of a file, a PIL image or an array; raises InputError if it can't be read as one."""
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise InputError(f"{str(image)!r} is neither a photo that exists nor the name of an image of the index")
        return photos.decode(Path(image))
    if isinstance(image, Image.Image):
        try:
            return np.array(photos.to_rgb(photos.upright(image)))
        except Exception as error:  # PIL decodes pixels late, and raises any exception on damaged files
            raise InputError(f"the image can't be read ({error})") from None
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        return image
    got = f"{image.dtype} {image.shape}" if is_array else type(image).__name__
    raise InputError(f"the image has to be a file, a PIL image or an (H, W, 3) uint8 array, not {got}")
