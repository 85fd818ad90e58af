"""Collect finished experiments into a small table in git, and write README's result tables from those.

`make record NAME=catalogue` gathers every experiment of `dvc exp run` whose name starts so, one row per experiment,
variant and metric, into data/results/catalogue.csv. It also writes the tables between README's markers.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from m3lib.config import find_root
from m3lib.errors import InputError
from m3lib.report import COLUMNS

MARKER = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def experiments(root: Path, prefix: str) -> dict[str, str]:
    """Name to commit of the finished experiments whose name starts with the prefix."""
    lines = git(root, "for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
    found = {ref.rsplit("/", 1)[-1]: commit for ref, commit in (line.split() for line in lines)}
    return {name: found[name] for name in sorted(found) if name.startswith(prefix)}


def rows_of(root: Path, name: str, commit: str) -> list[dict]:
    """One experiment's test metrics, each variant by its own score, and the random ranking's."""
    params = yaml.safe_load(git(root, "show", f"{commit}:params.yaml"))
    rows = []
    for variant in params["variants"]:
        result = json.loads(git(root, "show", f"{commit}:data/metrics/{variant}.json"))
        summaries = {"random": result["random"], variant: result["test"][result["score"]]}
        for row, summary in summaries.items():
            key = {"experiment": name, "seed": params["seed"], "variant": row}
            for column, (metric, mean) in COLUMNS.items():
                rows.append(key | {"metric": column, "attribute": "", "percent": 100 * summary[metric][mean]})
            for attribute, value in summary["map_all"]["attributes"].items():
                rows.append(key | {"metric": "MAP@all", "attribute": attribute, "percent": 100 * value})
    return rows


def collect(root: Path, name: str) -> Path:
    """Write data/results/<name>.csv; raises InputError when no such experiment has finished."""
    found = experiments(root, name)
    rows = [row for experiment, commit in found.items() for row in rows_of(root, experiment, commit)]
    if not rows:
        raise InputError(f"no finished experiment is named {name}...; `dvc exp run -n {name}-1 ...` makes one")
    table = pd.DataFrame(rows).drop_duplicates(["seed", "variant", "metric", "attribute"])
    path = root / "data" / "results" / f"{name}.csv"
    table.round(3).to_csv(path, index=False)
    return path


def mean_and_spread(table: pd.DataFrame) -> pd.DataFrame:
    """Text cells `mean ± standard deviation over seeds`; a row per variant, a column per metric and per attribute."""
    keys = table["metric"].where(table["attribute"].isna(), table["attribute"])
    order = list(dict.fromkeys(keys))
    grouped = table.assign(key=keys).groupby(["variant", "key"], sort=False)["percent"]
    mean, spread = grouped.mean().unstack()[order], grouped.std().unstack()[order]
    one_seed = table["seed"].nunique() == 1
    cells = {
        key: [
            f"{m:.1f}" if one_seed or s < 0.05 else f"{m:.1f} ± {s:.1f}"
            for m, s in zip(mean[key], spread[key], strict=True)
        ]
        for key in order
    }
    return pd.DataFrame(cells, index=mean.index)


def markdown(path: Path) -> str:
    """The two tables of one recorded result: overall metrics, and MAP@all by attribute."""
    table = pd.read_csv(path)
    cells = mean_and_spread(table)
    seeds = ", ".join(str(seed) for seed in sorted(table["seed"].unique()))
    overall, attributes = cells[list(COLUMNS)], cells.drop(columns=list(COLUMNS))
    parts = [f"Percent, mean ± standard deviation over seeds {seeds}.", pipes(overall), "MAP@all by attribute:"]
    return "\n\n".join([*parts, pipes(attributes)]) + "\n"


def pipes(cells: pd.DataFrame) -> str:
    lines = [["variant", *cells.columns], ["---"] * (cells.shape[1] + 1)]
    lines += [[str(name), *row] for name, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_tables(root: Path) -> None:
    """Replace what stands between README's result markers."""
    readme = root / "README.md"

    def filled(match: re.Match) -> str:
        path = root / "data" / "results" / f"{match[2]}.csv"
        return match[1] + "\n" + (markdown(path) if path.exists() else "Not recorded yet.\n") + "\n" + match[3]

    readme.write_text(MARKER.sub(filled, readme.read_text()))


def main(arguments: list[str]) -> int:
    root = find_root()
    try:
        for name in arguments:
            print(collect(root, name))
        write_tables(root)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
