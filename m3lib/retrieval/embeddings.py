"""The embeddings of images that retrieval works on: loaded, saved, checked and selected.

Letters: I images, N attributes, M classes (M_n of attribute n), D attribute embedding size, d class-specific embedding
size.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3lib.compatibility import SCORES
from m3lib.errors import InputError
from m3lib.taxonomy import Taxonomy

KINDS = ("attribute", "posterior", "classes")  # of embeddings; also the names of the tensors in a file, beside "rows"
DIMS = {"rows": 1, "attribute": 3, "posterior": 2, "classes": 3}


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of I images, usually in half precision; None for a kind that the network does not output.

    `of_attribute` narrows them to one attribute: N = 1 and M = M_n.
    """

    rows: Tensor  # (I,) int64: rows of the manifest, rising
    attribute: Tensor | None = None  # (I, N, D): the attribute embeddings f_n, unit length
    posterior: Tensor | None = None  # (I, M): class probabilities p_m
    classes: Tensor | None = None  # (I, M, d): the class-specific embeddings phi_m, unit length

    def save(self, path: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Embeddings":
        """Read a file that `save` wrote; raises InputError for any other file."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} can't be read as embeddings ({error}); run `dvc repro train` first") from None
        rows = tensors.get("rows", torch.zeros(0))
        fits = [t.ndim == DIMS.get(name) and len(t) == rows.numel() for name, t in tensors.items()]
        floats = [tensors[name].is_floating_point() for name in KINDS if name in tensors]
        if not (all(fits) and floats and all(floats) and rows.dtype == torch.int64 and (rows.diff() > 0).all()):
            content = ", ".join(f"{name} ({t.dtype} {[*t.shape]})" for name, t in sorted(tensors.items())) or "nothing"
            problem = f"{path} does not hold embeddings of rising rows, but {content}"
            raise InputError(f"{problem}; run `dvc repro --force train`")
        return cls(**tensors)

    def check(self, score: str, taxonomy: Taxonomy) -> None:
        """Raise InputError unless the score can be computed for every attribute of the taxonomy."""
        if score not in self.scores:
            available = ", ".join(self.scores)
            raise InputError(f"these embeddings can't be compared by the score {score}, only by {available}")
        for kind in KINDS:
            size = taxonomy.num_attributes if kind == "attribute" else taxonomy.num_classes
            if kind in self.tensors and (actual := self.tensors[kind].shape[1]) != size:
                problem = f"these embeddings have {actual} of {kind}, the prepared data set has {size}"
                raise InputError(f"{problem}; run `dvc repro` to bring them up to date")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are present, by name, with "rows"."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @property
    def scores(self) -> list[str]:
        """The scores that can be computed from these kinds of embeddings."""
        return [score for score, kinds in SCORES.items() if set(kinds) <= set(self.tensors)]

    def bytes_per_image(self, score: str) -> int:
        """Return the bytes of one image that a catalogue must store for a score, for all attributes."""
        return sum(self.tensors[kind][0].nbytes for kind in SCORES[score])

    def of_attribute(self, attribute: int, taxonomy: Taxonomy) -> "Embeddings":
        """Return the embeddings of one attribute and its classes, as views."""
        classes = taxonomy.classes_of(attribute)
        columns = {"attribute": slice(attribute, attribute + 1), "posterior": classes, "classes": classes}
        return replace(self, **{kind: t[:, columns[kind]] for kind, t in self.tensors.items() if kind != "rows"})

    def take(self, rows: np.ndarray) -> "Embeddings":
        """Return the embeddings of the given manifest rows, in that order; raises InputError if one is missing."""
        requested = torch.from_numpy(np.ascontiguousarray(rows))
        index = torch.searchsorted(self.rows, requested)
        if (index >= len(self.rows)).any() or (self.rows[index] != requested).any():
            raise InputError("the embeddings don't cover this split; run `dvc repro` to bring them up to date")
        return self.at(index)

    def at(self, index: slice | np.ndarray | Tensor) -> "Embeddings":
        """Return the embeddings of some images, by their positions in these tensors."""
        return Embeddings(**{name: tensor[index] for name, tensor in self.tensors.items()})


def broadcast_over_attributes(rows: np.ndarray, vectors: Tensor, taxonomy: Taxonomy) -> Embeddings:
    """Return one vector per image, (I, D), as the attribute embedding of every attribute, scaled to unit length."""
    attribute = F.normalize(vectors.float(), dim=1)[:, None].expand(-1, taxonomy.num_attributes, -1)  # (I, N, D)
    return Embeddings(torch.from_numpy(rows), attribute)
