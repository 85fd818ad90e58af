"""Collect finished experiments into data/results and write README's result tables from them.

`make record NAME=catalogue` gathers every experiment of `dvc exp run` whose name starts with `catalogue-` into
data/results/catalogue.csv, one row per experiment, variant, split, score, metric and attribute, and the paired
comparisons of their reports into data/results/catalogue-pairs.csv. It also writes the tables between the markers of
README.md and data/results/README.md. Columns: `own` marks rows by the score that the variant is reported with.
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

from m3lib.analysis import sweeps
from m3lib.analysis.comparison import COLUMNS
from m3lib.analysis.markdown import markdown_table
from m3lib.compatibility import SCORES
from m3lib.config import find_root
from m3lib.errors import InputError

MARKER = re.compile(r"(<!-- (results|summary|sweep|scores): ([\w\- ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
VARIES_ANYWAY = ("seed", "threads", "variants")  # settings that differ between experiments of one question


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def experiments(root: Path, prefix: str) -> dict[str, str]:
    """Return the commit of each finished experiment named <prefix>-..., by name."""
    lines = git(root, "for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
    commits = {ref.rsplit("/", 1)[-1]: commit for ref, commit in (line.split() for line in lines)}
    return {name: commits[name] for name in sorted(commits) if name.startswith(f"{prefix}-")}


def dotted_settings(values: dict, path: str = "") -> dict[str, str]:
    """Return the text of every setting by its dotted name, except VARIES_ANYWAY."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= dotted_settings(value, f"{path}{key}.")
        elif path or key not in VARIES_ANYWAY:
            flat[f"{path}{key}"] = str(value)
    return flat


def varied_settings(params: dict[str, dict]) -> dict[str, str]:
    """Return the settings that differ between experiments, by experiment, as `train.lr=0.004 train.epochs=8`."""
    flat = {name: dotted_settings(values) for name, values in params.items()}
    shared = sorted(set.intersection(*(set(values) for values in flat.values())))
    varied = [key for key in shared if len({values[key] for values in flat.values()}) > 1]
    varied = [key for key in varied if not all(repeats_general(key, values) for values in flat.values())]
    return {name: " ".join(f"{key}={values[key]}" for key in varied) for name, values in flat.items()}


def repeats_general(key: str, values: dict[str, str]) -> bool:
    """Whether a setting of one row, such as systems.asen.train.lr, has the value of the general setting train.lr."""
    general = key.split(".", 2)[2:] if key.startswith("systems.") else []
    return bool(general) and values[key] == values.get(general[0])


def rows_of(root: Path, commit: str, params: dict) -> Iterator[dict]:
    """Yield one experiment's metrics: overall MAP@all by every score, and all metrics by the reported score on test."""
    held_out = {c for v in params["variants"] for c in params["systems"][v].get("train", {}).get("held_out", [])}
    for variant in params["variants"]:
        result = json.loads(git(root, "show", f"{commit}:data/metrics/{variant}.json"))
        summaries = [("test", "random", result["random"])]
        summaries += [(split, score, s) for split in ("valid", "test") for score, s in result[split].items()]
        for split, score, summary in summaries:
            reported = score in ("random", result["score"])
            key = {"seed": params["seed"], "variant": "random" if score == "random" else variant}
            key |= {"split": split, "score": score, "own": reported}
            for metric, attribute, value in summary_values(summary, everything=reported and split == "test"):
                yield key | {"metric": metric, "attribute": attribute, "percent": 100 * value}
        for metric, score, attribute, value in extra_metrics(result, held_out):
            key = {"seed": params["seed"], "variant": variant, "split": "test", "score": score, "own": False}
            yield key | {"metric": metric, "attribute": attribute, "percent": 100 * value}


def summary_values(summary: dict, everything: bool) -> Iterator[tuple[str, str, float]]:
    """Yield (metric, attribute or "", fraction): overall MAP@all only, or all metrics and attributes."""
    for column, (metric, mean) in COLUMNS.items():
        if everything or column == "MAP@all":
            yield column, "", summary[metric][mean]
    if everything:
        for attribute, value in summary["map_all"]["attributes"].items():
            yield "MAP@all", attribute, value


def extra_metrics(result: dict, held_out: set[str]) -> Iterator[tuple[str, str, str, float]]:
    """Yield (metric, score, factor or class, fraction): factor correlations, and classes that some variant held out."""
    for score, correlations in result["likeness"].items():
        for factor, value in correlations.items():
            yield "likeness", score, factor, value
    for score, classes in result["classes"].items():
        for class_ in sorted(held_out & set(classes)):
            yield "MAP@all of a class", score, class_, classes[class_]


def pair_rows(root: Path, commit: str) -> pd.DataFrame:
    """Return the paired comparisons of one experiment's report; empty if it stopped before the report."""
    try:
        return pd.read_csv(io.StringIO(git(root, "show", f"{commit}:data/pairs.csv")))
    except subprocess.CalledProcessError:
        return pd.DataFrame()


