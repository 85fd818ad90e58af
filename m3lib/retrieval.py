"""From embeddings to similarities, rankings and scores.

A score says how alike a query and a candidate are under one attribute. Each is an inner product of one vector per
image, so that ranking is one matrix product. Letters: Q queries, C candidates, M_n classes of the attribute, d the size
of phi.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3lib import metrics
from m3lib.abilities import SCORES
from m3lib.errors import InputError
from m3lib.manifest import Prepared
from m3lib.taxonomy import Taxonomy

SOFTNESS = 0.5  # of the score soft_segment: the share of the segments' agreement


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
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} can't be read as embeddings ({error}); run `dvc repro train` first") from None
        return cls(*(tensors.get(key) for key in ("rows", "attribute", "posterior", "classes")))

    def take(self, rows: np.ndarray) -> "Embeddings":
        """The embeddings of some manifest rows, in the order asked for."""
        wanted = torch.from_numpy(np.ascontiguousarray(rows))
        index = torch.searchsorted(self.rows, wanted)
        if (index >= len(self.rows)).any() or (self.rows[index] != wanted).any():
            raise InputError("the embeddings don't cover this split; run `dvc repro` to bring them up to date")
        parts = (part[index] if part is not None else None for part in (self.attribute, self.posterior, self.classes))
        return Embeddings(wanted, *parts)

    def of(self, attribute: int, taxonomy: Taxonomy) -> "Embeddings":
        """What they say of one attribute alone, as views: at 1,000 classes a copy of all would take gigabytes."""
        own = taxonomy.classes_of(attribute)
        parts = zip(
            (self.attribute, self.posterior, self.classes), (slice(attribute, attribute + 1), own, own), strict=True
        )
        return Embeddings(self.rows, *(part[:, which] if part is not None else None for part, which in parts))

    @property
    def scores(self) -> list[str]:
        """The scores that these embeddings can give."""
        return [score for score, needs in SCORES.items() if all(getattr(self, need) is not None for need in needs)]


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
    """
    own = taxonomy.classes_of(attribute)
    if "posterior" in SCORES[score]:
        p_q, p_c = query.posterior[:, own].float(), candidate.posterior[:, own].float()  # (Q, M_n), (C, M_n)
    if "attribute" in SCORES[score]:
        cosine = query.attribute[:, attribute].float() @ candidate.attribute[:, attribute].float().T
    if score == "attribute":
        return cosine
    if score == "segment":
        return cosine + 2.0 * (p_q.argmax(dim=1)[:, None] == p_c.argmax(dim=1))
    if score == "soft_segment":
        return (1 - SOFTNESS) * cosine + SOFTNESS * p_q @ p_c.T
    if score == "posterior":
        return p_q @ p_c.T
    phi_q, phi_c = query.classes[:, own].float(), candidate.classes[:, own].float()  # (Q, M_n, d), (C, M_n, d)
    if score == "concat":
        return phi_q.flatten(1) @ phi_c.flatten(1).T / phi_q.shape[1]
    if score == "top_class":
        return top_class(p_q, phi_q, phi_c)
    agree = (p_q[..., None] * phi_q).flatten(1) @ (p_c[..., None] * phi_c).flatten(1).T
    return (p_q @ p_c.T + agree) / 2


def top_class(p_q: Tensor, phi_q: Tensor, phi_c: Tensor) -> Tensor:
    """(Q, C) cosine in the space of each query's most probable class."""
    chosen = p_q.argmax(dim=1)  # (Q,)
    result = torch.empty(len(phi_q), len(phi_c))
    for m in chosen.unique():
        asking = chosen == m
        result[asking] = phi_q[asking, m] @ phi_c[:, m].T
    return result


@dataclass(frozen=True)
class Ranking:
    """One attribute of one split: query and candidate rows, and the candidates in order for each query."""

    query_rows: np.ndarray  # (Q,)
    candidate_rows: np.ndarray  # (C,)
    order: Tensor  # (Q, C) int64 into candidate_rows, best first

    def hits(self, prepared: Prepared, classes: slice) -> tuple[Tensor, Tensor]:
        """The (Q, M_n) and (C, M_n) labels of queries and candidates."""
        labels = torch.from_numpy(prepared.labels[:, classes])
        return labels[self.query_rows], labels[self.candidate_rows]


def rank(
    prepared: Prepared, split: str, attribute: int, score: str, embeddings: Embeddings | None, seed: int
) -> Ranking:
    """Rank the split's candidates for its queries; those unknown under the attribute take no part.

    score "random" needs no embeddings: similarities are drawn from the seed.
    """
    own = prepared.taxonomy.classes_of(attribute)
    known = prepared.labels[:, own].any(axis=1)
    query_rows, candidate_rows = (prepared.rows(split, role) for role in ("query", "candidate"))
    query_rows, candidate_rows = query_rows[known[query_rows]], candidate_rows[known[candidate_rows]]
    # In tie order before the matrix product: its last bit can depend on the column, which must not follow the labels.
    ties = metrics.tie_keys(prepared.manifest["image"].to_numpy()[candidate_rows].tolist()).sort()
    candidate_rows = candidate_rows[ties.indices.numpy()]
    if score == "random":
        generator = torch.Generator().manual_seed(seed * 1009 + attribute)
        values = torch.rand(len(query_rows), len(candidate_rows), generator=generator)
    else:
        narrow, alone = (
            embeddings.of(attribute, prepared.taxonomy),
            Taxonomy((prepared.taxonomy.attributes[attribute],)),
        )
        values = similarity(score, narrow.take(query_rows), narrow.take(candidate_rows), 0, alone)
    return Ranking(query_rows, candidate_rows, metrics.rank_order(values, ties.values))


def evaluate(
    prepared: Prepared,
    split: str,
    score: str,
    embeddings: Embeddings | None = None,
    seed: int = 0,
    relevance: str | None = None,
) -> dict[str, metrics.Scores]:
    """Every attribute's per-query scores on a split.

    relevance, if not the data set's own: `pair`, a query is an (image, class it carries) pair and a candidate is right
    if it carries the class; `any`, a query is an image and a candidate is right if it shares a class with it.
    """
    results = {}
    relevance = relevance or prepared.relevance
    for n, name in enumerate(prepared.taxonomy.names):
        ranking = rank(prepared, split, n, score, embeddings, seed)
        labels = ranking.hits(prepared, prepared.taxonomy.classes_of(n))
        labels = labels if relevance == "pair" else sharing(*labels)
        results[name] = metrics.evaluate_attribute(ranking.order, *labels)
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
