"""`make bench WHAT=search`: search ten thousand to a million images on one thread, and estimate the costs of more.

Images beyond the real ones are jittered copies: the embedding of a random real image x plus JITTER times the difference
of two others, x + JITTER (y - z), normalised to unit length (class probabilities: as logits). Differences of real
embeddings have the covariance of the real ones, so the copies vary in the same directions. Queries are drawn in the
same way, and none of them is in the catalogue.

For each case it measures recall against the exact ranking, bytes and build time of the index of one attribute, and
single queries one after the other, including the scoring of the shortlist from mapped files; embedding a photo is not
included. Writes data/results/search.csv, and search.md from that table. Before that, it prints how long the search of a
new photo in data/index takes, embedding included, on the idle machine and with every core busy (see `busy`).
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from m3lib.compatibility import SCORES
from m3lib.config import find_root
from m3lib.data import files
from m3lib.data.manifest import open_prepared
from m3lib.retrieval import metrics, scores
from m3lib.retrieval.embeddings import KINDS, Embeddings
from m3lib.search import Index, vector_index
from m3lib.search.catalogue import Catalogue
from m3lib.taxonomy import Taxonomy
from tests.bench import busy, scaling

SIZES = (10_000, 100_000, 1_000_000)
QUERIES, WARM_UP = 200, 20
JITTER = 0.5
BATCH = 4096
MAX_EXACT_FLOATS = 1 << 28  # up to which the exact index is measured too: 1 GB
LIFTED_DIMS = 1024


class Case(NamedTuple):
    """A variant's embeddings for its first attribute, and a score; lifted: mapped to LIFTED_DIMS dimensions."""

    variant: str
    score: str
    lifted: bool = False


CASES = (
    Case("m3", "attribute"),
    Case("asen_pp", "attribute"),
    Case("asen_v2", "attribute", lifted=True),
    Case("m3", "weighted"),
)


def read(root: Path, case: Case) -> tuple[Embeddings, Taxonomy]:
    """Return the real embeddings of a case's attribute, and the taxonomy of this attribute."""
    taxonomy = Taxonomy.load(root / "data" / "prepared" / "taxonomy.json")
    real = Embeddings.load(root / "data" / "embeddings" / f"{case.variant}.safetensors").of_attribute(0, taxonomy)
    real = replace(real, **{kind: None for kind in KINDS if kind not in SCORES[case.score]})
    if case.lifted:  # by random features: no linear projection can undo them
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(real.attribute.shape[2], LIFTED_DIMS, generator=generator)
        real = replace(real, attribute=normalize((real.attribute.float() @ features).relu(), dim=2))
    return real, Taxonomy((taxonomy.attributes[0],))


def jittered(real: Embeddings, count: int, seed: int) -> Embeddings:
    """Return `count` images like the real ones, in half precision."""
    generator = torch.Generator().manual_seed(seed)
    x, y, z = torch.randint(len(real.rows), (3, count), generator=generator)

    def shifted(values: Tensor) -> Tensor:
        return values[x].float() + JITTER * (values[y].float() - values[z].float())

    f, p, phi = real.attribute, real.posterior, real.classes
    return Embeddings(
        torch.arange(count),
        None if f is None else normalize(shifted(f), dim=2).half(),
        None if p is None else shifted(p.float().clamp(1e-4, 1 - 1e-4).logit()).sigmoid().half(),
        None if phi is None else normalize(shifted(phi), dim=2).half(),
    )


def make_catalogue(path: Path, real: Embeddings, items: int, taxonomy: Taxonomy) -> Catalogue:
    """Write the embeddings of `items` jittered images to a file, and map it into memory."""

    def blocks() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, items, BATCH):
            block = jittered(real, min(BATCH, items - start), seed=1 + start)
            values = {kind: getattr(block, kind).numpy() for kind in KINDS if getattr(block, kind) is not None}
            yield {"rows": start + block.rows.numpy(), **values}

    files.write_tensors(path, items, blocks())
    names = [f"{i}.jpg" for i in range(items)]
    return Catalogue(taxonomy, pa.array(names), metrics.tie_keys(names).numpy(), Embeddings.load(path))


