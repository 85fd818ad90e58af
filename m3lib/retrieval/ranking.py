"""From embeddings to similarities, rankings and scores.

A score says how alike a query and a candidate are under one attribute. Each is an inner product of a vector of the
query and one of the candidate, so that ranking is one matrix product, and an index holds one vector an image. Letters:
Q queries, C candidates, M_n classes of the attribute, d the size of phi.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3lib.compatibility import SCORES
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.retrieval import metrics
from m3lib.taxonomy import Taxonomy

KINDS = ("attribute", "posterior", "classes")  # of embeddings
PARTS = ("rows", *KINDS)  # of their file
SOFTNESS = 0.5  # of the score soft_segment: the share of the segments' agreement
PART = 4096  # numbers of an image's vector that are multiplied at once, whatever the memory: the sum's order is fixed
PIECE = 1 << 13  # candidates at once, about: a piece of their vectors takes up to 128 MB, thrice while it is made
FEWEST = 16  # rows of a matrix product, below which some libraries add in another order
MEMORY = 1 << 30  # bytes that an evaluation may take for a block of similarities and what belongs to it


@dataclass(frozen=True)
class Embeddings:
    """What a trained network says of images, in half precision; `rows` are their manifest rows, rising."""

    rows: Tensor  # (I,) int64
    attribute: Tensor | None  # (I, N, D) unit rows: f_n
    posterior: Tensor | None  # (I, M) class probabilities
    classes: Tensor | None  # (I, M, d) unit rows: phi_m

    def save(self, path: Path) -> None:
        save_file({key: value.contiguous() for key, value in vars(self).items() if value is not None}, path)

    @classmethod
    def load(cls, path: Path) -> "Embeddings":
        """Map a file into memory; raises InputError for one that holds no embeddings."""
        try:
            tensors = load_file(path)
            found = cls(*(tensors.get(key) for key in PARTS))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} can't be read as embeddings ({error}); run `dvc repro train` first") from None
        for fault in found.faults(set(tensors)):
            raise InputError(f"{path} can't be read as embeddings ({fault}); run `dvc repro --force train`")
        return found

    def faults(self, names: set[str]) -> Iterator[str]:
        """What keeps tensors of these names from being embeddings, the first thing first."""
        if self.rows is None or not names <= set(PARTS) or len(names) < 2:
            yield f"it holds {', '.join(sorted(names)) or 'nothing'}, not rows and some of {', '.join(PARTS[1:])}"
            return
        if self.rows.dtype != torch.int64 or self.rows.ndim != 1 or (self.rows.diff() <= 0).any():
            yield "its rows are not rising row numbers"
        for name, part, dims in zip(PARTS[1:], self.tensors()[1:], (3, 2, 3), strict=True):
            if part is not None and (part.ndim != dims or len(part) != len(self.rows) or not part.is_floating_point()):
                yield f"{name} is {part.dtype} {[*part.shape]} for {len(self.rows)} rows"

    def check(self, score: str, taxonomy: Taxonomy) -> None:
        """Raise InputError unless a score can be had from them under every attribute of a taxonomy."""
        if score not in self.scores:
            raise InputError(f"these embeddings can't give the score {score}; they give {', '.join(self.scores)}")
        sizes = taxonomy.num_attributes, taxonomy.num_classes, taxonomy.num_classes
        for name, part, size in zip(PARTS[1:], self.tensors()[1:], sizes, strict=True):
            if part is not None and part.shape[1] != size:
                told = f"these embeddings have {part.shape[1]} of {name}, the prepared data set has {size}"
                raise InputError(f"{told}; run `dvc repro` to bring them up to date")

    def take(self, rows: np.ndarray) -> "Embeddings":
        """The embeddings of some manifest rows, in the order asked for."""
        wanted = torch.from_numpy(np.ascontiguousarray(rows))
        index = torch.searchsorted(self.rows, wanted)
        if (index >= len(self.rows)).any() or (self.rows[index] != wanted).any():
            raise InputError("the embeddings don't cover this split; run `dvc repro` to bring them up to date")
        return self.at(index)

    def of(self, attribute: int, taxonomy: Taxonomy) -> "Embeddings":
        """What they say of one attribute alone, as views: at 1,000 classes a copy of all would take gigabytes."""
        own = taxonomy.classes_of(attribute)
        parts = zip(
            (self.attribute, self.posterior, self.classes), (slice(attribute, attribute + 1), own, own), strict=True
        )
        return Embeddings(self.rows, *(part[:, which] if part is not None else None for part, which in parts))

    def at(self, which: slice | np.ndarray) -> "Embeddings":
        """Those of some images, by their places here."""
        return Embeddings(*(part[which] if part is not None else None for part in self.tensors()))

    def to(self, device: str) -> "Embeddings":
        return Embeddings(*(part.to(device) if part is not None else None for part in self.tensors()))

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.rows, self.attribute, self.posterior, self.classes

    @property
    def scores(self) -> list[str]:
        """The scores that these embeddings can give."""
        return [score for score, needs in SCORES.items() if all(getattr(self, need) is not None for need in needs)]


def parts(score: str, side: str, of: Embeddings, attribute: int, taxonomy: Taxonomy) -> Iterator[Tensor]:
    """The vectors of images under one attribute, in parts of at most PART numbers: (I, V_j) float32 each.

    side: "query" or "candidate". f_n and phi_m have unit length, so their inner products are cosines.
    """
    own, asks, needs = taxonomy.classes_of(attribute), side == "query", SCORES[score]
    p = of.posterior[:, own].float() if "posterior" in needs else None  # (I, M_n)
    likely = F.one_hot(p.argmax(dim=1), p.shape[1]).float() if score in ("segment", "top_class") else None  # (I, M_n)
    if "attribute" in needs:
        f = of.attribute[:, attribute].float()  # (I, D)
        yield f * (1 - SOFTNESS) if asks and score == "soft_segment" else f
    if score == "segment":
        yield likely * 2.0 if asks else likely
    if score in ("soft_segment", "posterior", "weighted"):
        yield p * {"soft_segment": SOFTNESS, "posterior": 1.0, "weighted": 0.5}[score] if asks else p
    if "classes" in needs:
        phi = of.classes[:, own]  # (I, M_n, d)
        ones = torch.ones(phi.shape[:2], device=phi.device)
        of_query, of_candidate = {
            "concat": (ones / phi.shape[1], ones),
            "top_class": (likely, ones),
            "weighted": (None if p is None else p / 2, p),
        }[score]
        weight = of_query if asks else of_candidate  # (I, M_n)
        step = max(1, PART // phi.shape[2])
        for w, some in zip(weight.split(step, dim=1), phi.split(step, dim=1), strict=True):
            yield (w[..., None] * some).flatten(1)


def query_vectors(score: str, of: Embeddings, attribute: int, taxonomy: Taxonomy) -> Tensor:
    """(I, V) float32: `query_vectors(...) @ candidate_vectors(...).T` is the similarity."""
    return torch.cat(list(parts(score, "query", of, attribute, taxonomy)), dim=1)


def candidate_vectors(score: str, of: Embeddings, attribute: int, taxonomy: Taxonomy) -> Tensor:
    """(I, V) float32, what an index of this score holds."""
    return torch.cat(list(parts(score, "candidate", of, attribute, taxonomy)), dim=1)


def similarity(score: str, query: Embeddings, candidate: Embeddings, attribute: int, taxonomy: Taxonomy) -> Tensor:
    """(Q, C) float32 similarity under one attribute by the named score. No score sees the query's true class.

    attribute: cos(f_q, f_c).
    segment: cos(f_q, f_c), after 2 more for candidates whose most probable class is the query's (MODC: the attribute's
        space cut by class).
    soft_segment: (1 - k) cos(f_q, f_c) + k sum over m of p_m(q) p_m(c), k = SOFTNESS.
    concat: mean over m of cos(phi_m(q), phi_m(c)).
    top_class: cos(phi_m(q), phi_m(c)) for the m that the query most probably is.
    weighted: sum over m of p_m(q) p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2.
    posterior: sum over m of p_m(q) p_m(c), the probability of one class for both if the two are independent.

    A query's row does not depend, to the bit, on the other queries asked with it: a matrix product of a few rows may
    add in another order, so there are FEWEST rows in every product.
    """
    rows, columns = len(query.rows), len(candidate.rows)
    result = torch.zeros(max(rows, FEWEST), columns, device=query.rows.device)
    pieces = torch.arange(columns).tensor_split(-(-columns // PIECE)) if columns else ()
    for piece in pieces:
        columns_of_piece = slice(int(piece[0]), int(piece[-1]) + 1)
        asked = parts(score, "query", query, attribute, taxonomy)
        answers = parts(score, "candidate", candidate.at(columns_of_piece), attribute, taxonomy)
        for q, c in zip(asked, answers, strict=True):
            result[:, columns_of_piece].addmm_(F.pad(q, (0, 0, 0, len(result) - rows)), c.T)
    return result[:rows]


@dataclass(frozen=True)
class Ranking:
    """One attribute of one split: who asks, who answers, and how alike they are."""

    query_rows: np.ndarray  # (Q,) manifest rows
    candidate_rows: np.ndarray  # (C,) manifest rows, by rising tie key
    ties: Tensor  # (C,) int64, rising
    similarity: Callable[[slice | np.ndarray], Tensor]  # of some queries to all candidates: (b, C) floats

    def order(self, queries: slice | np.ndarray) -> Tensor:
        """(b, C) int64 into candidate_rows, best first, of some of the queries."""
        return metrics.rank_order(self.similarity(queries), self.ties)

    def hits(self, prepared: Prepared, classes: slice) -> tuple[Tensor, Tensor]:
        """The (Q, M_n) and (C, M_n) labels of queries and candidates."""
        labels = torch.from_numpy(prepared.labels[:, classes])
        return labels[self.query_rows], labels[self.candidate_rows]

    def blocks(self, memory: int) -> list[slice]:
        """The queries in blocks whose similarities take at most half of `memory` bytes (but FEWEST rows at least)."""
        step = max(FEWEST, memory // (2 * 4 * max(1, len(self.candidate_rows))))
        return [slice(start, start + step) for start in range(0, max(1, len(self.query_rows)), step)]


def rank(
    prepared: Prepared,
    split: str,
    attribute: int,
    score: str,
    embeddings: Embeddings | None,
    seed: int,
    device: str = "cpu",
) -> Ranking:
    """Set the split's candidates against its queries; those unknown under the attribute take no part.

    score "random" needs no embeddings: each query draws its similarities from the seed.
    """
    own = prepared.taxonomy.classes_of(attribute)
    known = prepared.labels[:, own].any(axis=1)
    query_rows, candidate_rows = (prepared.rows(split, role) for role in ("query", "candidate"))
    query_rows, candidate_rows = query_rows[known[query_rows]], candidate_rows[known[candidate_rows]]
    # In tie order before the matrix product: its last bit can depend on the column, which must not follow the labels.
    ties = metrics.tie_keys(prepared.manifest["image"].to_numpy()[candidate_rows].tolist()).sort()
    candidate_rows = candidate_rows[ties.indices.numpy()]
    if score == "random":

        def alike(queries: slice | np.ndarray) -> Tensor:
            asked = np.arange(len(query_rows))[queries]
            streams = (np.random.Philox(key=seed * 1009 + attribute, counter=[0, 0, 0, row]) for row in asked)
            drawn = [np.random.Generator(stream).random(len(candidate_rows)) for stream in streams]
            return torch.from_numpy(np.reshape(drawn, (len(asked), -1))).to(device)

    else:
        narrow = embeddings.of(attribute, prepared.taxonomy)
        alone = Taxonomy((prepared.taxonomy.attributes[attribute],))
        query, candidate = (narrow.take(rows).to(device) for rows in (query_rows, candidate_rows))

        def alike(queries: slice | np.ndarray) -> Tensor:
            return similarity(score, query.at(queries), candidate, 0, alone)

    return Ranking(query_rows, candidate_rows, ties.values, alike)


def evaluate(
    prepared: Prepared,
    split: str,
    score: str,
    embeddings: Embeddings | None = None,
    seed: int = 0,
    relevance: str | None = None,
    memory: int = MEMORY,
    device: str = "cpu",
) -> dict[str, metrics.Scores]:
    """Every attribute's per-query scores on a split, the same whatever `memory` (bytes, about) it may take.

    device: where similarities are computed and ranked, by torch's name; "cpu" uses torch's number of threads.

    relevance, if not the data set's own: `pair`, a query is an (image, class it carries) pair and a candidate is right
    if it carries the class; `any`, a query is an image and a candidate is right if it shares a class with it.
    Raises InputError for embeddings that hold NaN or infinity.
    """
    results = {}
    relevance = relevance or prepared.relevance
    if score != "random":
        embeddings.check(score, prepared.taxonomy)
    for n, name in enumerate(prepared.taxonomy.names):
        ranking = rank(prepared, split, n, score, embeddings, seed, device)
        asking, answering = ranking.hits(prepared, prepared.taxonomy.classes_of(n))
        found = []
        for block in ranking.blocks(memory):
            labels = (asking[block], answering) if relevance == "pair" else sharing(asking[block], answering)
            try:
                scores = metrics.evaluate_attribute(ranking.similarity(block), ranking.ties, *labels)
            except FloatingPointError as error:
                raise InputError(f"{name}, {split}, score {score}: {error}; check the embeddings") from None
            query = scores.query + block.start
            found.append(replace(scores, query=query, class_id=scores.class_id if relevance == "pair" else query))
        results[name] = metrics.join(found)
    return results


def sharing(query_labels: Tensor, candidate_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels under which every query is a class of its own, (Q, Q), that candidates carry if they share one, (C, Q)."""
    shared = candidate_labels.float() @ query_labels.float().T > 0
    return torch.eye(len(query_labels), dtype=torch.bool), shared


