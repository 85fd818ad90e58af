"""The embeddings of images that retrieval works on: loaded, saved, checked and selected.

Letters: I images, N attributes, M classes (M_n of attribute n), D attribute embedding size, d class-specific embedding
size.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of I images, usually in half precision; None for a kind that the network does not output.

    `of_attribute` narrows them to one attribute: N = 1 and M = M_n.
    """

    rows: Tensor  # (I,) int64: rows of the manifest, rising
    attribute: Tensor | None  # (I, N, D): the attribute embeddings f_n, unit length
    posterior: Tensor | None  # (I, M): class probabilities p_m
    classes: Tensor | None  # (I, M, d): the class-specific embeddings phi_m, unit length

    def save(self, path: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in vars(self).items() if tensor is not None}, path)

    @classmethod
    def load(cls, path: Path) -> "Embeddings":
        """Read a file that `save` wrote; raises InputError for any other file."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} can't be read as embeddings ({error}); run `dvc repro train` first") from None
        if fault := find_fault(tensors):
            raise InputError(f"{path} can't be read as embeddings ({fault}); run `dvc repro --force train`")
        return cls(*(tensors.get(name) for name in ("rows", *KINDS)))

    def check(self, score: str, taxonomy: Taxonomy) -> None:
        """Raise InputError unless the score can be computed for every attribute of the taxonomy."""
        if score not in self.scores:
            available = ", ".join(self.scores)
            raise InputError(f"these embeddings can't be compared by the score {score}, only by {available}")
        num_classes = taxonomy.num_classes
        for kind, size in zip(KINDS, (taxonomy.num_attributes, num_classes, num_classes), strict=True):
            tensor = getattr(self, kind)
            if tensor is not None and tensor.shape[1] != size:
                problem = f"these embeddings have {tensor.shape[1]} of {kind}, the prepared data set has {size}"
                raise InputError(f"{problem}; run `dvc repro` to bring them up to date")

    @property
    def scores(self) -> list[str]:
        """The scores that can be computed from these kinds of embeddings."""
        return [score for score, kinds in SCORES.items() if all(getattr(self, kind) is not None for kind in kinds)]

    def of_attribute(self, attribute: int, taxonomy: Taxonomy) -> "Embeddings":
        """Return the embeddings of one attribute and its classes, as views."""
        classes = taxonomy.classes_of(attribute)
        columns = {"attribute": slice(attribute, attribute + 1), "posterior": classes, "classes": classes}
        tensors = {kind: getattr(self, kind) for kind in KINDS}
        return Embeddings(
            self.rows, **{kind: None if t is None else t[:, columns[kind]] for kind, t in tensors.items()}
        )

    def take(self, rows: np.ndarray) -> "Embeddings":
        """Return the embeddings of the given manifest rows, in that order; raises InputError if one is missing."""
        requested = torch.from_numpy(np.ascontiguousarray(rows))
        index = torch.searchsorted(self.rows, requested)
        if (index >= len(self.rows)).any() or (self.rows[index] != requested).any():
            raise InputError("the embeddings don't cover this split; run `dvc repro` to bring them up to date")
        return self.at(index)

    def at(self, index: slice | np.ndarray | Tensor) -> "Embeddings":
        """Return the embeddings of some images, by their positions in these tensors."""
        return Embeddings(**{name: None if tensor is None else tensor[index] for name, tensor in vars(self).items()})


def find_fault(tensors: dict[str, Tensor]) -> str:
    """Return why these tensors are not embeddings, or an empty string if they are."""
    rows, names = tensors.get("rows"), ", ".join(sorted(tensors)) or "nothing"
    if rows is None or not set(tensors) <= {"rows", *KINDS} or len(tensors) < 2:
        return f"it holds {names}, not rows and some of {', '.join(KINDS)}"
    if rows.dtype != torch.int64 or rows.ndim != 1 or (rows.diff() <= 0).any():
        return "its rows are not rising row numbers"
    for kind, dims in zip(KINDS, (3, 2, 3), strict=True):
        tensor = tensors.get(kind, torch.zeros([len(rows)] + [1] * (dims - 1)))
        if tensor.ndim != dims or len(tensor) != len(rows) or not tensor.is_floating_point():
            return f"{kind} is {tensor.dtype} {[*tensor.shape]} for {len(rows)} rows"
    return ""


def broadcast_over_attributes(rows: np.ndarray, vectors: Tensor, taxonomy: Taxonomy) -> Embeddings:
    """Return one vector per image, (I, D), as the attribute embedding of every attribute, scaled to unit length."""
    attribute = F.normalize(vectors.float(), dim=1)[:, None].expand(-1, taxonomy.num_attributes, -1)  # (I, N, D)
    return Embeddings(torch.from_numpy(rows), attribute, None, None)
