"""Search a catalogue by attribute and by class: `Index.open(folder).search(image, attribute="neckline", k=10)`.

The pipeline's stage `index` builds the folder; `gallery` says what is in it, `neighbors` how it is ranked. By an
attribute, pictures are ranked with the score of the variant that was indexed (`retrieval.similarity`). By chosen
classes of it, a picture's score is the mean over these classes of p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2: does it
carry the class, and is it like the query in that class's space; where the network has no phi, the mean of p_m(c).
Equal scores fall by a hash of the picture's name, as in `metrics`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from m3lib import config, systems
from m3lib.data import batches, store
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.prepare import photos
from m3lib.retrieval import ranking
from m3lib.retrieval.ranking import Embeddings
from m3lib.search import index_files, vector_index
from m3lib.search.index_files import Gallery
from m3lib.taxonomy import Taxonomy, nearest
from m3lib.training import inference

Picture = str | Path | Image.Image | np.ndarray  # a file, or a picture's name in the index; (H, W, 3) uint8


@dataclass(frozen=True)
class Match:
    """A picture that was found."""

    path: str  # as in the manifest
    score: float
    class_: str | None  # that added most to the score, else its most probable one; None without class probabilities
    row: int  # of the prepared set that the index was made of


class Index:
    """A catalogue that can be searched. Its folder may be moved and copied; it needs no other file."""

    def __init__(self, folder: Path, settings: dict) -> None:
        self.folder, self.gallery = folder, index_files.open_gallery(folder)
        self.pictures = config.build(config.Images, settings["pictures"], "pictures")
        self.variant = read_variant(settings["variant"])
        self.system = load_system(self.variant, self.gallery.taxonomy, folder / "model.safetensors")
        self.loaded: dict[int, faiss.Index] = {}

    @classmethod
    def open(cls, run: str | Path | None = None) -> "Index":
        """Open the folder that the stage `index` wrote; without a name, data/index of the repository.

        Raises InputError when there is none, when it is of another format, or when its files don't belong together.
        """
        folder = Path(run) if run is not None else config.find_root() / "data" / "index"
        settings = index_files.check_seal(folder)
        try:
            return cls(folder, settings)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / 'index.json'} is damaged ({error!r}); {index_files.AGAIN}") from None

    def __len__(self) -> int:
        return len(self.gallery)

    @property
    def attributes(self) -> list[str]:
        return self.gallery.taxonomy.names

    def classes(self, attribute: str) -> list[str]:
        return list(self.gallery.taxonomy.attributes[self.number(attribute)].classes)

    @cached_property
    def images(self) -> list[str]:
        """The names of all pictures, as in the manifest."""
        return self.gallery.names.to_pylist()

    def search(self, image: Picture, attribute: str, classes: Sequence[str] = (), k: int = 10) -> list[Match]:
        """The k pictures most like an image under an attribute, or in some of its classes; best first.

        A picture of the index finds itself first by the scores attribute, segment, concat and top_class, as far as half
        precision goes. By posterior, soft_segment, weighted and by classes, one of more certain classes may beat it.
        Raises InputError for an image that can't be read, an unknown attribute or class, and a k out of range.
        """
        n = self.number(attribute)
        known, wanted = self.classes(attribute), [classes] if isinstance(classes, str) else classes
        chosen = [known.index(nearest(name, known, f"class of {attribute!r}")) for name in dict.fromkeys(wanted)]
        if not 1 <= k <= len(self):
            raise InputError(f"k is {k}, but the index holds {len(self)} pictures: ask for 1 to {len(self)} of them")
        query = self.embed(image, n)
        if chosen:
            if query.posterior is None:
                raise InputError(
                    f"the indexed variant {self.variant.name} gives no class probabilities, so it can't be searched by "
                    "class: leave the classes out, or index another variant (params.yaml, index.variant)"
                )
            items, scores = by_classes(self.gallery, query, n, chosen, k)
        else:
            vectors, ask = self.gallery.vectors(self.variant.score, "candidate", n), self.query(query, n)
            items, scores = vector_index.rank(self.index_of(n), vectors, ask, self.gallery.ties, k)
        made = self.made_by(query, self.gallery.of(items, n), chosen)
        rows = zip(items.tolist(), scores.tolist(), made, strict=True)
        return [
            Match(self.gallery.names[i].as_py(), score, None if m is None else known[m], int(self.gallery.rows[i]))
            for i, score, m in rows
        ]

    def look(self, image: Picture, attribute: str) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
        """Where the network looks in an image: "attribute", (H, W) float32, and "classes", such a map by class.

        The maps lie on the image as it was fitted (`read`); each sums to about 1. What a network does not give is
        left out. The index holds no pictures, so the image has to be given as one.
        """
        n, picture = self.number(attribute), one(self.read(image), self.gallery.taxonomy)
        outputs = inference.forward(self.system, picture, np.array([0]), self.variant.train.precision)
        of_attribute, of_classes = outputs.attribute_maps, outputs.class_maps  # (1, N, P), (1, M, P)
        found, pixels = {}, batches.to_tensor(picture.images)
        if of_attribute is not None:
            found["attribute"] = inference.at_pixels(self.system, pixels, of_attribute[:, [n]])[0, 0].numpy()
        if of_classes is not None:
            own = of_classes[:, self.gallery.taxonomy.classes_of(n)]
            maps = inference.at_pixels(self.system, pixels, own)[0].numpy()
            found["classes"] = dict(zip(self.classes(attribute), maps, strict=True))
        return found

    def read(self, image: Picture) -> np.ndarray:
        """(H, W, 3) uint8: a picture as the indexed ones were read, fitted and stored."""
        picture = photos.fit(decode(image), self.pictures.height, self.pictures.width, self.pictures.fit)
        if self.pictures.store == "raw":
            return np.array(picture)  # a copy: torch wants to be able to write
        return decode(Image.open(io.BytesIO(store.encode(picture, self.pictures.store))))

    def check(self, prepared: Prepared) -> None:
        """Raise InputError unless the rows of this index are those of a prepared set, whose pictures can be shown."""
        names = prepared.manifest["image"]
        if self.gallery.rows[-1] >= len(names) or names.iloc[self.gallery.rows].tolist() != self.images:
            raise InputError(f"{self.folder} is an index of other pictures than the prepared ones; {index_files.AGAIN}")

    def number(self, attribute: str) -> int:
        return self.attributes.index(nearest(attribute, self.attributes, "attribute"))

    def index_of(self, n: int) -> faiss.Index:
        """The faiss index of attribute n, read when first asked for."""
        if n not in self.loaded:
            self.loaded[n] = faiss.read_index(str(self.folder / f"{n}.faiss"))
        return self.loaded[n]

    def embed(self, image: Picture, n: int) -> Embeddings:
        """What the network says of an image under attribute n; of a picture of the index, what it said before."""
        position = self.gallery.position(str(image)) if isinstance(image, str | Path) else None
        if position is not None:
            return self.gallery.of(np.array([position]), n)
        picture = one(self.read(image), self.gallery.taxonomy)
        found = inference.embed(self.system, picture, np.array([0]), self.variant.train.precision)
        index_files.check_finite(found, ["the picture"])
        return found.of(n, self.gallery.taxonomy)

    def query_vector(self, image: Picture, attribute: str) -> np.ndarray:
        """(V,) float32, whose inner product with an exported vector of the attribute is the score of a search."""
        n = self.number(attribute)
        return self.query(self.embed(image, n), n)

    def query(self, of: Embeddings, n: int) -> np.ndarray:
        """(V,) float32: one picture under attribute n as the variant's score asks."""
        return ranking.query_vectors(self.variant.score, of, 0, self.gallery.alone(n))[0].numpy()

    def made_by(self, query: Embeddings, found: Embeddings, chosen: list[int]) -> list[int | None]:
        """(B,) the class, within its attribute, that added most to each match, or is its most probable one."""
        if found.posterior is None:
            return [None] * len(found.rows)
        if chosen:
            strength = agreement(query, found)[:, chosen]
            return [chosen[m] for m in strength.argmax(axis=1)]
        strength = found.posterior.double().numpy()  # (B, M_n)
        if self.variant.score in ("posterior", "weighted"):
            strength = agreement(query, found) if self.variant.score == "weighted" else strength
            strength = strength * query.posterior.double().numpy()
        return strength.argmax(axis=1).tolist()