def query_images(prepared: Prepared, split: str, scores: dict[str, metrics.Scores]) -> np.ndarray:
    """(P,) the manifest row of the query of every pair, all attributes one after the other: what a bootstrap draws."""
    rows, parts = prepared.rows(split, "query"), []
    for n, name in enumerate(prepared.taxonomy.names):
        known = prepared.labels[rows][:, prepared.taxonomy.classes_of(n)].any(axis=1)
        parts.append(rows[known][scores[name].query])
    return np.concatenate(parts)


def class_means(prepared: Prepared, scores: dict[str, metrics.Scores]) -> dict[str, float]:
    """Mean AP@all of each class that was asked for, as a fraction, by the name "attribute: class"."""
    means = {}
    for n, (name, found) in enumerate(scores.items()):
        start = int(prepared.taxonomy.offsets[n])
        for m, ap in pd.Series(found.ap_all).groupby(found.class_id).mean().items():
            means[f"{name}: {prepared.taxonomy.class_name(start + m)}"] = float(ap)
    return means


def same_for_every_attribute(rows: np.ndarray, vectors: Tensor, taxonomy: Taxonomy) -> Embeddings:
    """One vector per image, (I, D), as the attribute embedding of all attributes, unit length."""
    attribute = F.normalize(vectors.float(), dim=1)[:, None].expand(-1, taxonomy.num_attributes, -1)  # (I, N, D)
    return Embeddings(torch.from_numpy(rows), attribute, None, None)


