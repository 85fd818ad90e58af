"""`make bench WHAT=ideas` (prints how it is called): does an idea pay? A row of params.yaml on small data sets.

    python -m tests.bench.ideas mine another         # rows of params.yaml

Each candidate is trained on a third of the training images of each set and seed, like BASELINES, and the tables say
what it reaches and by how much it differs from each of them on the same data. Runs are kept in data/results/ideas.csv
and repeated only when a row's settings or the code change; ideas.md has all of them.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from m3lib import config
from m3lib.analysis import tables
from m3lib.analysis.markdown import markdown_table
from m3lib.analysis.tables import COSTS
from m3lib.config import Settings
from m3lib.data.code import imported_files
from m3lib.data.files import digest
from m3lib.errors import exit_status
from m3lib.systems import module_of
from tests.bench.record import measure, settings_digest
from tests.bench.sets import open_set, settings_of, third

BASELINES = ("classifier", "asen_v2", "m3")
SETS = ("multi", "catalogue", "street", "tees", "unseen", "unseen-catalogue")
SEEDS = (100, 101)  # no seed of the record: what wins here is then measured on other images or splits
PROCESSES = 2
KEYS = ["set", "seed", "row", "digest"]
MEASURES = ["MAP", "unseen", "likeness", *COSTS]
CANDIDATES = {  # what was tried; the code of those that are no row of params.yaml is in the history, commit 66854f5
    "one_space": "ASEN_v2's attention with class heads and contrast of all pairs on the same features",
    "one_space_open": "the same by another score: posterior, plus the cosine times what both images leave to no class",
    "partwhole": "class evidence of the attended part, the whole image and its best place; a separate embedding of 64",
    "memory": "contrast with the 1,024 images of past batches (asen_v2_contrast with a memory)",
    "m3_views": "M3-Net, embeddings of an image and its mirror image averaged",
    "m3_average": "M3-Net, weights averaged over the last 25 steps (exponential, 0.96)",
    "m3_evidence": "M3-Net with a softmax where an image has one class, Loss 1 elsewhere",
    "m3_smoothing": "the same with label smoothing of 0.1",
    "m3_small_batch": "M3-Net with batches of 32 instead of 64, the rate divided by the root of 2",
    "classifier_small_batch": "the classifier likewise",
}


def code_digest(settings: Settings, name: str) -> str:
    """A digest of a row's settings and of the code that trains and evaluates it; not of that which draws the images."""
    network = module_of(settings.variant(name).network)
    code = imported_files(network, "m3lib.training.run", "m3lib.analysis.record", "m3lib.analysis.evaluation")
    return digest(settings_digest(settings, name), *code)[:8]


def run(of_set: str, seed: int, name: str) -> dict:
    """Train a row on a small set; returns MEASURES: the headline, unseen classes, likeness, and COSTS."""
    settings, prepared, work = open_set(of_set, seed)
    table = measure(settings, third(prepared), name, work)
    table = table[(table["variant"] == name) & (table["split"] == "test")]
    of_metric = table.groupby("metric")["value"]
    own = table[table["own"] & (table["metric"] == tables.FINE)]["value"].item()
    likeness = table[table["metric"] == "likeness"].groupby("score")["value"].mean().max() / 100
    unseen = table[(table["metric"] == "unseen classes") & table["score"].isin(set(table["score"][table["own"]]))]
    values = [own, unseen["value"].max(), likeness, *(of_metric.get_group(cost).item() for cost in COSTS)]
    return dict(zip(MEASURES, values, strict=True))


