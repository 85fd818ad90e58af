"""Reading what `make record NAME=lr` keeps: of a sweep, what was tried, and what each variant made of it.

A recorded table has a row per experiment, variant, split, score, metric and attribute, and says in `settings` what told
the experiments apart, as `train.lr=0.004 train.epochs=8`; see `record.py`.
"""

import re
from pathlib import Path

import pandas as pd

from m3lib.errors import InputError

SETTING = re.compile(r"([\w.]+)=(.*?)(?= [\w.]+=|$)")  # a list's value holds spaces


def read(path: Path) -> pd.DataFrame:
    """The rows of a recorded result; raises InputError when nothing was recorded."""
    try:
        return pd.read_csv(path, keep_default_na=False)
    except OSError as error:
        told = f"{path} can't be read ({error.strerror}); record it with `make record NAME={path.stem}`"
        raise InputError(told) from None


def settings_of(text: str) -> dict[str, float | str]:
    """Name to value of what an experiment was told apart by; numbers as numbers."""
    return {name: number_or_text(value) for name, value in SETTING.findall(text)}


def number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def runs(recorded: pd.DataFrame, split: str) -> pd.DataFrame:
    """A row per (variant, experiment): overall MAP@all in percent by the variant's own score, and a column a setting.

    Columns variant, seed, percent, then the settings. The random ranking is left out: nothing was tried on it.
    """
    chosen = recorded["own"] & (recorded["metric"] == "MAP@all") & (recorded["attribute"] == "")
    chosen &= (recorded["split"] == split) & (recorded["variant"] != "random")
    found = recorded[chosen].reset_index(drop=True)
    tried = pd.DataFrame([settings_of(text) for text in found["settings"]], index=found.index)
    return pd.concat([found[["variant", "seed", "percent"]], tried], axis=1)


def best(recorded: pd.DataFrame) -> pd.DataFrame:
    """A row per variant: the settings with the best mean over seeds on validation, that mean, and the one on test.

    Columns: the settings, then valid, test (percent) and seeds. Test is for reporting: it had no part in the choice.
    """
    valid, test = (means(runs(recorded, split)) for split in ("valid", "test"))
    valid["test"] = test["percent"]
    chosen = valid.loc[valid.groupby("variant", sort=False)["percent"].idxmax()]
    chosen = chosen.rename(columns={"percent": "valid"}).reset_index().set_index("variant")
    return chosen[[name for name in chosen if name not in ("valid", "test", "seeds")] + ["valid", "test", "seeds"]]


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean percent over seeds, and how many; indexed by variant and settings."""
    keys = [name for name in table if name not in ("seed", "percent")]
    grouped = table.groupby(keys, sort=False)
    return pd.DataFrame({"percent": grouped["percent"].mean(), "seeds": grouped["seed"].nunique()})


def tried(table: pd.DataFrame) -> list[str]:
    """The settings of `runs` that took more than one value."""
    return [name for name in table.columns[3:] if table[name].nunique() > 1]
