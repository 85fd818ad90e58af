"""`make bench WHAT=search`: searching 10 thousand to a million pictures, on one thread, and what more would cost.

Pictures beyond the real ones are jittered: the embeddings of a random real picture x, moved by JITTER times the
difference of two others, x + t (y - z), and brought to unit length (class probabilities: as logits). Differences of
real embeddings have the real ones' covariance, so the jittered ones lie in the same directions. Queries are drawn like
the pictures, and are none of them.

Measured of each case: recall against the exact ranking, bytes and build time per index of one attribute, and single
queries one after the other, with the rescoring from mapped files that a search does; embedding the photo comes on top.
Writes data/results/search.csv, and search.md beside it, whose cost model is computed from that table.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from m3lib.compatibility import SCORES
from m3lib.config import find_root
from m3lib.retrieval.ranking import KINDS, Embeddings, query_vectors
from m3lib.search import index as search
from m3lib.search import index_files, vector_index
from m3lib.search.index_files import Gallery
from m3lib.taxonomy import Taxonomy
from tests.bench import scaling as search_costs

SIZES = (10_000, 100_000, 1_000_000)
QUERIES, WARM = 200, 20
JITTER = 0.5
BATCH = 4096
EXACT_TIMED = 1 << 28  # floats up to which the exact index is built and timed too: 1 GB
LIFTED = 1024


@dataclass(frozen=True)
class Case:
    """Some variant's embeddings under its first attribute, and a score of theirs; lifted: to LIFTED dimensions."""

    variant: str
    score: str
    lifted: bool = False

    @property
    def name(self) -> str:
        return f"{self.variant} {self.score}" + (" lifted" if self.lifted else "")


CASES = (
    Case("m3", "attribute"),
    Case("asen_pp", "attribute"),
    Case("asen_v2", "attribute", lifted=True),
    Case("m3", "weighted"),
)


def read(root: Path, case: Case) -> tuple[Embeddings, Taxonomy]:
    """The real embeddings of a case's attribute, and its taxonomy."""
    whole = Taxonomy.load(root / "data" / "prepared" / "taxonomy.json")
    real = Embeddings.load(root / "data" / "embeddings" / f"{case.variant}.safetensors").of(0, whole)
    real = replace(real, **{part: None for part in KINDS if part not in SCORES[case.score]})
    if case.lifted:  # random features, so that no linear map takes the lift back
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(real.attribute.shape[2], LIFTED, generator=generator)
        real = Embeddings(real.rows, normalize((real.attribute.float() @ features).relu(), dim=2), None, None)
    return real, Taxonomy((whole.attributes[0],))


def jittered(real: Embeddings, count: int, seed: int) -> Embeddings:
    """`count` pictures like the real ones, in half precision."""
    generator = torch.Generator().manual_seed(seed)
    x, y, z = torch.randint(len(real.rows), (3, count), generator=generator)

    def moved(values: Tensor) -> Tensor:
        return values[x].float() + JITTER * (values[y].float() - values[z].float())

    f, p, phi = real.attribute, real.posterior, real.classes
    return Embeddings(
        torch.arange(count),
        None if f is None else normalize(moved(f), dim=2).half(),
        None if p is None else moved(p.float().clamp(1e-4, 1 - 1e-4).logit()).sigmoid().half(),
        None if phi is None else normalize(moved(phi), dim=2).half(),
    )


def catalogue(real: Embeddings, items: int) -> Iterator[Embeddings]:
    for start in range(0, items, BATCH):
        yield jittered(real, min(BATCH, items - start), seed=1 + start)


def make_gallery(folder: Path, real: Embeddings, items: int, taxonomy: Taxonomy) -> Gallery:
    names = pd.DataFrame({"image": [f"{i}.jpg" for i in range(items)], "row": np.arange(items)})
    index_files.write(folder, names, catalogue(real, items), taxonomy)
    return index_files.open_gallery(folder)


