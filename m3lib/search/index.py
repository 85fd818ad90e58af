"""Search a catalogue by attribute and by class: `Index.open(folder).search(image, attribute="neckline", k=10)`.

By attribute, images are ranked with the score of the indexed variant (see `retrieval`). By some of its classes m, the
score of an image c is the mean of p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2: does c show the class, and is it similar to
the query q in the class-specific embedding space? Without class-specific embeddings it is the mean of p_m(c). Ties are
broken by a hash of the image's name, as in `retrieval.metrics` (in LanceDB, among few images beyond the k best).

An engine holds the images and finds the nearest of a query: `faiss_engine` in files that never change, `lance_engine`
in a database (index.engine in params.yaml).
"""

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.torch import load_file

from m3lib import config, systems
from m3lib.data import store
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.prepare import photos
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.scores import query_vectors
from m3lib.search import query as inputs
from m3lib.search.catalogue import class_agreement
from m3lib.search.query import Query
from m3lib.search.threads import one_thread
from m3lib.systems.base import System
from m3lib.taxonomy import Taxonomy, nearest
from m3lib.training import inference
from m3lib.validation import validate

FORMAT = 3  # of the folder; raised with every change that older code would misread
ENGINES = ("faiss", "lancedb")
REBUILD_HINT = "run `dvc repro index` to rebuild it"


@dataclass(frozen=True)
class Match:
    """One result of a search."""

    path: str  # the image's name in the manifest, or the one it was added with
    score: float
    class_: str | None  # the class that adds most to the score, else the most probable; None without probabilities
    row: int | None  # in the prepared manifest; None for an image that was added later