def timed(search: Callable[[int], np.ndarray]) -> tuple[list[np.ndarray], dict[str, float]]:
    """Run all queries one after the other; return their results, and queries_per_second, p50_ms and p99_ms."""
    for i in range(WARM_UP):
        search(i)
    results, seconds = [], []
    for i in range(QUERIES):
        start = time.perf_counter()
        results.append(search(i))
        seconds.append(time.perf_counter() - start)
    p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
    return results, {"queries_per_second": QUERIES / sum(seconds), "p50_ms": p50, "p99_ms": p99}


def measure(case: Case, catalogue: Catalogue, query: Embeddings) -> Iterator[dict]:
    """Yield one row of the table per kind of index that fits the size, and one for the search by two classes."""
    items, ties = len(catalogue), catalogue.ties
    vectors, query_vectors = (
        catalogue.vectors(to_vectors, case.score, 0) for to_vectors in (scores.candidate_vectors, scores.query_vectors)
    )
    queries = scores.query_vectors(case.score, query).numpy()
    truth = vector_index.true_best(vectors, queries, items, 100)[1]
    name = f"{case.variant} {case.score}" + " lifted" * case.lifted
    row = {"case": name, "dims": queries.shape[1], "items": items}
    row["disk_bytes"] = sum(getattr(catalogue.embeddings, kind).nbytes for kind in SCORES[case.score]) / items
    row["shared_bytes"] = (catalogue.names.nbytes + catalogue.rows.nbytes + ties.nbytes) / items
    for kind in ("compressed", "exact"):
        if kind == "exact" and items * queries.shape[1] > MAX_EXACT_FLOATS:
            continue
        start = time.perf_counter()
        index, shortlist = vector_index.build(vectors, query_vectors, items, queries.shape[1], kind, seed=0)
        result = {"kind": kind, "build_seconds": time.perf_counter() - start}
        result["memory_bytes"] = len(faiss.serialize_index(index)) / items
        if kind == "compressed":
            ivf = faiss.extract_index_ivf(index)
            result |= {"cells": ivf.nlist, "looked_into": ivf.nprobe, "shortlist": shortlist}
        found = partial(vector_index.rank, index, vectors, ties=ties, k=100, shortlist=shortlist)
        ranked, times = timed(lambda i, found=found: found(query=queries[i])[0])
        for k in (10, 100):
            result[f"recall_{k}"] = faiss.eval_intersection(np.array(ranked)[:, :k], truth[:, :k]) / (QUERIES * k)
        yield row | result | times
    if "classes" in SCORES[case.score]:
        single = [query.take(np.array([i])) for i in range(QUERIES)]
        _, times = timed(lambda i: catalogue.rank_by_classes(single[i], 0, [1, 3], 100)[0])
        yield row | {"kind": "two classes", "recall_10": 1.0, "recall_100": 1.0} | times


def run(root: Path, sizes: Sequence[int]) -> pd.DataFrame:
    """Measure every case at every size, and print each row of the table when it is measured."""
    rows = []
    for case in CASES:
        real, taxonomy = read(root, case)
        for items in sizes:
            with tempfile.TemporaryDirectory() as folder:
                catalogue = make_catalogue(Path(folder) / "embeddings.safetensors", real, items, taxonomy)
                for row in measure(case, catalogue, jittered(real, QUERIES, seed=0)):
                    short = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
                    print(*(f"{key} {value}" for key, value in short.items()), sep="  ", flush=True)
                    rows.append(row)
    return pd.DataFrame(rows)


def main(sizes: Sequence[int] = SIZES) -> int:
    root = find_root()
    images = open_prepared(root / "data" / "prepared").images
    print(busy.compare(Index.open(), [images[i] for i in range(min(50, len(images)))]), flush=True)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        table = run(root, sizes)
    folder = root / "data" / "results"
    table.round(4).to_csv(folder / "search.csv", index=False)
    (folder / "search.md").write_text(scaling.page(table, JITTER))
    print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, mapped files included")
    return 0


if __name__ == "__main__":
    sys.exit(main([int(size) for size in sys.argv[1:]] or SIZES))
