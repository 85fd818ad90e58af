"""Collect finished experiments into a table in data/results.

`make record NAME=catalogue` gathers every experiment of `dvc exp run` whose name starts with `catalogue-` into
data/results/catalogue.csv, one row per experiment, variant, split, score, metric and attribute, and writes the tables
of README.md and data/results/README.md (`analysis.tables`). `sweep.ipynb` shows what the settings of a sweep reached.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from m3lib.analysis import sweeps, tables
from m3lib.analysis.comparison import COLUMNS, beyond_pooled, fine_attributes
from m3lib.config import find_root
from m3lib.errors import InputError, exit_status

RECORDED = ["seed", "variant", "split", "score", "own", "metric", "attribute", "value", "settings", "digest"]
VARIES_ANYWAY = ("seed", "threads", "variants")  # settings that differ between experiments of one question


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def experiments(root: Path, prefix: str) -> dict[str, str]:
    """Return the commit of each finished experiment named <prefix>-..., by name."""
    lines = git(root, "for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
    commits = {ref.rsplit("/", 1)[-1]: commit for ref, commit in (line.split() for line in lines)}
    return {name: commits[name] for name in sorted(commits) if name.startswith(f"{prefix}-")}


def varied_settings(params: dict[str, dict]) -> dict[str, str]:
    """Return the settings that differ between experiments, by experiment, as `train.lr=0.004 train.epochs=8`."""
    flat = {name: pd.json_normalize(values).iloc[0].map(str).to_dict() for name, values in params.items()}
    shared = sorted(set.intersection(*(set(values) for values in flat.values())) - set(VARIES_ANYWAY))
    varied = [key for key in shared if len({values[key] for values in flat.values()}) > 1]
    varied = [key for key in varied if not all(repeats_general(key, values) for values in flat.values())]
    return {name: " ".join(f"{key}={values[key]}" for key in varied) for name, values in flat.items()}


def repeats_general(key: str, values: dict[str, str]) -> bool:
    """Whether a setting of one row, such as systems.asen.train.lr, has the value of the general setting train.lr."""
    general = key.split(".", 2)[2:] if key.startswith("systems.") else []
    return bool(general) and values[key] == values.get(general[0])


def result_table(result: dict, seed: int, settings: str = "", digest: str = "") -> pd.DataFrame:
    """Return the rows RECORDED of one metrics file; `own` marks the score that the variant reports.

    Values are in percent, but for tables.COSTS.

    Overall MAP@all by every score; on test all metrics by the reported score, what `comparison.beyond_pooled` adds,
    unseen classes and factor correlations by every score, what `spaces.space_table` says of class spaces, and each
    loss as a share of its trivial value. digest: of everything that was set.
    """
    variant, own_score = result["variant"], result["score"]
    summaries = [("random", "test", "random", result["random"])]
    summaries += [(variant, split, score, s) for split in ("valid", "test") for score, s in result[split].items()]
    fine, rows = fine_attributes(result), []
    for name, split, score, summary in summaries:
        own, of_attributes = score in ("random", own_score), summary["map_all"]["attributes"]
        values = {(column, ""): summary[metric][mean] for column, (metric, mean) in COLUMNS.items()}
        levels = [(of_attributes[a], summary["queries"][a]) for a in fine if of_attributes[a] is not None]
        total = sum(level * queries for level, queries in levels)
        values[tables.FINE, ""] = total / sum(queries for _, queries in levels) if levels else None
        values |= {("MAP@all", attribute): value for attribute, value in of_attributes.items()}
        keys = values if own and split == "test" else [("MAP@all", "")]
        rows += [(name, split, score, own, *key, values[key]) for key in keys]
    rows += [(variant, "test", own_score, False, c, "", v) for c, v in beyond_pooled(result, own_score).items()]
    for score, bands in result["bands"].items():
        rows.append(
            ("random" if score == "random" else variant, "test", score, False, "unseen classes", "", bands["unseen"])
        )
    for score, factors in result["likeness"].items():
        rows += [(variant, "test", score, False, "likeness", *item) for item in factors.items()]
    for attribute, space in result["spaces"].items():
        known = {f"{tables.SPACE}{name}": value for name, value in space.items() if value is not None}
        rows += [
            (variant, "test", "", False, name, attribute, value if name.endswith("cosine") else value / 100)
            for name, value in known.items()
        ]
    for loss, values in result["health"]["losses"].items():
        rows.append((variant, "train", "", False, "loss, share of its trivial value", loss, values["ratio"]))
    rows.append((variant, "test", own_score, False, tables.COSTS[0], "", result["bytes"]))
    table = pd.DataFrame(rows, columns=RECORDED[1:-2])
    table = table.assign(seed=seed, settings=settings, digest=digest)[RECORDED]
    raw = table["metric"].isin(tables.COSTS)
    values = table["value"].astype(float) * np.where(raw, 1, 100)
    return table.assign(value=values).dropna(subset="value")  # NaN: not measured


def collect(root: Path, name: str) -> Path:
    """Write data/results/<name>.csv. Raises InputError when no such experiment has finished, or if the table is one of
    the recorded comparison."""
    commits = experiments(root, name)
    if not commits:
        raise InputError(f"no finished experiment is named {name}...; `dvc exp run -n {name}-1 ...` makes one")
    path, keys = root / "data" / "results" / f"{name}.csv", [c for c in RECORDED if c not in ("own", "value")]
    if path.exists() and sweeps.read(path).get("digest", pd.Series("")).ne("").any():
        raise InputError(f"{path} is a table of the recorded comparison: give the experiments another name")
    params = {e: yaml.safe_load(git(root, "show", f"{commit}:params.yaml")) for e, commit in commits.items()}
    settings = varied_settings(params)
    collected = []
    for experiment, commit in commits.items():
        for variant in params[experiment]["variants"]:
            result = json.loads(git(root, "show", f"{commit}:data/metrics/{variant}.json"))
            collected.append(result_table(result, params[experiment]["seed"], settings[experiment]))
    pd.concat(collected).drop_duplicates(keys).round(2).to_csv(path, index=False)
    return path


def record(names: list[str]) -> None:
    """Collect the experiments of some names; write the tables of all."""
    root = find_root()
    for name in names:
        print(collect(root, name))
    tables.write(root)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: record(sys.argv[1:])))
