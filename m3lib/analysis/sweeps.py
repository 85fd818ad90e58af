"""Read a recorded sweep (`make record NAME=lr`): the settings that it varied and the metrics that each variant reached.

A recorded table has one row per experiment, variant, split, score, metric and attribute. Its column `settings` holds
what differs between the experiments, as `train.lr=0.004 train.epochs=8`; see `record.py`.
"""

import re
from pathlib import Path

import pandas as pd

from m3lib.errors import InputError

SETTING = re.compile(r"([\w.]+)=(.*?)(?= [\w.]+=|$)")  # the value of a list holds spaces


def read(path: Path) -> pd.DataFrame:
    """Return the rows of a recorded result; raises InputError when nothing was recorded."""
    try:
        return pd.read_csv(path, keep_default_na=False, dtype={"digest": str})
    except OSError as error:
        hint = f"record it with `make record NAME={path.stem}` or `python -m tests.bench.record {path.stem}`"
        raise InputError(f"{path} can't be read ({error.strerror}); {hint}") from None


def complete(recorded: pd.DataFrame) -> pd.DataFrame:
    """Leave out the scores of a variant that some of its seeds lack: a mean over other seeds compares badly."""
    of_score = recorded.groupby(["variant", "score"])["seed"].transform("nunique")
    of_variant = recorded.groupby("variant")["seed"].transform("nunique")
    return recorded[(of_score == of_variant) | (recorded["score"] == "")]


def parse_settings(text: str) -> dict[str, float | str]:
    """Return the settings of an experiment by name; numbers as numbers."""
    return {name: number_or_text(value) for name, value in SETTING.findall(text)}


def number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def overall(recorded: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the rows of overall MAP@all of a split, in percent, by every score; `query("own")` leaves the reported."""
    rows = recorded.query("metric == 'MAP@all' and attribute == '' and split == @split")
    return rows.rename(columns={"value": "percent"}).reset_index(drop=True)


def runs(recorded: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return overall MAP@all in percent by the reported score: one row per (variant, experiment).

    Columns variant, seed, percent, then one per setting. The random ranking is left out: no setting changes it.
    """
    table = overall(recorded, split).query("own and variant != 'random'").reset_index(drop=True)
    settings = pd.DataFrame([parse_settings(text) for text in table["settings"]], index=table.index)
    return pd.concat([table[["variant", "seed", "percent"]], settings], axis=1)


def best(recorded: pd.DataFrame) -> pd.DataFrame:
    """Return the best settings of each variant by the mean over seeds on validation.

    Columns: the settings, then valid and test (percent) and seeds. Test is reported only, never used to choose.
    """
    by_split = {}
    for split in ("valid", "test"):
        table = runs(recorded, split)
        grouped = table.groupby([name for name in table if name not in ("seed", "percent")], sort=False)
        by_split[split] = grouped["percent"].mean()
    means = pd.DataFrame(by_split | {"seeds": grouped["seed"].nunique()})
    return means.loc[means["valid"].groupby("variant", sort=False).idxmax()].reset_index().set_index("variant")


def varied(table: pd.DataFrame) -> list[str]:
    """Return the settings of `runs` that took more than one value."""
    return [name for name in table.columns[3:] if table[name].nunique() > 1]
