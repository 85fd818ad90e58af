"""`make bench WHAT=tune` (prints how it is called): the same random search for every row.

Every row gets the same settings, the USUAL ones and TRIALS of a Latin hypercube over RANGES; it uses those that its
losses read. A trial trains on every third training image. Where the best trial of a row has the smallest or largest
value of a setting, the row gets one more trial beyond (`extend`). The two best and the usual one are trained on all
images. The best of these is chosen that has no smallest or largest value. What counts is MAP@all of the validation
queries by the best of the row's scores; the test queries are not looked at.

A setting must suit several data sets (`tests.bench.sets`): the trials of each are kept in
data/results/tuning-<data set>.csv, and "best" is the best mean over them. A stopped search goes on where it stopped. A
trial takes one thread; two processes with different data sets or rows can run at once:

    python -m tests.bench.tune multi                  # the trials of all ROWS; then those of the other data sets
    python -m tests.bench.tune multi extend           # once all data sets have them
    python -m tests.bench.tune multi full             # once all data sets have these; a row's name takes it alone
    python -m tests.bench.tune multi beyond           # and last, trials beyond a chosen value that is still at an end
    python -m tests.bench.tune table                  # data/results/tuning.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import qmc

from m3lib import config
from m3lib.analysis.markdown import markdown_table
from m3lib.compatibility import LOSS_SETTINGS, SCORES, losses_of
from m3lib.config import Settings, Variant
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError, exit_status
from m3lib.retrieval import metrics, ranking
from m3lib.training import inference
from tests.bench.sets import ROWS, open_set, third, trained
from tests.bench.start import changed

RANGES = {  # drawn evenly in the logarithm
    "lr": (0.001, 0.03),
    "margin": (0.05, 0.5),
    "hardness": (1, 16),
    "contrast_temperature": (0.03, 0.3),
}
USUAL = {"lr": 0.006, "margin": 0.2, "hardness": 4, "contrast_temperature": 0.1}  # trial -1, chosen by hand
TRIALS, SEED = 6, 0
BEYOND = 1.7  # factor of the value of a trial beyond the others
PHASES = ("extend", "full", "beyond")  # after the first
KEYS = ["row", "trial", "budget"]
COUNTS = "valid MAP@all"
COLUMNS = [*KEYS, *RANGES, "score", COUNTS, "epochs", *SCORES]
Trial = dict[str, float]


def trials(row: Variant) -> dict[int, Trial]:
    """The settings of a row's trials by number: the same for all rows, without what the row's losses do not read."""
    low, high = np.log(np.array(list(RANGES.values()), dtype=float)).T
    points = qmc.LatinHypercube(len(RANGES), rng=np.random.default_rng(SEED)).random(TRIALS)
    losses, pairs = set(losses_of(row)), row.loss.pairs
    idle = {"all": {"margin", "hardness"}, "drawn": {"contrast_temperature"}}[pairs]
    read = ["lr", *(name for name in RANGES if name != "lr" and losses & set(LOSS_SETTINGS[name]) and name not in idle)]
    values = pd.DataFrame(np.exp(low + points * (high - low)), columns=list(RANGES)).round(4)
    values.loc[-1] = USUAL
    return values.loc[[-1, *range(TRIALS)], read].to_dict("index")


def beyond(records: pd.DataFrame, trial: int) -> list[Trial]:
    """One trial beyond each setting of a trial that is the smallest or largest of all; records: of one row."""
    names = [name for name in RANGES if records[name].notna().any()]
    settings = records.groupby("trial")[names].first()
    best, added = settings.loc[trial], []
    for name in names:
        others = settings[name].drop(trial)
        if not others.min() < best[name] < others.max():
            factor = BEYOND if best[name] >= others.max() else 1 / BEYOND
            added.append(best.to_dict() | {name: round(float(factor * best[name]), 5)})
    return added


def measure(settings: Settings, prepared: Prepared, row: Variant, trial: Trial, work: Path) -> dict:
    """Train one trial and return its record; work: the folder for the outputs of frozen blocks."""
    row, rows = changed(row, trial), prepared.rows("valid")
    with trained(settings, prepared, row, work) as (system, curves, outputs):
        embeddings = inference.embed(system, prepared, rows, row.train.precision, outputs)
    summaries = {s: metrics.summarise(ranking.evaluate(prepared, "valid", s, embeddings)) for s in embeddings.scores}
    maps = {score: round(100 * of["map_all"]["overall_by_query"], 2) for score, of in summaries.items()}
    best = max(maps, key=maps.get)
    return trial | {"score": best, COUNTS: maps[best], "epochs": len(curves)} | maps


def recorded(folder: Path) -> pd.DataFrame:
    """All trials of all data sets, with the column "data set"."""
    tables = {path.stem.removeprefix("tuning-"): pd.read_csv(path) for path in sorted(folder.glob("tuning-*.csv"))}
    return pd.concat([table.assign(**{"data set": name}) for name, table in tables.items()])


def best(records: pd.DataFrame, count: int) -> list[int]:
    """The trials of a row with the best means over the data sets. Raises InputError if a data set lacks one."""
    means = records.groupby("trial")[COUNTS].agg(["mean", "size"])
    if means["size"].nunique() > 1:
        raise InputError(f"{records['row'].iloc[0]}: a data set lacks some trials of this row; run these first")
    return means["mean"].nlargest(count).index.tolist()


def planned(row: Variant, phase: str, folder: Path) -> dict[int, Trial]:
    """The trials of a row in a phase of the search, by number."""
    if not phase:
        return trials(row)
    records = recorded(folder).query("row == @row.name")
    thirds, full = records[records["budget"] == "third"], records[records["budget"] == "full"]
    if phase == "extend":
        first = thirds[thirds["trial"] < TRIALS]
        return dict(enumerate(beyond(first, best(first, 1)[0]), TRIALS))
    if phase == "beyond":
        searched = full[full["trial"].isin(thirds["trial"])]
        known = records[records["trial"].isin(thirds["trial"])]
        return dict(enumerate(beyond(known, best(searched, 1)[0]), 1 + int(thirds["trial"].max())))
    names = [name for name in RANGES if records[name].notna().any()]
    settings = thirds.groupby("trial")[names].first()
    return settings.loc[list(dict.fromkeys([*best(thirds, 2), -1]))].to_dict("index")


def search(dataset: str, phase: str, names: list[str]) -> Iterator[dict]:
    """Run the trials that are not on record; yields the record of each."""
    folder = config.find_root() / "data" / "results"
    settings, whole, work = open_set(dataset, SEED)
    path = folder / f"tuning-{dataset}.csv"
    if not path.exists():
        pd.DataFrame(columns=COLUMNS).to_csv(path, index=False)
    prepared, budget = (whole, "full") if phase in ("full", "beyond") else (third(whole), "third")
    for row in map(settings.variant, names or ROWS):
        for number, trial in planned(row, phase, folder).items():
            keys = dict(zip(KEYS, [row.name, number, budget], strict=True))
            if (pd.read_csv(path)[KEYS] == list(keys.values())).all(axis=1).any():
                continue
            record = keys | measure(settings, prepared, row, trial, work)
            line = pd.DataFrame([record], columns=COLUMNS).to_csv(header=False, index=False)
            with path.open("a") as file:  # one write, so that processes with other rows can append too
                file.write(line)
            yield record


def chosen(records: pd.DataFrame) -> pd.DataFrame:
    """The chosen settings of every row and its score, with MAP on each data set: one row per row of the comparison.

    Of the trials at all images without a value at an end, the one with the best mean over data sets; of its scores, the
    one with the best mean.
    """
    rows = {}
    for name, of_row in records.groupby("row", sort=False):
        full = of_row[of_row["budget"] == "full"]
        ranked = best(full, full["trial"].nunique())
        number = next((t for t in ranked if not beyond(of_row, t)), ranked[0])
        trial = full[full["trial"] == number]
        score = trial[[*SCORES]].mean().idxmax()
        levels = trial.set_index("data set")[score]
        rows[name] = {"trial": trial["trial"].iloc[0]} | trial[[*RANGES]].iloc[0].to_dict()
        rows[name] |= {"score": score, "mean": levels.mean(), **levels}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("row")


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """The cells as text, `-` for a missing one."""
    return table.astype(object).where(table.notna(), "-").astype(str)


def page(records: pd.DataFrame) -> str:
    """The chosen settings of every row, and all trials."""
    ranges = ", ".join(f"{name} {low} to {high}" for name, (low, high) in RANGES.items())
    about = (
        "Written by `python -m tests.bench.tune table`: every row got the same random search (`tests/bench/tune.py`).",
        "MAP@all of the validation queries in percent, one seed. A trial trains on a third of the training images; the",
        "two best and trial -1, settings chosen by hand before, train on all. Ranges:",
        f"{ranges};",
        "a best trial at the end of a range got one more beyond. The chosen trial has the best mean over data sets of",
        "those without a value at an end, and its score the best mean of its scores.",
    )
    parts = ["# The same search for every row", "", *about, "", "## Chosen", ""]
    table = chosen(records).sort_values("mean", ascending=False)
    parts.append(markdown_table(texts(table.round({name: 1 for name in table if name not in RANGES}))))
    for title, budget in (("Trials at all images", "full"), ("Trials", "third")):
        of_budget = records[records["budget"] == budget]
        cells = of_budget.pivot_table(index=["row", "trial"], columns="data set", values=COUNTS, sort=False)
        cells.insert(0, "mean", cells.mean(axis=1))
        settings = of_budget.groupby(["row", "trial"], sort=False)[[*RANGES]].first()
        whole = settings.join(cells.round(1)).reset_index().set_index("row")
        parts += ["", f"## {title}", "", markdown_table(texts(whole))]
    return "\n".join(parts) + "\n"


def main(dataset: str = "", *names: str) -> int:
    if not dataset:
        print(__doc__)
        return 2
    folder = config.find_root() / "data" / "results"
    if dataset == "table":
        (folder / "tuning.md").write_text(page(recorded(folder)))
        return 0
    phase = names[0] if names and names[0] in PHASES else ""
    for record in search(dataset, phase, list(names[bool(phase) :])):
        print(*(f"{key} {value}" for key, value in record.items()), sep="  ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(*sys.argv[1:])))
