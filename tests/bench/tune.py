"""`make bench WHAT=tune`: the same random search for every row, on data/prepared.

Every row gets the same TRIALS settings, a Latin hypercube over RANGES, of which it uses those that its losses read. A
trial trains on a third of the training images; the two best are trained on all. What counts is MAP@all of the
validation queries, by the best of the scores that the network allows, which is recorded too. A setting must suit
several data sets: the trials of one are kept in data/results/tuning-<data set>.csv, a stopped search continues there,
and the best two are those with the best mean over all data sets that have records.

    python -m tests.bench.tune multi                        # all rows, a third of the images
    python -m tests.bench.tune multi full                   # the best two of every row, all images
    python -m tests.bench.tune multi full m3 asen           # some rows
    python -m tests.bench.tune table                        # writes data/results/tuning.md
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import qmc

from m3lib import config
from m3lib.analysis.markdown import markdown_table
from m3lib.compatibility import LOSS_SETTINGS, losses_of
from m3lib.config import Settings, Variant
from m3lib.data import manifest
from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics, ranking
from m3lib.training import activations, inference
from m3lib.training.run import fit
from tests.bench.start import changed

RANGES = {  # both ends are possible; drawn evenly in the logarithm
    "lr": (0.001, 0.03),
    "margin": (0.05, 0.5),
    "hardness": (1, 16),
}
TRIALS, SEED = 6, 0
EDGE = 0.1  # a chosen value in this outer share of its range would ask for a wider range
KEYS = ["row", "trial", "budget"]


def settings_of(trial: int, row: Variant) -> dict[str, float]:
    """The values of a trial that the row's losses read; the same for all rows."""
    low, high = np.log(np.array(list(RANGES.values()), dtype=float)).T
    points = qmc.LatinHypercube(len(RANGES), rng=np.random.default_rng(SEED)).random(TRIALS)
    values = dict(zip(RANGES, np.exp(low + points[trial] * (high - low)).round(4).tolist(), strict=True))
    losses = set(losses_of(row))
    return {name: value for name, value in values.items() if name == "lr" or losses & set(LOSS_SETTINGS[name])}


def third(prepared: Prepared) -> Prepared:
    """The same data with every third of its training images."""
    frame, rows = prepared.manifest.copy(), prepared.rows("train")
    frame.loc[np.delete(rows, np.s_[::3]), "split"] = "none"
    return replace(prepared, manifest=frame)


def measure(settings: Settings, prepared: Prepared, row: Variant, trial: int, cache: Path) -> dict:
    """Train one trial; returns its record."""
    values = settings_of(trial, row)
    row = changed(row, values)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        path = Path(folder) / "checkpoint.safetensors"
        (path.parent / "activations").symlink_to(cache)
        system, curves = fit(prepared, row, settings.seed, settings.threads, path)
        outputs = activations.stored(system, prepared, row, cache)
    embeddings = inference.embed(system, prepared, prepared.rows("valid"), row.train.precision, outputs)
    by_score = {
        score: metrics.summarise(ranking.evaluate(prepared, "valid", score, embeddings))["map_all"]["overall_by_query"]
        for score in embeddings.scores
    }
    best = max(by_score, key=by_score.get)
    maps = {f"valid {score}": round(100 * value, 2) for score, value in by_score.items()}
    return values | {"score": best, "valid MAP@all": maps[f"valid {best}"], "epochs": len(curves)} | maps


def search(dataset: str, full: bool, names: list[str]) -> Iterator[pd.DataFrame]:
    """Run the trials that are not on record; yields the table after each."""
    root = config.find_root()
    path, settings = root / "data" / "results" / f"tuning-{dataset}.csv", config.load(root / "params.yaml")
    whole = manifest.open_prepared(root / "data" / "prepared")
    prepared, budget, cache = (whole if full else third(whole)), ("full" if full else "third"), root / "data" / "work"
    cache.mkdir(parents=True, exist_ok=True)
    for name in names or settings.variants:
        row = settings.variant(name)
        trials = best_two(root, name) if full else range(TRIALS)
        for trial in trials:
            table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)
            if ((table[KEYS] == [name, trial, budget]).all(axis=1)).any():
                continue
            record = {"row": name, "trial": trial, "budget": budget, "seed": settings.seed}
            record |= measure(settings, prepared, row, trial, cache)
            table = pd.concat([table, pd.DataFrame([record])], ignore_index=True)
            table.to_csv(path, index=False)
            yield table


def recorded(root: Path) -> pd.DataFrame:
    """All trials of all data sets, with the column "data set"."""
    paths = sorted((root / "data" / "results").glob("tuning-*.csv"))
    return pd.concat([pd.read_csv(path).assign(**{"data set": path.stem.removeprefix("tuning-")}) for path in paths])


def best_two(root: Path, name: str) -> list[int]:
    """The two trials of a row with the best mean over the data sets, at a third of the images."""
    table = recorded(root)
    table = table[(table["row"] == name) & (table["budget"] == "third")]
    means = table.groupby("trial")["valid MAP@all"].agg(["mean", "size"])
    return means[means["size"] == means["size"].max()]["mean"].nlargest(2).index.tolist()


def main(dataset: str, *names: str) -> int:
    if dataset == "table":
        print(markdown_table(recorded(config.find_root()).set_index("row").astype(str)))
        return 0
    full = names[:1] == ("full",)
    for table in search(dataset, full, list(names[full:])):
        print(*(f"{key} {value}" for key, value in table.iloc[-1].dropna().items()), sep="  ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
