"""`make bench WHAT=ranking`: the exact evaluation against other ways to the same numbers, and against its floor.

Random unit vectors in half precision, labels of one class an image with a long tail. The sizes are those of one
attribute of FashionAI's real test split (neck design, 1,024 numbers), and of DeepFashion's with every photo known under
the attribute (218 classes, score `weighted`, 64 numbers a class). One thread; a slow way gets the first queries
alone, its time counted per query. The floor is one matrix product and one sort of the values in each row, from which
no score can be read yet. Then all of DeepFashion's evaluation, in a process of its own: five
attributes, 1,000 classes, embeddings read from a file.

pytorch-metric-learning and torchmetrics are measured where they are installed: nothing else here needs them.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
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
        return Embeddings(rows, unit((count, 1, dim), g), None, None), labels.numpy()
    likely = 4 * torch.rand(count, classes, generator=g) + 3 * F.one_hot(labels, classes)
    return Embeddings(rows, None, likely.softmax(1).half(), unit((count, classes, dim), g)), labels.numpy()


def unit(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random unit vectors in half precision, made a few at a time."""
    result = torch.empty(shape, dtype=torch.half)
    for part in result.split(512):
        part.copy_(F.normalize(torch.randn(part.shape, generator=generator), dim=-1))
    return result


class Case:
    """One attribute's arrays, and every way from similarities (b, C) to MAP@all of their queries, the first b."""

    def __init__(self, queries: int, candidates: int, classes: int, score: str, dim: int):
        self.score = score
        self.query, self.query_class = draw(queries, classes, score, dim, 0)
        self.candidate, self.candidate_class = draw(candidates, classes, score, dim, 1)
        self.labels, self.tie = np.eye(classes, dtype=bool), torch.arange(candidates)

    def product(self) -> torch.Tensor:
        return scores.similarity(self.score, self.query, self.candidate)

    def relevant(self, alike: torch.Tensor) -> np.ndarray:
        return self.query_class[: len(alike), None] == self.candidate_class

    def ours(self, alike: torch.Tensor) -> float:
        labels = self.labels[self.query_class[: len(alike)]], self.labels[self.candidate_class]
        return metrics.evaluate_attribute(alike, *labels).ap_all.mean()

    def floor(self, alike: torch.Tensor) -> None:
        np.sort(alike.numpy(), axis=1)

    def official(self, alike: torch.Tensor) -> float:
        """For each query an argsort and a loop over all candidates."""
        found = []
        for row, wanted in zip(alike.numpy(), self.query_class, strict=False):
            hits, total = 0, 0.0
            for rank, place in enumerate(np.argsort(-row)):
                if self.candidate_class[place] == wanted:
                    hits += 1
                    total += hits / (rank + 1)
            found.append(total / hits)
        return float(np.mean(found))

    def scikit_learn(self, alike: torch.Tensor) -> float:
        pairs = zip(self.relevant(alike), alike.numpy(), strict=True)
        return float(np.mean([average_precision_score(hit, row) for hit, row in pairs]))

    def torchmetrics(self, alike: torch.Tensor) -> float:
        from torchmetrics.functional.retrieval import retrieval_average_precision

        positive = alike + 1  # it takes no candidate for relevant whose score is 0 or less, which a cosine may be
        pairs = zip(positive, torch.from_numpy(self.relevant(alike)), strict=True)
        return float(torch.stack([retrieval_average_precision(row, hit) for row, hit in pairs]).mean())

    def metric_learning(self, alike: torch.Tensor) -> float:
        """pytorch-metric-learning's MAP over all ranks, with the neighbours given: all candidates, in order."""
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        order = alike.sort(dim=1, descending=True)
        given = {"knn_func": lambda *_: (-order.values, order.indices), "k": alike.shape[1]}
        calculator = AccuracyCalculator(include=("mean_average_precision",), device=alike.device, **given)
        classes = torch.from_numpy(self.query_class[: len(alike)]), torch.from_numpy(self.candidate_class)
        found = calculator.get_accuracy(alike[:, :1], classes[0], self.tie[:, None].float(), classes[1])
        return found["mean_average_precision"]


WAYS: dict[str, tuple[Callable, str | None]] = {  # name: (way, package)
    "floor: a sort of the values": (Case.floor, None),
    "ours": (Case.ours, None),
    "official style": (Case.official, None),
    "scikit-learn": (Case.scikit_learn, None),
    "torchmetrics": (Case.torchmetrics, "torchmetrics"),
    "pytorch-metric-learning": (Case.metric_learning, "pytorch_metric_learning"),
}


