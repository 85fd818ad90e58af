"""What a search costs past the measured sizes: data/results/search.md, every number computed from search.csv.

Assumptions, which the page states: one machine has MEMORY, DISK and CORES; every core holds an equal share of the
pictures as an index of its own and answers each query on its share; the shares' best are merged. Time and memory grow
in proportion to a share, which overstates time: the finds to score again do not grow.
"""

import math

import pandas as pd

CORES, MEMORY, DISK = 16, 64e9, 2e12  # of one machine; bytes
FILLED = 0.8  # of memory and disk that an index may take
ATTRIBUTES = 5  # of a catalogue, as in DeepFashion
LINKS = 2 * 16 * 4  # bytes an item of a graph index (HNSW with M = 16), beside its float32 vector
TARGETS = {"10 million": 10_000_000, "1 billion": 1_000_000_000}
GOAL_RECALL, GOAL_MS, GOAL_BYTES = 0.95, 20, 256  # at the largest measured size, by p50 and per attribute


def cost(row: pd.Series, items: int) -> dict[str, float]:
    """Bytes, machines, hours and milliseconds for so many items and ATTRIBUTES attributes like the measured one.

    row: a compressed row of the table. core_hours: to build; hours: on all those machines; ms: a query, embedding and
    network not counted; graph: bytes of memory of a graph index on the same vectors.
    """
    memory = (row["memory_bytes"] * ATTRIBUTES + row["shared_bytes"]) * items
    disk = row["disk_bytes"] * ATTRIBUTES * items
    machines = max(1, math.ceil(memory / (FILLED * MEMORY)), math.ceil(disk / (FILLED * DISK)))
    core_hours = row["build_seconds"] / row["items"] * items * ATTRIBUTES / 3600
    share = items / (machines * CORES)
    return {
        "memory": memory,
        "disk": disk,
        "machines": machines,
        "core_hours": core_hours,
        "hours": core_hours / (machines * CORES),
        "ms": row["p50_ms"] * share / row["items"],
        "graph": (4 * row["dims"] + LINKS) * items * ATTRIBUTES,
    }


def page(table: pd.DataFrame, jitter: float) -> str:
    """The page in Markdown; table and jitter: as in bench_search."""
    compressed = table[table["kind"] == "compressed"]
    largest = compressed[compressed["items"] == compressed["items"].max()]
    parts = [
        "# Searching, measured and reckoned",
        "Written by `make bench WHAT=search` from `data/results/search.csv`. The pictures are jittered real ones: "
        f"x + {jitter:g} (y - z) of the embeddings of three random test pictures, brought to unit length (class "
        "probabilities: as logits), so that they lie in the directions of real ones. `lifted` is put into more "
        "dimensions by random features.",
        "## Measured",
        "One attribute, one thread, single queries for the 100 best. Recall is against the exact ranking; bytes are "
        "per picture, in memory (the index, ids included) and on disk (the embeddings, mapped, from which finds are "
        f"scored again). Names, rows and tie keys take another {largest['shared_bytes'].mean():.0f} bytes of memory a "
        "picture, once for all attributes. `two classes` is the exact search by two chosen classes. Embedding the "
        "photo comes on top.",
        pipes(measured(table)),
        goals(largest),
        "## Reckoned",
        f"{ATTRIBUTES} attributes, machines of {CORES} cores, {size(MEMORY)} of memory and {size(DISK)} of disk, of "
        f"which {100 * FILLED:.0f} % are used. Every core holds an equal share as an index of its own and answers on "
        "its share; the shares' best are merged by score. All in proportion to the largest measured size of a case: "
        "for time that is too much, since the finds to score again do not grow. `graph` is the memory of a graph index "
        "(HNSW, M = 16) on the same float32 vectors, which most vector databases build unless told otherwise.",
        pipes(reckoned(largest)),
        OPTIONS,
    ]
    return "\n\n".join(parts) + "\n"


OPTIONS = """## Which way

- **It fits the memory of one machine**: the index as it is, one process a core, or `faiss.IndexShards`.
- **It fits the disk, not the memory**: read the `.faiss` files with `faiss.IO_FLAG_MMAP`; the cells that are looked
  into then come from disk, so keep the files on an SSD and look into as few cells as recall allows (`nprobe`).
  `faiss.contrib.ondisk` merges shares into one file on disk.
- **It fits no machine**: one index folder per share of the catalogue, made by the stage `index` from that part of it,
  each on its own machine; ask all, merge by score. Scores of different shares compare, since finds are scored by their
  own vectors.
- **A database that you run already** (Milvus, Qdrant, LanceDB, pgvector, Elasticsearch and others):
  `python -m m3lib.search.build export FOLDER` writes Parquet with fixed-size vectors. Load them under the inner
  product, not cosine or Euclidean distance, and ask with `Index.query_vector`. Mind the database's own limit of
  dimensions (`dims` above). The search by classes needs the class probabilities and stays here."""


def measured(table: pd.DataFrame) -> pd.DataFrame:
    formats = {
        "recall@10": ("recall_10", "{:.3f}"),
        "recall@100": ("recall_100", "{:.3f}"),
        "bytes in memory": ("memory_bytes", "{:.0f}"),
        "bytes on disk": ("disk_bytes", "{:.0f}"),
        "build (s)": ("build_seconds", "{:.1f}"),
        "queries/s": ("queries_per_second", "{:.0f}"),
        "p50 (ms)": ("p50_ms", "{:.2f}"),
        "p99 (ms)": ("p99_ms", "{:.2f}"),
    }
    cells = table[["case", "kind", "dims"]].astype(str).assign(items=table["items"].map("{:,}".format))
    for name, (column, form) in formats.items():
        cells[name] = ["-" if pd.isna(value) else form.format(value) for value in table[column]]
    return cells


def goals(largest: pd.DataFrame) -> str:
    """A sentence a case: what the compressed index reaches of the goals."""
    lines = []
    for _, row in largest.iterrows():
        kept = [row["recall_100"] >= GOAL_RECALL, row["p50_ms"] <= GOAL_MS, row["memory_bytes"] <= GOAL_BYTES]
        told = ", ".join(
            f"{name} {'reached' if good else 'missed'}"
            for name, good in zip(
                (f"recall@100 {GOAL_RECALL}", f"p50 {GOAL_MS} ms", f"{GOAL_BYTES} bytes"), kept, strict=True
            )
        )
        lines.append(f"- {row['case']}, {row['items']:,} pictures: {told}.")
    return "Goals of the compressed index:\n\n" + "\n".join(lines)


def reckoned(largest: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for name, items in TARGETS.items():
        for _, row in largest.iterrows():
            found = cost(row, items)
            rows.append(
                {
                    "pictures": name,
                    "case": row["case"],
                    "memory": size(found["memory"]),
                    "disk": size(found["disk"]),
                    "machines": f"{found['machines']}",
                    "build, core hours": f"{found['core_hours']:.1f}",
                    "build, hours": f"{found['hours']:.2f}",
                    "a query (ms)": f"{found['ms']:.1f}",
                    "graph": size(found["graph"]),
                }
            )
    return pd.DataFrame(rows)


def size(count: float) -> str:
    """Bytes in GB or TB."""
    return f"{count / 1e9:.0f} GB" if count < 1e12 else f"{count / 1e12:.1f} TB"


def pipes(cells: pd.DataFrame) -> str:
    lines = [list(cells.columns), ["---"] * cells.shape[1], *cells.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
