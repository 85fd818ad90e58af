"""`make bench WHAT=ideas` (prints how it is called): does an idea pay? A row of params.yaml on small data sets.

    python -m tests.bench.ideas mine another         # rows of params.yaml

Each candidate is trained on a third of the training images of each set and seed, like BASELINES, and the tables say
what it reaches and by how much it differs from each of them on the same data. Runs are kept in data/results/ideas.csv
and repeated only when a row's settings or the code change.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from m3lib import config
from m3lib.analysis import tables
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
SEEDS = (0, 1)
PROCESSES = 2
KEYS = ["set", "seed", "row", "digest"]
MEASURES = ["MAP", "unseen", "likeness", *COSTS]


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
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(*sys.argv[1:])))