@dataclass(frozen=True)
class Index:
    """An index folder, opened for searching. It can be moved and copied, and needs nothing else but `index.uri`."""

    folder: Path
    variant: config.Variant
    image_settings: config.Images
    taxonomy: Taxonomy
    system: System
    engine: Any  # FaissEngine or LanceEngine

    @classmethod
    @one_thread()
    def open(cls, folder: str | Path | None = None) -> "Index":
        """Open the folder that the stage `index` wrote; by default, data/index of the repository.

        Raises InputError if there is none, if it has another format, or if a file is missing or damaged.
        """
        folder = Path(folder) if folder is not None else config.find_root() / "data" / "index"
        if not (folder / "index.json").is_file():
            raise InputError(f"there is no search index in {folder}: run `dvc repro index`, or name an index folder")
        try:
            content = json.loads((folder / "index.json").read_text())
            if content["format"] != FORMAT:
                raise InputError(f"it has format {content['format']}, but m3lib reads {FORMAT}")
            variant = validate(config.Variant, content["variant"], "variant", "index.json is damaged")
            image_settings = validate(config.Images, content["images"], "images", "index.json is damaged")
            taxonomy = Taxonomy.load(folder / "taxonomy.json")
            system = load_system(variant, taxonomy, folder / "model.safetensors")
            engine = engine_of(content["engine"]).open(folder, content, taxonomy, variant.score)
        except Exception as error:  # the readers of these files raise many types on damaged ones
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".partition(";")[0]
            raise InputError(f"{folder} can't be read as a search index ({reason}); {REBUILD_HINT}") from None
        return cls(folder, variant, image_settings, taxonomy, system, engine)

    def __len__(self) -> int:
        return len(self.engine)

    @property
    def attributes(self) -> list[str]:
        return self.taxonomy.names

    def classes(self, attribute: str) -> list[str]:
        return list(self.taxonomy.attributes[self.number(attribute)].classes)

    @property
    def images(self) -> list[str]:
        """The names of all images, as in the manifest."""
        return self.engine.images.tolist()

    @property
    def rows(self) -> np.ndarray:
        """The rows of these images in the prepared manifest; -1 for one that was added later."""
        return self.engine.images.index.to_numpy()

    @one_thread()
    def search(
        self, image: Query, attribute: str, classes: str | Iterable[str] = (), k: int = 10, where: str = ""
    ) -> list[Match]:
        """Return the k images most similar to a query by an attribute, or by some of its classes; best first.

        They are fewer if the condition `where` leaves fewer.

        image: a text or path that names an existing file is that file; otherwise it is the name of an image of the
        index. A number is the manifest row of an image of the index, such as `Match.row`. where: a condition on the
        columns of `index.columns`, in SQL: "gender = 'women' and price < 50"; the engine lancedb only.

        With the scores attribute, segment, concat and top_class, an image of the index finds itself first, up to the
        rounding of half precision. With the other scores and by classes, an image with more certain classes may win.
        Raises InputError for an image that can't be read, an unknown attribute or class, and a k out of range.
        """
        n, names, k = self.number(attribute), self.classes(attribute), inputs.count(k, len(self))
        classes = inputs.class_names(classes)
        numbers = [names.index(nearest(name, names, f"class of {attribute!r}")) for name in classes]
        query = self.embed(image, n)
        if numbers and query.posterior is None:
            raise InputError(
                f"the indexed variant {self.variant.name} has no class probabilities, so it can't be searched by "
                "class: leave the classes out, or index another variant (params.yaml, index.variant)"
            )
        if numbers:
            found = self.engine.by_classes(query, n, numbers, k, where)
        else:
            found = self.engine.by_attribute(query_vectors(self.variant.score, query)[0].numpy(), n, k, where)
        best = self.matched_classes(query, found.embeddings, numbers)
        return [
            Match(name, score, None if m is None else names[m], row)
            for name, row, score, m in zip(found.names, found.rows, found.scores.tolist(), best, strict=True)
        ]

    @one_thread()
    def add(self, image: Query, name: str = "", columns: dict[str, Any] | None = None) -> None:
        """Embed a photo and add it to the index, in place of one of the same name; the engine lancedb only.

        It is found by every search that starts after this call, here and, a second later, in other processes. name: by
        default, the path. columns: values of `index.columns`. Raises InputError for a photo that can't be read, an
        unknown column, or an index that can't be changed.
        """
        if not (name := name or (os.fspath(image) if isinstance(image, str | os.PathLike) else "")):
            raise InputError("give the photo a name: it is no file, whose path could name it")
        embeddings = inference.embed(self.system, self.as_data_set(image), np.array([0]), self.variant.train.precision)
        self.engine.add(name, embeddings, columns or {})

    def delete(self, name: str) -> None:
        """Remove an image from the index. Raises InputError if it holds none of that name, or can't be changed."""
        self.engine.delete(name)

    @one_thread()
    def attention_maps(self, image: Query, attribute: str, class_: str | None = None) -> dict[str, np.ndarray]:
        """Return the attention (H, W) to an attribute and to one of its classes, by name ("sleeve", "sleeve: long").

        The maps lie on the image as `read` returns it; each sums to about 1. A network without attention has no maps.
        The index holds no pixels, so the image can't be one of the index.
        """
        labels = [] if class_ is None else [self.taxonomy.class_id(attribute, class_)]
        photo, n = self.as_data_set(image, labels), self.number(attribute)
        maps = inference.attention_maps(self.system, photo, np.array([0]), self.variant.train.precision)
        names = {"attribute": attribute, "class": class_ and f"{attribute}: {class_}"}
        return {name: maps[kind][0, n].numpy() for kind, name in names.items() if name and kind in maps}

    def read(self, image: Query) -> np.ndarray:
        """(H, W, 3) uint8: an image decoded, fitted and stored with the settings of the indexed ones."""
        if self.stored(image) is not None:
            raise InputError(f"the index holds no pixels of its image {image!r}: give a file, a PIL image or an array")
        settings = self.image_settings
        fitted = photos.fit(inputs.decode(image), settings.height, settings.width, settings.fit)
        if settings.format == "raw":
            return fitted
        return np.array(Image.open(io.BytesIO(store.encode(fitted, settings.format))))

    def check(self, prepared: Prepared) -> None:
        """Raise InputError unless the index was built from this prepared set, so that `Match.row` is a row of it."""
        names, own = prepared.manifest["image"], self.engine.images
        own = own[own.index >= 0]
        if own.index.max() >= len(names) or names.iloc[own.index].tolist() != own.tolist():
            raise InputError(f"{self.folder} is an index of other images than the prepared ones; {REBUILD_HINT}")

    def number(self, attribute: str) -> int:
        return self.attributes.index(nearest(attribute, self.attributes, "attribute"))

    def stored(self, image: Query) -> Embeddings | None:
        """The embeddings of an image of the index; None for any other image. See `search`."""
        if isinstance(image, int | np.integer) and not isinstance(image, bool):
            return self.engine.stored(None, int(image))
        if not isinstance(image, str | os.PathLike) or os.path.isfile(image):
            return None
        return self.engine.stored(str(image))

    def embed(self, image: Query, n: int) -> Embeddings:
        """Return an image's embeddings for attribute n: stored ones for an image of the index, else computed."""
        embeddings = self.stored(image)
        if embeddings is None:
            photo, precision = self.as_data_set(image), self.variant.train.precision
            embeddings = inference.embed(self.system, photo, np.array([0]), precision)
        return embeddings.of_attribute(n, self.taxonomy)

    def as_data_set(self, image: Query, labels: Sequence[int] = ()) -> Prepared:
        """Return an image, with class ids as labels, as the only one of a prepared data set."""
        return Prepared(self.taxonomy, pd.DataFrame({"labels": [labels]}), self.read(image)[None])

    def matched_classes(self, query: Embeddings, matches: Embeddings, classes: list[int]) -> list[int | None]:
        """(B,) the class number within its attribute that adds most to the score of each match, see `Match`."""
        if matches.posterior is None:
            return [None] * len(matches.rows)
        by_phi = matches.classes is not None and (classes or self.variant.score == "weighted")
        phi = (matches.classes.numpy(), query.classes.numpy()) if by_phi else (None, None)
        strength = class_agreement(matches.posterior.numpy(), *phi)  # (B, M_n)
        if classes:
            return [classes[m] for m in strength[:, classes].argmax(axis=1)]
        if self.variant.score in ("posterior", "weighted", "open", "soft_segment"):
            strength = strength * query.posterior.double().numpy()
        return strength.argmax(axis=1).tolist()


def engine_of(name: str) -> type:
    """The class of an engine, whose packages are imported when it is used."""
    if name == "lancedb":
        os.environ.setdefault("LANCEDB_LOG", "error")  # read at the import; else it warns of its own upkeep
        from m3lib.search.lance_engine import LanceEngine

        return LanceEngine
    from m3lib.search.faiss_engine import FaissEngine

    return FaissEngine


def load_system(variant: config.Variant, taxonomy: Taxonomy, path: Path) -> System:
    """Return a variant's trained network; raises InputError if the file is missing or holds another network."""
    offline = replace(variant.model, pretrained=False, weights="", local_weights="")  # the file holds all weights
    system = systems.build(replace(variant, model=offline), taxonomy)
    try:
        system.load_state_dict(load_file(path))
    except Exception as error:
        raise InputError(f"{path} doesn't hold the weights of {variant.name}; run `dvc repro train`") from error
    return system.eval()