def class_table(prepared: Prepared, split: str, scores: dict[str, metrics.Scores]) -> pd.DataFrame:
    """A row per class that was asked for: attribute, class_, training images, ap and its random floor in percent."""
    images = prepared.labels[prepared.rows("train")].sum(axis=0)
    candidates = prepared.labels[prepared.rows(split, "candidate")]
    tables = []
    for n, (name, found) in enumerate(scores.items()):
        own = prepared.taxonomy.classes_of(n)
        floor = metrics.expected_random_ap(found.relevant, int(candidates[:, own].any(axis=1).sum()))
        queries = pd.DataFrame({"class_id": found.class_id + own.start, "ap": 100 * found.ap_all, "floor": 100 * floor})
        table = queries.groupby("class_id", as_index=False).mean()
        tables.append(table.assign(attribute=name, images=images[table["class_id"]]))
    table = pd.concat(tables, ignore_index=True)
    table["class_"] = [prepared.taxonomy.class_name(m) for m in table["class_id"]]
    return table[["attribute", "class_", "images", "ap", "floor"]]


def class_points(
    prepared: Prepared, embeddings: Embeddings, attribute: int, limit: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `limit` test (image, class) pairs of an attribute: vectors (A, d) float32 and class names (A,).

    The vector is the class-specific embedding of that class where there is one, else the attribute embedding, else the
    class probabilities of the attribute.
    """
    own = prepared.taxonomy.classes_of(attribute)
    rows = prepared.rows("test")
    image, local = np.nonzero(prepared.labels[rows, own])
    chosen = np.sort(generator.permutation(len(image))[:limit])
    image, class_id = image[chosen], local[chosen] + own.start
    part = embeddings.take(rows[image])
    if part.classes is not None:
        vectors = part.classes[torch.arange(len(image)), torch.from_numpy(class_id)]
    else:
        vectors = part.attribute[:, attribute] if part.attribute is not None else part.posterior[:, own]
    return vectors.float().numpy(), np.array([prepared.taxonomy.class_name(m) for m in class_id])
