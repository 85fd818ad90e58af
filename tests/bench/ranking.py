"""`make bench WHAT=ranking`: the evaluation against other ways to the same numbers, and against its lower bound.

Random unit vectors in half precision, one class per image, with a long tail. The sizes are those of one attribute of
FashionAI's real test split (neck design, 1,024 numbers), and of DeepFashion's with every image labelled under the
attribute (218 classes, score `weighted`, 64 numbers per class). One thread. Slow ways get only the first queries: times
are per query. The lower bound is one matrix product and one sort of the values in each row, which yields no metric yet.
At last all of DeepFashion's evaluation in a new process: five attributes, 1,000 classes, embeddings read from a file.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics, ranking, scores
from m3lib.retrieval.embeddings import Embeddings
from m3lib.taxonomy import Attribute, Taxonomy
from tests.bench.measure import in_new_process, seconds

QUERIES = 512  # of 5,600: a query costs the same with the others
FASHIONAI = {"queries": 703, "candidates": 2734, "classes": 10, "score": "attribute", "dim": 1024}
DEEPFASHION = {"queries": QUERIES, "candidates": 22_400, "classes": 218, "score": "weighted", "dim": 64}
SIZES = (156, 218, 180, 216, 230)  # classes of DeepFashion's attributes
FIRST = 16  # queries that the slow ways get


def draw(count: int, classes: int, score: str, dim: int, seed: int) -> tuple[Embeddings, np.ndarray]:
    """Embeddings of `count` images under one attribute, and (count,) classes."""
    g, rows = torch.Generator().manual_seed(seed), torch.arange(count)
    labels = (torch.rand(count, generator=g) ** 2 * classes).long()
    if score == "attribute":
        return Embeddings(rows, unit((count, 1, dim), g)), labels.numpy()
    logits = 4 * torch.rand(count, classes, generator=g) + 3 * F.one_hot(labels, classes)
    return Embeddings(rows, None, logits.softmax(1).half(), unit((count, classes, dim), g)), labels.numpy()


def unit(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random unit vectors in half precision, drawn in blocks."""
    result = torch.empty(shape, dtype=torch.half)
    for block in result.split(512):
        block.copy_(F.normalize(torch.randn(block.shape, generator=generator), dim=-1))
    return result


class Case:
    """The arrays of one attribute; each way computes MAP@all of the first b queries from similarities (b, C)."""

    def __init__(self, queries: int, candidates: int, classes: int, score: str, dim: int):
        self.score, self.num_classes = score, classes
        self.query, self.query_class = draw(queries, classes, score, dim, 0)
        self.candidate, self.candidate_class = draw(candidates, classes, score, dim, 1)

    def product(self) -> torch.Tensor:
        return scores.similarity(self.score, self.query, self.candidate)

    def lower_bound(self, similarity: torch.Tensor) -> None:
        np.sort(similarity.numpy(), axis=1)

    def ours(self, similarity: torch.Tensor) -> float:
        one_hot = np.eye(self.num_classes, dtype=bool)
        labels = one_hot[self.query_class[: len(similarity)]], one_hot[self.candidate_class]
        return metrics.evaluate_attribute(similarity, *labels).ap_all.mean()

    def official(self, similarity: torch.Tensor) -> float:
        """For each query an argsort and a loop over all candidates."""
        aps = []
        for row, class_id in zip(similarity.numpy(), self.query_class, strict=False):
            hits, total = 0, 0.0
            for rank, candidate in enumerate(np.argsort(-row)):
                if self.candidate_class[candidate] == class_id:
                    hits += 1
                    total += hits / (rank + 1)
            aps.append(total / hits)
        return float(np.mean(aps))

    def scikit_learn(self, similarity: torch.Tensor) -> float:
        pairs = zip(self.query_class, similarity.numpy(), strict=False)
        return float(np.mean([average_precision_score(self.candidate_class == m, row) for m, row in pairs]))


WAYS: dict[str, Callable] = {
    "lower bound: a sort of the values": Case.lower_bound,
    "ours": Case.ours,
    "official style": Case.official,
    "scikit-learn": Case.scikit_learn,
}


def compare(title: str, case: Case, rounds: int = 3) -> None:
    """Print every way's time per query: after the matrix product that all of them share, and with it."""
    torch.set_num_threads(1)
    product = min(seconds(case.product) for _ in range(rounds)) / len(case.query_class)
    similarity, rows = case.product(), {}
    for name, way in WAYS.items():
        block = similarity if way in (Case.lower_bound, Case.ours) else similarity[:FIRST]
        after = min(seconds(lambda way=way, block=block: way(case, block)) for _ in range(rounds)) / len(block)
        rows[name] = {"ms after the product": 1000 * after, "ms with it": 1000 * (product + after)}
        rows[name] |= {"MAP@all": way(case, similarity[:FIRST])}
    table = pd.DataFrame(rows).T.astype(float)
    table["times the lower bound"] = table["ms with it"] / table["ms with it"].iloc[0]
    text = table.to_string(float_format="{:.4g}".format)
    print(f"\n{title}: milliseconds per query; MAP@all of the first {FIRST}\n{text}", flush=True)


def full(folder: Path, queries: int, candidates: int, sizes: tuple[int, ...]) -> None:
    """Write embeddings of DeepFashion's size and evaluate them in a new process."""
    count, g = queries + candidates, torch.Generator().manual_seed(2)
    posterior = torch.cat([(6 * torch.rand(count, size, generator=g)).softmax(1).half() for size in sizes], dim=1)
    path = folder / "embeddings.safetensors"
    Embeddings(torch.arange(count), None, posterior, unit((count, sum(sizes), 64), g)).save(path)
    size = path.stat().st_size / 1e9
    print(f"\nall of DeepFashion: {queries:,} x {candidates:,}, {sum(sizes):,} classes x 64 ({size:.1f} GB)")
    print(in_new_process("ranking.evaluate", str(path), queries, candidates, sizes))


def evaluate(path: str, queries: int, candidates: int, sizes: list[int]) -> str:
    torch.set_num_threads(2)
    taxonomy = Taxonomy(tuple(Attribute(f"a{n}", tuple(map(str, range(size)))) for n, size in enumerate(sizes)))
    count, rng = queries + candidates, np.random.default_rng(0)
    labels = [rng.integers(low, high, count) for low, high in zip(taxonomy.offsets, taxonomy.offsets[1:], strict=False)]
    frame = {"image": [f"{i}.jpg" for i in range(count)], "split": "test", "labels": list(np.stack(labels, axis=1))}
    frame["role"] = ["query"] * queries + ["candidate"] * candidates
    prepared = Prepared(taxonomy, pd.DataFrame(frame), np.zeros((count, 1, 1, 3), np.uint8))
    results = ranking.evaluate(prepared, "test", "weighted", Embeddings.load(Path(path)))
    return f"2 threads: MAP@all {100 * metrics.summarise(results)['map_all']['overall_by_query']:.3f}"


def main() -> int:
    compare("FashionAI, one attribute (703 x 2,734, 1,024 numbers)", Case(**FASHIONAI))
    title = f"DeepFashion, one attribute ({QUERIES} of its queries x 22,400, 218 classes x 64, weighted)"
    compare(title, Case(**DEEPFASHION))
    with tempfile.TemporaryDirectory() as folder:
        full(Path(folder), 5600, 22_400, SIZES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