def levels(records: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Means over seeds: one row per row of params.yaml, one column per set, then unseen classes, likeness and costs."""
    of_rows = records[records["row"].isin(names)]
    is_unseen = of_rows["set"].str.startswith("unseen")
    maps = of_rows[~is_unseen].pivot_table(index="row", columns="set", values="MAP", sort=False)
    unseen = of_rows[is_unseen].pivot_table(index="row", columns="set", values="unseen", sort=False)
    others = of_rows[of_rows["set"] == "multi"].groupby("row")[MEASURES[2:]].mean()
    return maps.join(unseen).join(others).loc[[name for name in names if name in maps.index]]


def differences(records: pd.DataFrame, name: str) -> pd.DataFrame:
    """A candidate minus each baseline on the same data: mean over seeds, then each seed."""
    value = records["MAP"].where(~records["set"].str.startswith("unseen"), records["unseen"])
    table = records.assign(value=value).pivot_table(index=["set", "seed"], columns="row", values="value", sort=False)
    rows = {}
    for baseline in [b for b in BASELINES if b != name and b in table]:
        gaps = (table[name] - table[baseline]).dropna()
        rows[baseline] = {
            of_set: f"{runs.mean():+.1f} ({', '.join(f'{x:+.1f}' for x in runs)})"
            for of_set, runs in gaps.groupby("set", sort=False)
        }
    return pd.DataFrame(rows).T


def page(records: pd.DataFrame) -> str:
    """All candidates: what each is, its levels, and its differences to the baselines."""
    about = (
        "Written by `python -m tests.bench.ideas`: each row on a third of the training images, mean over two seeds",
        f"({', '.join(map(str, sorted(records['seed'].unique())))}).",
        "MAP@all in percent over the attributes with at least three classes; `unseen`: MAP@all of the classes left out",
        "of training, by the row's own score; likeness, bytes and seconds on `multi`.",
    )
    names = list(dict.fromkeys(records["row"]))
    parts = ["# Ideas, each alone", "", *about, "", "| row | idea |", "| --- | --- |"]
    parts += [f"| {name} | {CANDIDATES.get(name, 'a row of params.yaml')} |" for name in names]
    table = levels(records, names).round(2).astype(str).rename_axis("row")
    parts += ["", "## Levels", "", markdown_table(table)]
    for baseline in BASELINES:
        rows = {name: differences(records, name) for name in names if name not in BASELINES}
        cells = pd.DataFrame({name: of.loc[baseline] for name, of in rows.items() if baseline in of.index}).T
        parts += ["", f"## Minus {baseline}, mean (each seed)", "", markdown_table(cells.rename_axis("row"))]
    return "\n".join(parts) + "\n"


def main(*candidates: str) -> int:
    if not candidates:
        print(__doc__)
        return 2
    path: Path = config.find_root() / "data" / "results" / "ideas.csv"
    names, jobs, wanted = [*BASELINES, *(name for name in candidates if name not in BASELINES)], [], []
    records = pd.DataFrame(columns=[*KEYS, *MEASURES])
    if path.exists():
        records = pd.read_csv(path, dtype={"digest": str})
    done = set(records[KEYS].itertuples(index=False, name=None))
    for seed in SEEDS:
        for of_set in SETS:
            settings = settings_of(of_set, seed)
            keys = [(of_set, seed, name, code_digest(settings, name)) for name in names]
            wanted += keys
            if missing := [key for key in keys if key not in done]:
                open_set(of_set, seed)
                jobs += missing
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        running = [pool.submit(run, *key[:3]) for key in jobs]
        for key, future in zip(jobs, running, strict=True):
            values = future.result()
            record = pd.DataFrame([dict(zip(KEYS, key, strict=True)) | values])
            records = pd.concat([records, record.round(3)], ignore_index=True) if len(records) else record.round(3)
            records.to_csv(path, index=False)
            print(*key, *(f"{name} {value:.4g}" for name, value in values.items()), flush=True)
    records = records.set_index(KEYS).loc[wanted].reset_index()
    print(levels(records, names).round(2).to_string())
    for name in names[len(BASELINES) :]:
        print(f"\n{name} minus the baselines, mean (each seed):\n{differences(records, name).to_string()}")
    path.with_suffix(".md").write_text(page(pd.read_csv(path).drop_duplicates(KEYS[:3], keep="last")))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(*sys.argv[1:])))