def by_classes(of: Gallery, query: Embeddings, n: int, chosen: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k pictures of the largest score in the chosen classes (numbers within attribute n), and their scores."""
    columns = of.taxonomy.classes_of(n).start + np.array(chosen)
    reach, few = np.ones(len(chosen)), query
    if query.classes is not None:
        few = Embeddings(query.rows, None, query.posterior[:, chosen], query.classes[:, chosen])
        reach = (1 + few.classes[0].double().norm(dim=1).numpy() * of.longest[columns]) / 2

    def strength(items: np.ndarray) -> np.ndarray:
        return agreement(few, of.of(items, n, chosen, ("posterior", "classes")))

    return vector_index.rank_by_classes(of.posterior[columns], of.ties, k, strength, reach)


def agreement(query: Embeddings, found: Embeddings) -> np.ndarray:
    """(B, C) float64: p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2 of one query, or p_m(c) where there is no phi."""
    p = found.posterior.double().numpy()
    if found.classes is None:
        return p
    cosine = np.multiply(found.classes.numpy(), query.classes.numpy(), dtype=np.float64).sum(axis=2)
    return p * (1 + cosine) / 2


def one(picture: np.ndarray, taxonomy: Taxonomy) -> Prepared:
    """A prepared set of one picture (H, W, 3) with no labels, as embedding wants it."""
    return Prepared(taxonomy, pd.DataFrame({"labels": [[]]}), picture[None])


def decode(image: Picture) -> np.ndarray:
    """(h, w, 3) uint8 of a file, a PIL image or an array; raises InputError when it is none."""
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise InputError(f"{str(image)!r} is neither a photo that exists nor the name of a picture of the index")
        return photos.decode(Path(image))
    if isinstance(image, Image.Image):
        try:
            return np.array(photos.to_rgb(photos.upright(image)))
        except Exception as error:  # PIL reads a file's pixels late, and raises anything on damage
            raise InputError(f"the image can't be read ({error})") from None
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return image
    told = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise InputError(f"the image has to be a file, a PIL image or an (H, W, 3) uint8 array, not {told}")


def read_variant(values: dict) -> config.Variant:
    """The settings of a row of params.yaml, from `asdict` of it."""
    stages = tuple(config.build(config.Stage, stage, "stages") for stage in values["stages"])
    return config.build(config.Variant, values | {"stages": stages, "changes": tuple(values["changes"])}, "variant")


def load_system(variant: config.Variant, taxonomy: Taxonomy, path: Path) -> systems.System:
    """The trained network of a variant; raises InputError when the file is missing or another network's."""
    offline = replace(variant.model, pretrained=False, weights="", local_weights="")  # the file holds all weights
    system = systems.build(replace(variant, model=offline), taxonomy)
    try:
        system.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{path} doesn't hold the weights of {variant.name} ({told}); run `dvc repro train`") from None
    return system.eval()