def compare(title: str, case: Case, rounds: int = 3) -> None:
    """Print every way's time a query: after the matrix product that all of them share, and with it."""
    torch.set_num_threads(1)
    product, alike, rows = best(case.product, rounds) / len(case.query_class), case.product(), {}
    for name, (way, package) in WAYS.items():
        if package and find_spec(package) is None:
            print(f"{name}: not installed")
            continue
        value = way(case, alike[:FIRST])  # and whatever it imports
        some = alike if way in (Case.floor, Case.ours) else alike[:FIRST]
        after = best(lambda way=way, some=some: way(case, some), rounds) / len(some)
        rows[name] = {"after the product": after, "with it": product + after, "MAP@all": value}
    table = pd.DataFrame(rows).T
    table["times the floor"] = pd.to_numeric(table["with it"]) / table["with it"].iloc[0]
    table[["after the product", "with it"]] *= 1000
    shown = table.to_string(float_format="{:.4g}".format)
    print(f"\n{title}: milliseconds a query; MAP@all of the first {FIRST}\n{shown}", flush=True)


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the quickest of some rounds."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def whole(folder: Path, queries: int, candidates: int, sizes: tuple[int, ...]) -> None:
    """Write embeddings of DeepFashion's size and evaluate them in a process of their own."""
    count = queries + candidates
    embeddings = Embeddings(torch.arange(count), None, *posterior_and_classes(count, sizes))
    embeddings.save(folder / "embeddings.safetensors")
    size = (folder / "embeddings.safetensors").stat().st_size / 1e9
    del embeddings
    code = "import sys; from tests.bench import ranking as bench_ranking; bench_ranking.evaluate_whole(*sys.argv[1:])"
    print(
        f"\nall of DeepFashion: 5 attributes, {queries:,} x {candidates:,}, {sum(sizes):,} classes x 64 ({size:.1f} GB)"
    )
    arguments = [str(folder), str(queries), str(candidates), ",".join(map(str, sizes))]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def posterior_and_classes(count: int, sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    posterior = torch.cat([(6 * torch.rand(count, size, generator=g)).softmax(1).half() for size in sizes], dim=1)
    return posterior, unit((count, sum(sizes), 64), g)


def evaluate_whole(folder: str, queries: str, candidates: str, sizes: str) -> None:
    """In a process of its own: read, evaluate, and say what it took."""
    torch.set_num_threads(2)
    taxonomy = Taxonomy(
        tuple(Attribute(f"a{n}", tuple(map(str, range(int(m))))) for n, m in enumerate(sizes.split(",")))
    )
    count, rng = int(queries) + int(candidates), np.random.default_rng(0)
    drawn = [rng.integers(low, high, count) for low, high in zip(taxonomy.offsets, taxonomy.offsets[1:], strict=False)]
    frame = {"image": [f"{i}.jpg" for i in range(count)], "split": "test", "labels": list(np.stack(drawn, axis=1))}
    frame["role"] = ["query"] * int(queries) + ["candidate"] * int(candidates)
    prepared = Prepared(taxonomy, pd.DataFrame(frame), np.zeros((count, 1, 1, 3), np.uint8))
    start = time.perf_counter()
    embeddings = Embeddings.load(Path(folder) / "embeddings.safetensors")
    found = metrics.summarise(ranking.evaluate(prepared, "test", "weighted", embeddings))["map_all"]["overall_by_query"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    mapped = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    own = peak - int(mapped.split()[1]) / 1e6
    print(f"  2 threads: {time.perf_counter() - start:.1f} s; MAP@all {100 * found:.3f}")
    print(
        f"  peak memory {peak:.2f} GB: {own:.2f} GB its own, the rest the mapped file, which the system may take back"
    )


def main(scale: float = 1.0) -> int:
    """scale: of DeepFashion's numbers of images, to try things."""
    compare("FashionAI, one attribute (703 x 2,734, 1,024 numbers)", Case(**FASHIONAI))
    own = DEEPFASHION | {"candidates": int(scale * 22_400)}
    compare(f"DeepFashion, one attribute ({QUERIES} of its queries x 22,400, 218 classes x 64, weighted)", Case(**own))
    with tempfile.TemporaryDirectory() as folder:
        whole(Path(folder), int(scale * 5600), int(scale * 22_400), SIZES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