def collect(root: Path, name: str) -> Path:
    """Write data/results/<name>.csv and, from the reports, <name>-pairs.csv.

    Raises InputError when no such experiment has finished.
    """
    commits = experiments(root, name)
    if not commits:
        raise InputError(f"no finished experiment is named {name}...; `dvc exp run -n {name}-1 ...` makes one")
    params = {e: yaml.safe_load(git(root, "show", f"{commit}:params.yaml")) for e, commit in commits.items()}
    settings = varied_settings(params)
    tables, pairs = [], []
    for experiment, commit in commits.items():
        key = {"experiment": experiment, "settings": settings[experiment]}
        tables.append(pd.DataFrame(rows_of(root, commit, params[experiment])).assign(**key))
        pairs.append(pair_rows(root, commit).assign(seed=params[experiment]["seed"], **key))
    folder = root / "data" / "results"
    table = pd.concat(tables).drop_duplicates(["seed", "variant", "settings", "split", "score", "metric", "attribute"])
    table.round(2).to_csv(folder / f"{name}.csv", index=False)
    compared = pd.concat(pairs)
    if len(compared):
        compared = compared.drop_duplicates(["seed", "settings", "lower", "higher"])
        compared.round(3).to_csv(folder / f"{name}-pairs.csv", index=False)
    return folder / f"{name}.csv"


# ---- tables of README.md and data/results/README.md, in percent


def cell(values: pd.Series) -> str:
    """Return `mean ± standard deviation`; only the mean for one seed or a deviation that rounds to 0."""
    mean, spread = values.mean(), values.std()
    return f"{mean:.1f} ± {spread:.1f}" if spread >= 0.05 else f"{mean:.1f}"


def reported_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Test metrics by each variant's reported score: one row per variant, one column per metric and attribute."""
    table = table[table["own"] & (table["split"] == "test")]
    keys = table["metric"].where(table["attribute"] == "", table["attribute"])
    grouped = table.assign(key=keys).groupby(["variant", "key"], sort=False)["percent"]
    return grouped.agg(cell).unstack().reindex(columns=list(dict.fromkeys(keys))).fillna("-")


def results_tables(path: Path) -> str:
    """Return all tables of one recorded result: overall metrics, MAP@all by attribute, paired differences."""
    table = sweeps.read(path)
    cells = reported_cells(table)
    overall, attributes = cells[list(COLUMNS)], cells.drop(columns=list(COLUMNS))
    reported = table[table["own"] & (table["split"] == "test")].groupby("variant", sort=False)["score"].first()
    overall.insert(0, "score", reported[overall.index])
    seeds = ", ".join(str(seed) for seed in sorted(table["seed"].unique()))
    texts = [f"Percent, mean ± standard deviation over seeds {seeds}.", markdown_table(overall)]
    texts += ["MAP@all by attribute:", markdown_table(attributes)]
    pairs = path.with_name(f"{path.stem}-pairs.csv")
    if pairs.exists():
        texts += ["Differences in overall MAP@all (points):", markdown_table(pair_table(pd.read_csv(pairs)))]
    return "\n\n".join(texts) + "\n"


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Difference of each pair over seeds, and in how many runs its bootstrap interval excludes 0."""
    keys = [pairs["higher"] + " - " + pairs["lower"]]
    grouped = pairs.assign(ahead=pairs["low"] > 0, behind=pairs["high"] < 0).groupby(keys, sort=False)
    runs = grouped.size()
    return pd.DataFrame(
        {
            "difference": grouped["difference"].agg(cell),
            "ahead in": [f"{n} of {k}" for n, k in zip(grouped["ahead"].sum(), runs, strict=True)],
            "behind in": [f"{n} of {k}" for n, k in zip(grouped["behind"].sum(), runs, strict=True)],
        }
    ).rename_axis("pair")


def summary_table(folder: Path, *names: str) -> str:
    """Overall MAP@all by the reported score: one row per variant, one column per recorded result."""
    paths = {name: folder / f"{name}.csv" for name in names}
    columns = {name: reported_cells(sweeps.read(path))["MAP@all"] for name, path in paths.items() if path.exists()}
    if not columns:
        return "Not recorded yet.\n"
    order = list(dict.fromkeys(variant for column in columns.values() for variant in column.index))
    return markdown_table(pd.DataFrame(columns, index=order).fillna("-").rename_axis("variant")) + "\n"


def overall_rows(path: Path, split: str) -> pd.DataFrame:
    table = sweeps.read(path)
    return table[(table["split"] == split) & (table["metric"] == "MAP@all") & (table["attribute"] == "")]


def sweep_table(path: Path, split: str) -> str:
    """Overall MAP@all by the reported score: one row per variant, one column per combination of settings."""
    table = overall_rows(path, split)
    cells = table[table["own"]].groupby(["variant", "settings"], sort=False)["percent"].agg(cell).unstack()
    return markdown_table(cells.fillna("-").rename_axis(columns=None)) + "\n"


def score_table(path: Path, split: str) -> str:
    """Overall MAP@all: one row per variant, one column per score; the reported score is bold."""
    table = overall_rows(path, split)
    grouped = table[table["score"] != "random"].groupby(["variant", "score"], sort=False)
    cells = grouped["percent"].agg(cell)
    cells = cells.where(~grouped["own"].first(), "**" + cells + "**").unstack()
    computed = [score for score in SCORES if score in cells]
    return markdown_table(cells[computed].fillna("-").rename_axis(columns=None)) + "\n"


def write_tables(root: Path) -> None:
    """Replace the text between the markers of README.md and data/results/README.md.

    `summary: NAME ...` one column per result; `results: NAME` all tables of one; `sweep: NAME SPLIT` one column per
    combination of settings; `scores: NAME SPLIT` one column per score.
    """
    folder = root / "data" / "results"
    tables = {"results": results_tables, "sweep": sweep_table, "scores": score_table}

    def filled(match: re.Match) -> str:
        kind, (name, *more) = match[2], match[3].split()
        if kind == "summary":
            text = summary_table(folder, name, *more)
        elif (folder / f"{name}.csv").exists():
            text = tables[kind](folder / f"{name}.csv", *more)
        else:
            text = "Not recorded yet.\n"
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
