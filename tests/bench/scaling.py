"""The page data/results/search.md, whose numbers are all computed from search.csv, and the costs at larger sizes.

Assumptions, which the page states: a machine has MEMORY, DISK and CORES. Each core holds an equal share of the images
as a separate index and answers every query on it; the best results of all shares are merged. Time and memory are
proportional to the size of a share. That overestimates time, because the number of items to score again is constant.
"""

import math

import pandas as pd

CORES, MEMORY, DISK = 16, 64e9, 2e12  # of one machine; bytes
USABLE = 0.8  # fraction of memory and disk
ATTRIBUTES = 5  # of a catalogue, as in DeepFashion
LINKS = 2 * 16 * 4  # bytes per item of a graph index (HNSW with M = 16), beside its float32 vector
TARGETS = {"10 million": 10_000_000, "1 billion": 1_000_000_000}
COLUMNS = {  # of the measurements: column of search.csv, format
    "recall@10": ("recall_10", "{:.3f}"),
    "recall@100": ("recall_100", "{:.3f}"),
    "bytes in memory": ("memory_bytes", "{:.0f}"),
    "bytes on disk": ("disk_bytes", "{:.0f}"),
    "build (s)": ("build_seconds", "{:.1f}"),
    "queries/s": ("queries_per_second", "{:.0f}"),
    "p50 (ms)": ("p50_ms", "{:.2f}"),
    "p99 (ms)": ("p99_ms", "{:.2f}"),
}


def in_gigabytes(size: float) -> str:
    return f"{size / 1e9:.0f} GB" if size < 1e12 else f"{size / 1e12:.1f} TB"


FORMATS = {  # of the estimates
    "memory": in_gigabytes,
    "disk": in_gigabytes,
    "machines": "{}".format,
    "build, core hours": "{:.1f}".format,
    "build, hours": "{:.2f}".format,
    "ms per query": "{:.1f}".format,
    "graph": in_gigabytes,
}


def cost(row: pd.Series, items: int) -> dict[str, float]:
    """Estimate costs for `items` images and ATTRIBUTES attributes, each like a measured compressed index (row).

    Returns machines; bytes of memory, of disk, and of memory for a graph index of the same vectors; the time to build;
    ms per query, without embedding the photo and without the network between machines.
    """
    memory = (row["memory_bytes"] * ATTRIBUTES + row["shared_bytes"]) * items
    disk = row["disk_bytes"] * ATTRIBUTES * items
    machines = max(1, math.ceil(memory / (USABLE * MEMORY)), math.ceil(disk / (USABLE * DISK)))
    core_hours = row["build_seconds"] / row["items"] * items * ATTRIBUTES / 3600
    return {
        "memory": memory,
        "disk": disk,
        "machines": machines,
        "build, core hours": core_hours,
        "build, hours": core_hours / (machines * CORES),
        "ms per query": row["p50_ms"] * items / (machines * CORES) / row["items"],
        "graph": (4 * row["dims"] + LINKS) * items * ATTRIBUTES,
    }


def page(table: pd.DataFrame, jitter: float) -> str:
    """Return the page in Markdown; table and jitter: as in tests/bench/search.py."""
    compressed = table[table["kind"] == "compressed"]
    largest = compressed[compressed["items"] == compressed["items"].max()]
    return PAGE.format(
        jitter=jitter,
        shared_bytes=largest["shared_bytes"].mean(),
        measured=markdown_table(measurements(table)),
        attributes=ATTRIBUTES,
        cores=CORES,
        memory=in_gigabytes(MEMORY),
        disk=in_gigabytes(DISK),
        usable=100 * USABLE,
        estimated=markdown_table(estimates(largest)),
    )


PAGE = """# Search: measurements, and estimates for larger catalogues

Written by `make bench WHAT=search` from `data/results/search.csv`. The images are jittered copies of real ones: x + {jitter:g} (y - z), from the embeddings of three random test images, normalised to unit length (class probabilities: as logits), so that they vary in the same directions as real ones. `lifted` embeddings are mapped to more dimensions by random features.

## Measurements

One attribute, one thread, and one query at a time for the 100 best. Recall is against the exact ranking. Bytes are per image: in memory (the index with its ids) and on disk (the embeddings, mapped into memory, with which the shortlist is scored again). Names, rows and tie keys take another {shared_bytes:.0f} bytes of memory per image, once for all attributes. `two classes` is the exact search by two classes. The time to embed a photo is not included.

{measured}

## Estimates

{attributes} attributes; machines with {cores} cores, {memory} of memory and {disk} of disk, of which {usable:.0f} % are used. Each core holds an equal share of the images as a separate index and answers every query on it; the best results of all shares are merged by score. All numbers are proportional to the largest measured size of a case. That overestimates time, because the number of items to score again is constant. `graph` is the memory of a graph index (HNSW, M = 16) of the same float32 vectors, the default of most vector databases.

{estimated}

## Which way to scale

- **The index fits into the memory of one machine**: use it as it is, one process per core, or `faiss.IndexShards`.
- **It fits on the disk, but not into memory**: read the `.faiss` files with `faiss.IO_FLAG_MMAP`. The probed cells then come from disk, so keep the files on an SSD and probe as few cells as recall allows (`nprobe`). `faiss.contrib.ondisk` merges shares into one file on disk.
- **It fits on no single machine**: build one index folder per share of the catalogue with the stage `index`, each on a separate machine. Query all of them and merge by score: scores of different shares are comparable, because they are computed from the full vectors.
- **Photos come and go, a search filters by price or gender, or the index belongs into an object store**: `index.engine: lancedb` with `index.uri`. `data/results/engines.md` compares both engines.
"""  # noqa: E501


def measurements(table: pd.DataFrame) -> pd.DataFrame:
    cells = table[["case", "kind", "dims"]].astype(str).assign(items=table["items"].map("{:,}".format))
    for name, (column, form) in COLUMNS.items():
        cells[name] = ["-" if pd.isna(value) else form.format(value) for value in table[column]]
    return cells


def estimates(largest: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for name, items in TARGETS.items():
        for _, row in largest.iterrows():
            costs = cost(row, items).items()
            rows.append({"images": name, "case": row["case"]} | {key: FORMATS[key](value) for key, value in costs})
    return pd.DataFrame(rows)


def markdown_table(cells: pd.DataFrame) -> str:
    lines = [list(cells.columns), ["---"] * cells.shape[1], *cells.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
