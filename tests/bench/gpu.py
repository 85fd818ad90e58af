"""`make bench WHAT=gpu`: what only a GPU can show, in a few minutes; writes data/results/gpu.csv and gpu.md.

Every ratio compares two works that take turns within one run. Networks have the published size: ResNet-50, 224 px,
1,000 classes of 5 attributes, trained in the precision that `train.precision: auto` chooses.
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from m3lib import config
from m3lib.analysis.markdown import markdown_table
from m3lib.errors import exit_status
from m3lib.training import devices
from tests.bench.train import BASE, PLAIN, ROUNDS, Bench, Stepper, ratio, take_turns

NETWORKS = ("m3", "duet")
ITEMS, DIMS, K = 1_000_000, 192, 100  # of the exact search: the attribute embeddings of m3
QUERIES = (1, 64)  # asked at once
BATCHES = (64, 256)  # of a training step
EMBEDDED = 4096  # images


def steps(bench: Bench, batch: int) -> None:
    """Steps of each network beside plain classification steps, and m3's with one process under NCCL.

    Ten at a time: the next batch is read while the GPU computes, as in training.
    """
    shape = (batch, *BASE["published"][1:])
    steppers = {name: bench.stepper(name, shape) for name in (PLAIN, *NETWORKS)}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        steppers["m3 under NCCL"] = bench.stepper("m3", shape)
        times = take_turns({name: partial(ten_steps, stepper) for name, stepper in steppers.items()}, bench.rounds)
        dist.destroy_process_group()
    for name in NETWORKS:
        bench.add(f"10 steps of {name}", f"10 steps of {PLAIN}", shape, ratio(times[PLAIN], times[name]), times[name])
    one, nccl = times["m3"], times["m3 under NCCL"]
    bench.add("10 steps of m3, one process under NCCL", "10 steps of m3", shape, ratio(one, nccl), nccl)


def ten_steps(stepper: Stepper) -> None:
    for _ in range(10):
        stepper.step()


def search(bench: Bench) -> None:
    """The exact nearest neighbours among ITEMS vectors, on the GPU and by faiss on all CPU cores."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((ITEMS, DIMS), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, on_gpu = faiss.IndexFlatIP(DIMS), torch.from_numpy(vectors).cuda()
    index.add(vectors)
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    for count in QUERIES:
        queries = vectors[generator.choice(ITEMS, count, replace=False)]

        def by_gpu(queries: np.ndarray = queries) -> np.ndarray:
            return (torch.from_numpy(queries).cuda() @ on_gpu.T).topk(K).indices.cpu().numpy()

        found, true = by_gpu(), index.search(queries, K)[1]
        recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, true, strict=True)])
        times = take_turns({"cpu": partial(index.search, queries, K), "gpu": by_gpu}, bench.rounds)
        what = f"exact search, {count} of {ITEMS:,} x {DIMS}, recall {recall:.4f}"
        bench.add(
            what, f"faiss, {faiss.omp_get_max_threads()} threads", (np.nan,) * 4, ratio(*times.values()), times["gpu"]
        )


def main() -> int:
    devices.choose("cuda", "auto")  # raises InputError without a GPU
    folder = config.find_root() / "data" / "results"
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench("published", Path(temporary), ROUNDS)
        for batch in BATCHES:
            steps(bench, batch)
        bench.extraction((EMBEDDED // 2, *BASE["published"][1:]))
        search(bench)
    table = pd.DataFrame(bench.rows).drop(columns="peak_mb")
    table.to_csv(folder / "gpu.csv", index=False)
    first = table.iloc[0]
    precision = devices.precision("auto", torch.device("cuda"))
    about = f"Written by `make bench WHAT=gpu`: {first['device']}, {first['backbone']}, {precision}, {first['date']}."
    table["batch"] = table["batch"].map("{:.0f}".format).where(table["what"].str.contains("steps"), "")
    cells = table[["what", "against", "batch", "ratio", "ms"]].astype(str).set_index("what")
    legend = "A ratio is a share of the other's speed: 1 is as fast, above 1 is faster."
    text = "\n".join(["# On a GPU", "", about, legend, "", markdown_table(cells), ""])
    (folder / "gpu.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
