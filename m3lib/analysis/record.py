"""Collect finished experiments into a small table in git, and write README's result tables from those.

`make record NAME=catalogue` gathers every experiment of `dvc exp run` whose name starts with `catalogue-`, one row per
experiment, variant, split, score and metric, into data/results/catalogue.csv, and what their reports compared into
data/results/catalogue-pairs.csv. It also writes the tables between the markers of README.md and data/results/README.md.
"""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml

from m3lib.analysis.comparison import COLUMNS
from m3lib.compatibility import SCORES
from m3lib.config import find_root
from m3lib.errors import InputError

MARKER = re.compile(r"(<!-- (results|summary|sweep|scores): ([\w\- ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def experiments(root: Path, prefix: str) -> dict[str, str]:
    """Name to commit of the finished experiments that are named <prefix>-..."""
    lines = git(root, "for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
    found = {ref.rsplit("/", 1)[-1]: commit for ref, commit in (line.split() for line in lines)}
    return {name: found[name] for name in sorted(found) if name.startswith(f"{prefix}-")}


def show(root: Path, commit: str, path: str) -> str | None:
    """A file as the commit has it, or None."""
    try:
        return git(root, "show", f"{commit}:{path}")
    except subprocess.CalledProcessError:
        return None


def settings_of(params: dict) -> dict[str, str]:
    """Dotted name to value of every setting, but those that tell experiments of one question apart anyway."""
    flat = {}

    def walk(values: dict, path: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")
            else:
                flat[f"{path}{key}"] = str(value)

    walk({key: value for key, value in params.items() if key not in ("seed", "threads", "variants")}, "")
    return flat


def differing(params: dict[str, dict]) -> dict[str, str]:
    """Experiment to the settings that all have and that differ, as `train.lr=0.004 train.epochs=8`."""
    flat = {name: settings_of(values) for name, values in params.items()}
    shared = sorted(set.intersection(*(set(values) for values in flat.values())))
    varied = [key for key in shared if len({values[key] for values in flat.values()}) > 1]
    varied = [key for key in varied if not all(follows(key, values) for values in flat.values())]
    return {name: " ".join(f"{key}={values[key]}" for key in varied) for name, values in flat.items()}


def follows(key: str, values: dict[str, str]) -> bool:
    """Whether a row's own setting, such as systems.asen.train.lr, says what the general one says."""
    general = key.split(".", 2)[2:] if key.startswith("systems.") else []
    return bool(general) and values[key] == values.get(general[0])


def rows_of(root: Path, commit: str, params: dict) -> list[dict]:
    """One experiment's metrics: of each variant every score on valid and test, by its own score all of them."""
    rows, systems = [], [params["systems"][variant] for variant in params["variants"]]
    unseen = {class_ for system in systems for class_ in system.get("train", {}).get("held_out", [])}
    for variant in params["variants"]:
        result = json.loads(git(root, "show", f"{commit}:data/metrics/{variant}.json"))
        found = [("test", "random", result["random"])]
        found += [(split, score, s) for split in ("valid", "test") for score, s in result[split].items()]
        for split, score, summary in found:
            own = score in ("random", result["score"])
            key = {"seed": params["seed"], "variant": "random" if score == "random" else variant}
            key |= {"split": split, "score": score, "own": own}
            for metric, attribute, value in numbers(summary, whole=own and split == "test"):
                rows.append(key | {"metric": metric, "attribute": attribute, "percent": 100 * value})
        for metric, score, attribute, value in beyond(result, unseen):
            key = {"seed": params["seed"], "variant": variant, "split": "test", "score": score, "own": False}
            rows.append(key | {"metric": metric, "attribute": attribute, "percent": 100 * value})
    return rows


def numbers(summary: dict, whole: bool) -> Iterator[tuple[str, str, float]]:
    """(metric, attribute or "", fraction): overall MAP@all, or all metrics and attributes."""
    for column, (metric, mean) in COLUMNS.items():
        if whole or column == "MAP@all":
            yield column, "", summary[metric][mean]
    if whole:
        for attribute, value in summary["map_all"]["attributes"].items():
            yield "MAP@all", attribute, value


def beyond(result: dict, unseen: set[str]) -> Iterator[tuple[str, str, str, float]]:
    """(metric, score, attribute, fraction): likeness inside a class, and the classes that some variant never saw."""
    for score, found in result["likeness"].items():
        for factor, value in found.items():
            yield "likeness", score, factor, value
    for score, classes in result["classes"].items():
        for class_ in sorted(unseen & set(classes)):
            yield "MAP@all of a class", score, class_, classes[class_]


def pair_rows(root: Path, commit: str, seed: int) -> pd.DataFrame:
    """The paired comparisons of one experiment's report; empty where it stopped before the report."""
    text = show(root, commit, "data/pairs.csv")
    return pd.read_csv(io.StringIO(text)).assign(seed=seed) if text else pd.DataFrame()


def collect(root: Path, name: str) -> Path:
    """Write data/results/<name>.csv and, from the reports, <name>-pairs.csv.

    Raises InputError when no such experiment has finished.
    """
    found = experiments(root, name)
    if not found:
        raise InputError(f"no finished experiment is named {name}...; `dvc exp run -n {name}-1 ...` makes one")
    params = {e: yaml.safe_load(git(root, "show", f"{commit}:params.yaml")) for e, commit in found.items()}
    settings = differing(params)
    tables, pairs = [], []
    for experiment, commit in found.items():
        key = {"experiment": experiment, "settings": settings[experiment]}
        tables.append(pd.DataFrame(rows_of(root, commit, params[experiment])).assign(**key))
        pairs.append(pair_rows(root, commit, params[experiment]["seed"]).assign(**key))
    folder = root / "data" / "results"
    table = pd.concat(tables).drop_duplicates(["seed", "variant", "settings", "split", "score", "metric", "attribute"])
    table.round(2).to_csv(folder / f"{name}.csv", index=False)
    compared = pd.concat(pairs)
    if len(compared):
        compared = compared.drop_duplicates(["seed", "settings", "lower", "higher"])
        compared.round(3).to_csv(folder / f"{name}-pairs.csv", index=False)
    return folder / f"{name}.csv"


def own_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The test rows of every variant by the score it is reported with."""
    return table[table["own"] & (table["split"] == "test")]


def mean_and_spread(table: pd.DataFrame, rows: str = "variant") -> pd.DataFrame:
    """Text cells `mean ± standard deviation over seeds`; a column per metric and per attribute."""
    keys = table["metric"].where(table["attribute"].isna(), table["attribute"])
    order = list(dict.fromkeys(keys))
    grouped = table.assign(key=keys).groupby([rows, "key"], sort=False)["percent"]
    cells = grouped.agg(lambda values: cell(values.mean(), values.std())).unstack()
    return cells.reindex(columns=order).fillna("-")


def cell(mean: float, spread: float) -> str:
    return f"{mean:.1f}" if not spread >= 0.05 else f"{mean:.1f} ± {spread:.1f}"  # no spread: one seed


def markdown(path: Path) -> str:
    """The tables of one recorded result: overall metrics, MAP@all by attribute, neighbours in the published order."""
    table = own_rows(pd.read_csv(path))
    cells = mean_and_spread(table)
    seeds = ", ".join(str(seed) for seed in sorted(table["seed"].unique()))
    used = table.groupby("variant", sort=False)["score"].first()
    overall, attributes = cells[list(COLUMNS)], cells.drop(columns=list(COLUMNS))
    overall.insert(0, "score", used[overall.index])
    parts = [f"Percent, mean ± standard deviation over seeds {seeds}.", pipes(overall), "MAP@all by attribute:"]
    parts.append(pipes(attributes))
    pairs = path.with_name(f"{path.stem}-pairs.csv")
    if pairs.exists():
        parts += ["Differences in overall MAP@all (points):", pipes(pair_table(pd.read_csv(pairs)))]
    return "\n\n".join(parts) + "\n"


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds, and in how many runs the paired bootstrap over queries tells the two apart."""
    keys = [pairs["higher"] + " - " + pairs["lower"]]
    grouped = pairs.assign(ahead=pairs["low"] > 0, behind=pairs["high"] < 0).groupby(keys, sort=False)
    runs = grouped.size()
    return pd.DataFrame(
        {
            "difference": grouped["difference"].agg(lambda values: cell(values.mean(), values.std())),
            "ahead in": [f"{n} of {k}" for n, k in zip(grouped["ahead"].sum(), runs, strict=True)],
            "behind in": [f"{n} of {k}" for n, k in zip(grouped["behind"].sum(), runs, strict=True)],
        }
    ).rename_axis("pair")


def pipes(cells: pd.DataFrame) -> str:
    lines = [[cells.index.name, *cells.columns], ["---"] * (cells.shape[1] + 1)]
    lines += [[str(name), *row] for name, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(folder: Path, names: list[str]) -> str:
    """Overall MAP@all of every variant by its own score; a row per variant, a column per recorded result."""
    columns = {}
    for name in names:
        path = folder / f"{name}.csv"
        if path.exists():
            table = own_rows(pd.read_csv(path))
            cells = mean_and_spread(table[(table["metric"] == "MAP@all") & table["attribute"].isna()])
            columns[name] = cells["MAP@all"]
    if not columns:
        return "Not recorded yet.\n"
    order = list(dict.fromkeys(variant for column in columns.values() for variant in column.index))
    return pipes(pd.DataFrame(columns, index=order).fillna("-").rename_axis("variant")) + "\n"


def sweep(path: Path, split: str) -> str:
    """Overall MAP@all of every variant by its own score on a split; a column per setting that was tried."""
    table = pd.read_csv(path, keep_default_na=False)
    chosen = table["own"] & (table["split"] == split) & (table["metric"] == "MAP@all") & (table["attribute"] == "")
    grouped = table[chosen].groupby(["variant", "settings"], sort=False)["percent"]
    cells = grouped.agg(lambda values: cell(values.mean(), values.std())).unstack()
    return pipes(cells.fillna("-").rename_axis(columns=None)) + "\n"


def scores(path: Path, split: str) -> str:
    """Overall MAP@all of every variant by every score that it can be asked with; its own is bold."""
    table = pd.read_csv(path, keep_default_na=False)
    chosen = (table["split"] == split) & (table["metric"] == "MAP@all") & (table["attribute"] == "")
    grouped = table[chosen & (table["score"] != "random")].groupby(["variant", "score"], sort=False)
    cells = grouped["percent"].agg(lambda values: cell(values.mean(), values.std()))
    own = grouped["own"].first()
    cells = cells.where(~own, "**" + cells + "**").unstack()
    order = [score for score in SCORES if score in cells]
    return pipes(cells[order].fillna("-").rename_axis(columns=None)) + "\n"


def write_tables(root: Path) -> None:
    """Replace what stands between the markers of README.md and data/results/README.md.

    `summary: NAME ...` a column a result; `results: NAME` all of one; `sweep: NAME SPLIT` a column a setting;
    `scores: NAME SPLIT` a column a score.
    """
    folder = root / "data" / "results"

    def filled(match: re.Match) -> str:
        kind, (name, *more) = match[2], match[3].split()
        if kind == "summary":
            text = summary(folder, [name, *more])
        elif not (folder / f"{name}.csv").exists():
            text = "Not recorded yet.\n"
        elif kind == "results":
            text = markdown(folder / f"{name}.csv")
        else:
            text = {"sweep": sweep, "scores": scores}[kind](folder / f"{name}.csv", *more)
        return f"{match[1]}\n{text}\n{match[4]}"

    for page in (root / "README.md", folder / "README.md"):
        page.write_text(MARKER.sub(filled, page.read_text()))


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
