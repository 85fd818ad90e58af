"""`make bench WHAT=record` (prints how it is called): the comparison of data/results, one finished run at a time.

A run trains one row on one data set with one seed, which draws other images or, of photos, other splits
(`tests.bench.sets`), and appends its metrics to data/results/<set>.csv. What the table holds is skipped, so that a
stopped record goes on where it stopped. A run takes one thread; two processes with different sets can run at once:

    python -m tests.bench.record multi street         # all rows and seeds of these sets
    python -m tests.bench.record tables               # the tables of README.md and data/results/README.md
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib import config
from m3lib.analysis import sweeps, tables
from m3lib.analysis.evaluation import evaluate
from m3lib.analysis.record import RECORDED, result_table
from m3lib.analysis.tables import COSTS
from m3lib.config import Settings
from m3lib.data.files import atomic, digest
from m3lib.data.manifest import Prepared
from m3lib.errors import exit_status
from m3lib.retrieval import metrics
from m3lib.training import health, inference, trainer
from tests.bench.sets import ROWS, data_settings, open_set, settings_of, trained

SEEDS, SEEDS_OF = 3, {"street": 5, "tees": 5, "scratch": 1}  # small sets get more
OF_SET = {
    "multi": (*ROWS, "asen_pp_contrast", "m3_loss1"),
    "ablation": (
        "m3_no_loss1", "m3_no_loss2", "m3_no_loss3", "m3_masked", "m3_factored", "m3_no_parent", "m3_no_refine",
        "m3_one_hot", "duet_one_view", "duet_no_contrast", "duet_no_classes",
    ),
    "unseen": (
        "classifier", "asen_v2", "asen_v2_contrast", "modc", "asen_v2_l1", "asen_v2_l1_softmax", "m3_a", "m3",
        "m3_softmax", "m3_shared", "duet",
    ),
    "scratch": ("classifier", "asen_v2", "m3"),
}  # fmt: skip


def measure(settings: Settings, prepared: Prepared, name: str, work: Path) -> pd.DataFrame:
    """Train one row and return what is recorded of it; work: the folder for the outputs of frozen blocks."""
    row = settings.variant(name)
    with trained(settings, prepared, row, work) as (system, curves, outputs):
        rows = np.sort(np.concatenate([prepared.rows("valid"), prepared.rows("test")]))
        embeddings, untrained = inference.embed(system, prepared, rows, row.train.precision, outputs), None
        _, losses = health.examine(system, prepared, row, curves, settings.seed)
        if embeddings.classes is not None:
            new = trainer.Trainer(prepared, row, settings.seed, settings.threads, "cpu", work / "activations").system
            untrained = inference.embed(new, prepared, prepared.rows("test"), row.train.precision, outputs)
    measured = evaluate(prepared, row, embeddings, untrained, settings.seed)
    result = measured.to_dict({"losses": losses.T.to_dict()})
    table = result_table(json.loads(metrics.to_json(result)), settings.seed, digest=settings_digest(settings, name))
    seconds = table[table["metric"] == COSTS[0]].assign(metric=COSTS[1], value=curves.attrs["CPU seconds"])
    return pd.concat([table, seconds])


def settings_digest(settings: Settings, name: str) -> str:
    """A digest of what is set for a run: of the data and of the row. The code does not count."""
    return digest(data_settings(settings), str(settings.variant(name).resolved()))[:8]


def read(path: Path) -> pd.DataFrame:
    return sweeps.read(path) if path.exists() else pd.DataFrame(columns=RECORDED)


def missing(path: Path, settings: Settings, names: Iterable[str]) -> list[str]:
    """The rows that a table lacks for the seed of the settings; what it has of a row with other settings is removed."""
    table, digests = read(path), {name: settings_digest(settings, name) for name in names}
    of_seed, current = table["seed"] == settings.seed, table["digest"] == table["variant"].map(digests)
    current |= (table["variant"] == "random") & table["digest"].isin(digests.values())
    outdated = of_seed & ~current
    if outdated.any():
        print(path.stem, settings.seed, "again, for their settings changed:", *table["variant"][outdated].unique())
        write(path, table[~outdated])
    done = set(table["variant"][of_seed & current])
    return [name for name in digests if name not in done]


def write(path: Path, table: pd.DataFrame) -> None:
    """Write a table whole, in the order of seeds and rows: a stopped run leaves none of its rows."""
    order = {name: number for number, name in enumerate(("random", *OF_SET.get(path.stem, ROWS)))}
    places = table.assign(place=table["variant"].map(order)).sort_values(["seed", "place"], kind="stable")
    table = places.drop(columns="place")
    with atomic(path) as temporary:
        table.round(2).to_csv(temporary, index=False)


def main(*names: str) -> int:
    folder = config.find_root() / "data" / "results"
    if not names:
        print(__doc__)
        return 2
    if names == ("tables",):
        tables.write(config.find_root())
        return 0
    for seed in range(max(SEEDS_OF.get(name, SEEDS) for name in names)):
        for name in [name for name in names if seed < SEEDS_OF.get(name, SEEDS)]:
            path = folder / f"{name}.csv"
            if not (rows := missing(path, settings_of(name, seed), OF_SET.get(name, ROWS))):
                continue
            settings, prepared, work = open_set(name, seed)
            for row in rows:
                start, table = time.perf_counter(), measure(settings, prepared, row, work)
                before = read(path)
                if ((before["seed"] == seed) & (before["variant"] == "random")).any():
                    table = table[table["variant"] != "random"]
                write(path, pd.concat([before, table]) if len(before) else table)
                level = table.query("variant != 'random' and own and metric == 'MAP@all' and attribute == ''")
                print(name, seed, row, *level["value"], f"{time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(*sys.argv[1:])))
