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
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import yaml
from scipy import stats

from m3lib.analysis import sweeps
from m3lib.analysis.comparison import COLUMNS, beyond_pooled
from m3lib.analysis.markdown import markdown_table
from m3lib.compatibility import SCORES
from m3lib.config import find_root
from m3lib.errors import InputError, exit_status
from m3lib.validation import resolve_row

MARKER = re.compile(r"(<!-- (results|summary|sweep|scores|spaces): ([\w\- ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SPACE = "class space, "  # how the metrics of class spaces start
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


def experiment_table(root: Path, commit: str, params: dict) -> pd.DataFrame:
    """Return one experiment's metrics in percent, as in a recorded table.

    Overall MAP@all by every score; on test all metrics by the reported score, what `comparison.beyond_pooled` adds,
    factor correlations, what `spaces.space_table` says of class spaces, and MAP@all of the classes that some variant
    held out of training.
    """
    trains = [params.get("train", {}) | resolve_row(name, params["systems"])["train"] for name in params["variants"]]
    held_out = {class_ for train in trains for class_ in train.get("held_out", [])}
    rows = []
    for variant in params["variants"]:
        result = json.loads(git(root, "show", f"{commit}:data/metrics/{variant}.json"))
        summaries = [("random", "test", "random", result["random"])]
        summaries += [(variant, split, score, s) for split in ("valid", "test") for score, s in result[split].items()]
        for name, split, score, summary in summaries:
            own = score in ("random", result["score"])
            values = {(column, ""): summary[metric][mean] for column, (metric, mean) in COLUMNS.items()}
            values |= {("MAP@all", attribute): value for attribute, value in summary["map_all"]["attributes"].items()}
            keys = values if own and split == "test" else [("MAP@all", "")]
            rows += [(name, split, score, own, *key, values[key]) for key in keys]
        beyond = beyond_pooled(result, result["score"])
        rows += [(variant, "test", result["score"], False, column, "", value) for column, value in beyond.items()]
        for score, factors in result["likeness"].items():
            rows += [(variant, "test", score, False, "likeness", *item) for item in factors.items()]
        for attribute, space in result["spaces"].items():
            known = {f"{SPACE}{name}": value for name, value in space.items() if value is not None}
            rows += [
                (variant, "test", "", False, name, attribute, value if name.endswith("cosine") else value / 100)
                for name, value in known.items()
            ]
        for score, classes in result["classes"].items():
            unseen = sorted(held_out & set(classes))
            rows += [(variant, "test", score, False, "MAP@all of a class", name, classes[name]) for name in unseen]
    table = pd.DataFrame(rows, columns=["variant", "split", "score", "own", "metric", "attribute", "percent"])
    table.insert(0, "seed", params["seed"])
    return table.assign(percent=100 * table["percent"].astype(float)).dropna(subset="percent")  # NaN: not measured


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
        tables.append(experiment_table(root, commit, params[experiment]).assign(**key))
        with suppress(subprocess.CalledProcessError):  # the experiment stopped before the report
            report = pd.read_csv(io.StringIO(git(root, "show", f"{commit}:data/pairs.csv")))
            pairs.append(report.assign(seed=params[experiment]["seed"], **key))
    folder = root / "data" / "results"
    table = pd.concat(tables).drop_duplicates(["seed", "variant", "settings", "split", "score", "metric", "attribute"])
    table.round(2).to_csv(folder / f"{name}.csv", index=False)
    if pairs:
        table = pd.concat(pairs).drop_duplicates(["seed", "settings", "lower", "higher"])
        table.round(3).to_csv(folder / f"{name}-pairs.csv", index=False)
    return folder / f"{name}.csv"


# ---- tables of README.md and data/results/README.md, in percent


def cell(values: pd.Series) -> str:
    """Return `mean ± standard deviation`; only the mean for one seed or a deviation that rounds to 0."""
    mean, spread = values.mean(), values.std()
    mean = 0.0 if abs(mean) < 0.05 else mean  # no minus sign on a zero
    return f"{mean:.1f} ± {spread:.1f}" if spread >= 0.05 else f"{mean:.1f}"


def interval(runs: pd.Series) -> str:
    """Student's 95 % interval of the mean over runs; `-` for one run.

    If every run has its own seed and its own data, it covers the choice of both.
    """
    if len(runs) < 2:
        return "-"
    reach = stats.t.ppf(0.975, len(runs) - 1) * runs.sem()
    return f"{runs.mean() - reach:+.1f} to {runs.mean() + reach:+.1f}"


def unstacked(cells: pd.Series, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Return cells by (variant, column) as a table with `-` where there is none, and the columns in the given order."""
    table = cells.unstack().fillna("-").rename_axis(columns=None)
    return table if columns is None else table[[name for name in columns if name in table]]


def reported_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Test metrics by each variant's reported score: one row per variant, one column per metric and attribute."""
    table = table.query("own and split == 'test'")
    keys = table["metric"].where(table["attribute"] == "", table["attribute"])
    cells = table.assign(key=keys).groupby(["variant", "key"], sort=False)["percent"].agg(cell)
    return unstacked(cells, dict.fromkeys(keys))


def results_tables(folder: Path, name: str) -> str:
    """Return all tables of one recorded result: overall metrics, MAP@all by attribute, paired differences."""
    table = sweeps.read(folder / f"{name}.csv")
    cells = reported_cells(table)
    overall, attributes = cells[list(COLUMNS)], cells.drop(columns=list(COLUMNS))
    overall.insert(0, "score", table.query("own").groupby("variant")["score"].first()[overall.index])
    seeds = ", ".join(str(seed) for seed in sorted(table["seed"].unique()))
    about = f"mean ± standard deviation over seeds {seeds}" if "," in seeds else f"one seed ({seeds})"
    texts = [f"Percent, {about}.", markdown_table(overall)]
    texts += ["MAP@all by attribute:", markdown_table(attributes)]
    pairs = folder / f"{name}-pairs.csv"
    if pairs.exists():
        texts += ["Differences in overall MAP@all (points):", markdown_table(pair_table(pd.read_csv(pairs)))]
    return "\n\n".join(texts)


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Difference of each pair over runs, its 95 % interval, and in how many runs the bootstrap interval excludes 0."""
    names = (pairs["higher"] + " - " + pairs["lower"]).rename("pair")
    grouped = pairs.assign(ahead=pairs["low"] > 0, behind=pairs["high"] < 0).groupby(names, sort=False)
    table = grouped["difference"].agg(cell).to_frame()
    table["95 % interval"] = grouped["difference"].agg(interval)
    for side in ("ahead", "behind"):
        table[f"{side} in"] = grouped[side].agg(lambda runs: f"{runs.sum()} of {len(runs)}")
    return table


def summary_table(folder: Path, *names: str) -> str:
    """Overall MAP@all by the reported score: one row per variant, one column per result (that is recorded yet)."""
    recorded = [name for name in names if (folder / f"{name}.csv").exists()] or names[:1]
    columns = {name: reported_cells(sweeps.read(folder / f"{name}.csv"))["MAP@all"] for name in recorded}
    order = dict.fromkeys(variant for column in columns.values() for variant in column.index)
    return markdown_table(pd.DataFrame(columns, index=list(order)).fillna("-").rename_axis("variant"))


def sweep_table(folder: Path, name: str, split: str) -> str:
    """Overall MAP@all by the reported score: one row per variant, one column per combination of settings."""
    table = sweeps.overall(sweeps.read(folder / f"{name}.csv"), split).query("own")
    return markdown_table(unstacked(table.groupby(["variant", "settings"], sort=False)["percent"].agg(cell)))


def score_table(folder: Path, name: str, split: str) -> str:
    """Overall MAP@all: one row per variant, one column per score; the reported score is bold."""
    table = sweeps.overall(sweeps.read(folder / f"{name}.csv"), split).query("score != 'random'")
    grouped = table.groupby(["variant", "score"], sort=False)
    cells = grouped["percent"].agg(cell)
    return markdown_table(unstacked(cells.where(~grouped["own"].first(), "**" + cells + "**"), SCORES))


def space_table(folder: Path, name: str) -> str:
    """Class spaces, mean of attributes: one row per variant that has them; the cosine is in percent too."""
    table = sweeps.read(folder / f"{name}.csv")
    table = table[table["metric"].str.startswith(SPACE)].assign(key=lambda t: t["metric"].str.removeprefix(SPACE))
    means = table.groupby(["variant", "key", "seed", "settings"], sort=False)["percent"].mean()
    cells = means.groupby(["variant", "key"], sort=False).agg(cell)
    return markdown_table(unstacked(cells, dict.fromkeys(table["key"])))


def write_tables(root: Path) -> None:
    """Replace the text between the markers of README.md and data/results/README.md.

    `summary: NAME ...` one column per result; `results: NAME` all tables of one; `sweep: NAME SPLIT` one column per
    combination of settings; `scores: NAME SPLIT` one column per score; `spaces: NAME` class spaces.
    """
    folder = root / "data" / "results"
    tables = {"summary": summary_table, "results": results_tables, "sweep": sweep_table, "scores": score_table}
    tables["spaces"] = space_table

    def filled(match: re.Match) -> str:
        try:
            text = tables[match[2]](folder, *match[3].split())
        except InputError:  # of `sweeps.read`
            text = "Not recorded yet."
        return f"{match[1]}\n{text}\n\n{match[4]}"

    for page in (root / "README.md", folder / "README.md"):
        page.write_text(MARKER.sub(filled, page.read_text()))


def record(names: list[str]) -> None:
    """Collect the experiments of some names; write the tables of all."""
    root = find_root()
    for name in names:
        print(collect(root, name))
    write_tables(root)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: record(sys.argv[1:])))