def true_best(vectors: vector_index.Vectors, asked: np.ndarray, items: int, k: int) -> np.ndarray:
    """(Q, k) item numbers of the largest inner products, best first, block by block."""
    best = np.full((len(asked), 0), 0.0, np.float32)
    found = np.zeros((len(asked), 0), np.int64)
    for chosen in vector_index.blocks(items, asked.shape[1]):
        best = np.concatenate([best, asked @ vectors(chosen).T], axis=1)
        found = np.concatenate([found, np.broadcast_to(chosen, (len(asked), len(chosen)))], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
    return found


def timed(ask: Callable[[int], np.ndarray]) -> tuple[list[np.ndarray], dict[str, float]]:
    """What each query found, one after the other, and queries_per_second, p50_ms and p99_ms."""
    for i in range(WARM):
        ask(i)
    found, seconds = [], []
    for i in range(QUERIES):
        start = time.perf_counter()
        found.append(ask(i))
        seconds.append(time.perf_counter() - start)
    p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
    return found, {"queries_per_second": QUERIES / sum(seconds), "p50_ms": p50, "p99_ms": p99}


def measure(case: Case, of: Gallery, asking: Embeddings) -> Iterator[dict]:
    """A row of the table per kind of index that so many items allow, and one for the search by two classes."""
    items, parts = len(of), SCORES[case.score]
    vectors, queries = (of.vectors(case.score, side, 0) for side in ("candidate", "query"))
    asked = query_vectors(case.score, asking, 0, of.alone(0)).numpy()
    truth = true_best(vectors, asked, items, 100)
    row = {"case": case.name, "dims": asked.shape[1], "items": items}
    row["disk_bytes"] = sum(getattr(of, part).nbytes for part in parts) / items
    row["shared_bytes"] = (of.names.nbytes + of.rows.nbytes + of.ties.nbytes) / items
    for kind in ("compressed", "exact"):
        if kind == "exact" and items * asked.shape[1] > EXACT_TIMED:
            continue
        start = time.perf_counter()
        index = vector_index.build(vectors, queries, items, asked.shape[1], kind, seed=0)
        built = {"kind": kind, "build_seconds": time.perf_counter() - start}
        built["memory_bytes"] = vector_index.size(index) / items
        if kind == "compressed":
            inner = faiss.extract_index_ivf(index)
            built |= {"cells": inner.nlist, "looked_into": inner.nprobe}
        found, times = timed(lambda i, index=index: vector_index.rank(index, vectors, asked[i], of.ties, 100)[0])
        for k in (10, 100):
            built[f"recall_{k}"] = vector_index.recall([best[:k] for best in found], truth[:, :k])
        yield row | built | times
    if "classes" in parts:
        few = [asking.take(np.array([i])) for i in range(QUERIES)]
        _, times = timed(lambda i: search.by_classes(of, few[i], 0, [1, 3], 100)[0])
        yield row | {"kind": "two classes", "recall_10": 1.0, "recall_100": 1.0} | times


def run(root: Path, sizes: Sequence[int]) -> pd.DataFrame:
    """Every case at every size; a line of the table is printed when it is there."""
    rows = []
    for case in CASES:
        real, taxonomy = read(root, case)
        for items in sizes:
            with tempfile.TemporaryDirectory() as folder:
                of = make_gallery(Path(folder) / "gallery", real, items, taxonomy)
                for row in measure(case, of, jittered(real, QUERIES, seed=0)):
                    told = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
                    print(*(f"{key} {value}" for key, value in told.items()), sep="  ", flush=True)
                    rows.append(row)
    return pd.DataFrame(rows)


def main(sizes: Sequence[int] = SIZES) -> int:
    root = find_root()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        table = run(root, sizes)
    folder = root / "data" / "results"
    table.round(4).to_csv(folder / "search.csv", index=False)
    (folder / "search.md").write_text(search_costs.page(table, JITTER))
    print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, mapped files included")
    return 0


if __name__ == "__main__":
    sys.exit(main([int(size) for size in sys.argv[1:]] or SIZES))
