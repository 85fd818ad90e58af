"""`make bench WHAT=record` (prints how it is called): the comparison of data/results, one finished run at a time.

A run trains one row on one data set with one seed, which draws the images anew or, of photos, the splits
(`tests.bench.sets`), and appends its metrics to data/results/<set>.csv. What the table holds is skipped, so that a
stopped record goes on where it stopped. A run takes one thread; two processes with different sets can run at once:

    python -m tests.bench.record multi street         # all rows and seeds of these sets
    python -m tests.bench.record tables               # the tables of README.md and data/results/README.md
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib import config, systems
from m3lib.analysis import tables
from m3lib.analysis.evaluation import evaluate
from m3lib.analysis.record import COSTS, RECORDED, result_table
from m3lib.config import Settings
from m3lib.data.files import digest
from m3lib.data.manifest import Prepared
from m3lib.errors import exit_status
from m3lib.retrieval import metrics
from m3lib.training import activations, health, inference, trainer
from m3lib.training.run import fit
from tests.bench.sets import ROWS, open_set, settings_of

SEEDS, SEEDS_OF = 3, {"street": 5, "tees": 5, "scratch": 1}  # small sets get more
OF_SET = {
    "multi": (*ROWS, "asen_pp_contrast"),
    "ablation": (
        "m3", "m3_a", "m3_c", "m3_loss1", "m3_no_loss1", "m3_no_loss2", "m3_no_loss3", "m3_shared", "m3_masked",
        "m3_factored", "m3_no_parent", "m3_no_refine", "m3_one_hot",
    ),
    "unseen": (
        "classifier", "asen_v2", "asen_v2_contrast", "modc", "asen_v2_l1", "asen_v2_l1_softmax", "m3_a", "m3",
        "m3_softmax", "m3_shared",
    ),
    "scratch": ("classifier", "asen_v2", "m3"),
}  # fmt: skip


def measure(settings: Settings, prepared: Prepared, name: str, work: Path) -> pd.DataFrame:
    """Train one row and return what is recorded of it; work: the folder for the outputs of frozen blocks."""
    row, cache = settings.variant(name), work / "activations"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        (Path(folder) / "activations").symlink_to(cache)
        activations.stored(systems.build(row, prepared.taxonomy), prepared, row, cache)  # not part of its seconds
        start = time.process_time()
        system, curves = fit(prepared, row, settings.seed, settings.threads, Path(folder) / "checkpoint.safetensors")
        spent = time.process_time() - start
        outputs = activations.stored(system, prepared, row, cache)  # None for a network that reads pixels
        rows = np.sort(np.concatenate([prepared.rows("valid"), prepared.rows("test")]))
        trained, untrained = inference.embed(system, prepared, rows, row.train.precision, outputs), None
        _, losses = health.examine(system, prepared, row, curves, settings.seed)
        if trained.classes is not None:
            new = trainer.Trainer(prepared, row, settings.seed, settings.threads, "cpu", cache).system
            untrained = inference.embed(new, prepared, prepared.rows("test"), row.train.precision, outputs)
    measured = evaluate(prepared, row, trained, untrained, settings.seed)
    result = measured.to_dict({"losses": losses.T.to_dict()})
    table = result_table(json.loads(metrics.to_json(result)), settings.seed, digest=settings_digest(settings, name))
    seconds = table.iloc[-1:].assign(metric=COSTS[1], value=spent)  # after that of bytes
    return pd.concat([table, seconds])


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame(columns=RECORDED)


def missing(path: Path, settings: Settings, names: Iterable[str]) -> list[str]:
    """The rows that a table lacks for the seed of the settings; what it has of a row with other settings is removed."""
    table = read(path)
    digests, of_seed = {name: settings_digest(settings, name) for name in names}, table["seed"] == settings.seed
    outdated = of_seed & table["variant"].isin(digests) & (table["digest"] != table["variant"].map(digests))
    if outdated.any():
        print(path.stem, settings.seed, "again, for their settings changed:", *table["variant"][outdated].unique())
        table[~outdated].to_csv(path, index=False)
    done = set(table["variant"][of_seed & ~outdated])
    return [name for name in digests if name not in done]


def settings_digest(settings: Settings, name: str) -> str:
    """A digest of what decides a run: the settings of the data and of the row."""
    table = replace(settings.csv, table=Path(settings.csv.table).name)  # wherever the photos are
    data = (settings.source, settings.wardrobe, table, settings.images, settings.split)
    return digest(*map(str, (*data, settings.variant(name).resolved())))[:8]


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
                if ((read(path)["seed"] == seed) & (read(path)["variant"] == "random")).any():
                    table = table[table["variant"] != "random"]
                with path.open("a") as file:
                    file.write(table.round(2).to_csv(header=not path.stat().st_size, index=False))
                level = table.query("variant != 'random' and own and metric == 'MAP@all' and attribute == ''")
                print(name, seed, row, *level["value"], f"{time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(*sys.argv[1:])))
