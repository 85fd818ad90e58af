"""`make bench WHAT=engines`: both engines of the search index at 10,000 to a million images, in one run.

The images are jittered copies of real ones, as in `tests.bench.search`, here of Duet's first attribute with the score
`open`. Each engine is built, then opened, in a new process, so that its memory is its own. A query asks for the 100
best; recall is against the exact ranking. Queries with a filter ask for those with price < 10, a tenth of the images.
Then, with LanceDB: a mixed load of inserts and queries, and processes that are killed while they insert. Writes
data/results/engines.csv and engines.md. Sizes and the seconds of the load can be given:

    python -m tests.bench.engines 10000 30
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch

from m3lib import config
from m3lib.analysis.markdown import markdown_table
from m3lib.errors import exit_status
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.scores import candidate_vectors, query_vectors
from m3lib.search import vector_index
from m3lib.search.index import ENGINES, engine_of
from m3lib.taxonomy import Taxonomy
from tests.bench import scaling
from tests.bench.measure import in_new_process
from tests.bench.search import JITTER, Case, jittered, make_catalogue, read

SIZES, LOAD_SECONDS, LOAD_ITEMS = (10_000, 100_000, 1_000_000), 300, 100_000
CASE = Case("duet", "open")
QUERIES, WARM_UP, K, CLIENTS = 200, 20, 100, (1, 8)
KILLS = 3
FILTER = "price < 10"
WHY = """\
Why LanceDB: the same client opens a folder here and an object store (`s3://`, `az://`, `gs://`) or LanceDB's servers
there; several processes read and write one table; its memory hardly grows with the table, since a search reads the
cells that it needs; a condition on columns is applied before the search. Of the others,
pgvector (PostgreSQL) answered faster without a condition and waits for the disk at every insert, but needs a server,
and its graph index lost most of the true best under a condition, unless it was told to go on; Qdrant Edge was the
fastest, but lost many of them too and serves one process only; Milvus Lite was the slowest by far.
These three were tried once, at up to 100,000 clustered random vectors, with one installed package each; OpenSearch, the
servers of Qdrant and Milvus, and LanceDB on an object store were judged by their documentation."""
COST = """\
In proportion to the largest size and with {attributes} attributes, LanceDB takes {disk} of disk and {hours:.1f} core
hours to build for {name} images."""
LOADED = """\
A mixed load on {images:,} images in LanceDB: one client inserts and four ask for {seconds:.0f} s. {inserts:.0f} inserts
(p50 {insert_p50_ms:.0f} ms, p99 {insert_p99_ms:.0f} ms) and {queries:.0f} queries (p50 {query_p50_ms:.0f} ms, p99
{query_p99_ms:.0f} ms); {lost:.0f} inserts were not found at once or at the end."""
KILLED = """\
{processes:.0f} processes were killed while they inserted: {acknowledged:.0f} inserts were acknowledged, {lost:.0f} of
them lost."""


def inputs(folder: Path) -> tuple[Embeddings, Taxonomy]:
    return Embeddings.load(folder / "real.safetensors"), Taxonomy.load(folder / "taxonomy.json")


def prices(items: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 100, items).round(2)


def queries_of(folder: Path) -> np.ndarray:
    return query_vectors(CASE.score, jittered(inputs(folder)[0], QUERIES, seed=0)).numpy()


def build(name: str, root: str, items: int) -> dict:
    """Build an engine's files; returns their bytes."""
    folder, (real, taxonomy) = Path(root) / name, inputs(Path(root))
    folder.mkdir()
    catalogue = make_catalogue(folder / "embeddings.safetensors", real, items, taxonomy)
    settings = replace(config.load(config.find_root() / "params.yaml").index, engine=name)
    columns = pd.DataFrame({"price": prices(items)})
    start = time.perf_counter()
    content = engine_of(name).build(folder, catalogue, CASE.score, settings, 0, columns, "bench")
    spent = time.perf_counter() - start
    (folder / "content.json").write_text(json.dumps(content))
    return {"build_seconds": spent, "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / items}


def opened(name: str, root: str):
    folder = Path(root) / name
    content = json.loads((folder / "content.json").read_text())
    return engine_of(name).open(folder, content, inputs(Path(root))[1], CASE.score)


def ask(name: str, root: str, clients: int, where: str) -> dict:
    """Queries of several clients, each a thread: recall, queries per second, and milliseconds of one."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    engine, queries = opened(name, root), queries_of(Path(root))
    truth = np.load(Path(root) / ("filtered.npy" if where else "truth.npy"))
    for i in range(WARM_UP):
        engine.by_attribute(queries[i], 0, K, where)

    def one(i: int) -> tuple[float, list[str]]:
        start = time.perf_counter()
        found = engine.by_attribute(queries[i], 0, K, where)
        return time.perf_counter() - start, found.names

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds, names = zip(*pool.map(one, range(QUERIES)), strict=True)
    spent = time.perf_counter() - start
    hits = [len({f"{i}.jpg" for i in best.tolist()} & {*found}) for best, found in zip(truth, names, strict=True)]
    p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
    return {"recall_100": sum(hits) / truth.size, "per_second": QUERIES / spent, "p50_ms": p50, "p99_ms": p99}


def write_truth(root: Path, items: int) -> None:
    """The true best of all queries, of all images and of those that the filter leaves."""
    real, taxonomy = inputs(root)
    catalogue = make_catalogue(root / "truth.safetensors", real, items, taxonomy)
    vectors, queries, left = catalogue.vectors(candidate_vectors, CASE.score, 0), queries_of(root), prices(items) < 10
    np.save(root / "truth.npy", vector_index.true_best(vectors, queries, items, K)[1])
    kept = np.flatnonzero(left)
    best = vector_index.true_best(lambda i: vectors(kept[i]), queries, len(kept), K)[1]
    np.save(root / "filtered.npy", kept[best])
    (root / "truth.safetensors").unlink()


def compare(root: Path, items: int) -> list[dict]:
    """The rows of both engines at one size."""
    write_truth(root, items)
    rows = []
    for name in ENGINES:
        built = in_new_process("engines.build", name, str(root), items)
        row = {"engine": name, "images": items, "build GB": built["peak GB"], **built["result"]}
        for clients, where in [(c, "") for c in CLIENTS] + [(1, FILTER)] * (name == "lancedb"):
            asked = in_new_process("engines.ask", name, str(root), clients, where)
            rows.append(row | {"clients": clients, "filter": where, "GB": asked["peak GB"], **asked["result"]})
            print(rows[-1], flush=True)
    return rows


def load(root: str, seconds: float) -> dict:
    """One thread inserts, four ask, for some seconds; every insert must be found by name at once."""
    engine, queries, (real, _) = opened("lancedb", root), queries_of(Path(root)), inputs(Path(root))
    end, asked, inserted, lost = time.perf_counter() + seconds, [], [], 0
    before = len(engine)

    def keep_asking(client: int) -> None:
        i = client
        while i == client or time.perf_counter() < end:
            start = time.perf_counter()
            engine.by_attribute(queries[i % QUERIES], 0, K, "")
            asked.append(time.perf_counter() - start)
            i += 4

    threads = [threading.Thread(target=keep_asking, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    while not inserted or time.perf_counter() < end:
        name, start = f"new {len(inserted)}.jpg", time.perf_counter()
        engine.add(name, jittered(real, 1, seed=10_000 + len(inserted)), {"price": 1.0})
        inserted.append(time.perf_counter() - start)
        lost += engine.stored(name) is None
    for thread in threads:
        thread.join()
    lost += before + len(inserted) - len(engine)
    quantiles = {f"{what}_p{q}_ms": 1000 * np.quantile(values, q / 100)
                 for what, values in (("insert", inserted), ("query", asked)) for q in (50, 99)}  # fmt: skip
    return {"inserts": len(inserted), "queries": len(asked), "lost": lost, **quantiles}


def insert_for_ever(root: str) -> None:
    """Insert and print each name once it is acknowledged."""
    engine, (real, _) = opened("lancedb", root), inputs(Path(root))
    for number in range(1_000_000):
        name = f"killed {os.getpid()} {number}.jpg"
        engine.add(name, jittered(real, 1, seed=number), {})
        print(name, flush=True)


def kills(root: Path) -> dict:
    """Processes that are killed while they insert: how many names they acknowledged, and how many of these are gone."""
    acknowledged, gone = 0, 0
    for number in range(KILLS):
        command = [sys.executable, "-c", f"from tests.bench.engines import *; insert_for_ever({str(root)!r})"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=config.find_root())
        names = [child.stdout.readline().strip()]
        threading.Timer(2 + number / KILLS, os.kill, (child.pid, signal.SIGKILL)).start()
        names += [line.strip() for line in child.stdout if line.endswith("\n")]
        child.wait()
        there = {*opened("lancedb", str(root)).images}
        acknowledged, gone = acknowledged + len(names), gone + len({*names} - there)
    return {"processes": KILLS, "acknowledged": acknowledged, "lost": gone}


def page(table: pd.DataFrame) -> str:
    shown = {
        "engine": "{}", "images": "{:,}", "clients": "{:.0f}", "filter": "{}", "recall_100": "{:.3f}",
        "per_second": "{:.0f}", "p50_ms": "{:.1f}", "p99_ms": "{:.1f}", "bytes": "{:.0f}", "build_seconds": "{:.0f}",
        "build GB": "{:.1f}", "GB": "{:.1f}",
    }  # fmt: skip
    asked, (loaded, killed) = table[table["recall_100"].notna()], (table[table["what"] == w] for w in ("load", "kill"))
    cells = pd.DataFrame({name: asked[name].map(form.format) for name, form in shown.items()})
    about = (
        "Written by `make bench WHAT=engines` from `data/results/engines.csv`, both engines in one run. Images are",
        f"jittered copies ({JITTER}, see `search.md`) of Duet's embeddings of one attribute, with the score `open`; a",
        "query asks for the 100 best, and recall is against the exact ranking. Clients are threads of one process.",
        "Bytes are on disk, per image; GB is the peak memory of building, and of answering with mapped files included.",
        "The time to embed a photo is not included.",
    )
    parts = ["# The engines of the search index", "", *about, "", markdown_table(cells.set_index("engine"))]
    for rows, sentence in ((loaded, LOADED), (killed, KILLED)):
        parts += ["", *(" ".join(sentence.format(**row).split()) for row in rows.to_dict("records"))]
    lance = asked[asked["engine"] == "lancedb"].sort_values("images").iloc[-1]
    for name, items in scaling.TARGETS.items():
        disk = scaling.in_gigabytes(lance["bytes"] * items * scaling.ATTRIBUTES)
        hours = lance["build_seconds"] / lance["images"] * items * scaling.ATTRIBUTES / 3600
        sentence = COST.format(attributes=scaling.ATTRIBUTES, disk=disk, hours=hours, name=name)
        parts += ["", " ".join(sentence.split())]
    parts += ["", " ".join(WHY.split())]
    return "\n".join(parts) + "\n"


def main(sizes: tuple[int, ...] = SIZES, seconds: float = LOAD_SECONDS) -> int:
    rows, (real, taxonomy) = [], read(config.find_root(), CASE)
    for items in sizes:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            real.save(root / "real.safetensors")
            taxonomy.save(root / "taxonomy.json")
            rows += [{"what": "search", **row} for row in compare(root, items)]
            if items == min(LOAD_ITEMS, max(sizes)):
                loaded = in_new_process("engines.load", str(root), seconds)["result"]
                rows.append({"what": "load", "images": items, "seconds": seconds, **loaded})
                rows.append({"what": "kill", "images": items, **kills(root)})
                print(*rows[-2:], sep="\n", flush=True)
    save(pd.DataFrame(rows).round(4))
    return 0


def save(table: pd.DataFrame) -> None:
    folder = config.find_root() / "data" / "results"
    table.to_csv(folder / "engines.csv", index=False)
    (folder / "engines.md").write_text(page(table))


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    sys.exit(exit_status(lambda: main(tuple(numbers[:-1]), numbers[-1]) if numbers else main()))
