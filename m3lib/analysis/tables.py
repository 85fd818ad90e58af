"""The tables of README.md and data/results/README.md, from the recorded results.

In percent, but for COSTS and likeness (a rank correlation); differences in points.

A table stands between two markers; the first names it and the results that it shows, as `<!-- results: multi -->`:

summary: NAME ...   headline MAP@all, one column per result
results: NAME       all metrics, attributes and differences of one result
spaces: NAME        class spaces
parts: NAME ...     what each part brings: differences of two rows, one column per result
order: NAME ...     the steps of the published order, printed and ours
beyond: NAME NAME   classes by frequency and likeness of one result, unseen classes of another
best: NAME ...      which row is best, and than which rows it is not significantly better
"""

import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pandas as pd
from scipy import stats

from m3lib.analysis import sweeps
from m3lib.analysis.comparison import COLUMNS, published_overall
from m3lib.analysis.markdown import markdown_table
from m3lib.analysis.pairs import PARTS, PUBLISHED_NAMES, comparison_pairs
from m3lib.errors import InputError

COSTS = ("bytes per image", "CPU seconds of training")  # the metrics that are neither percentages nor likeness
SPACE = "class space, "  # how the metrics of class spaces start
FINE = "MAP@all, attributes with three classes or more"  # the headline


def cell(values: pd.Series) -> str:
    """Return `mean ± standard deviation`; only the mean for one seed or a deviation that rounds to 0."""
    mean, spread = values.mean(), values.std()
    mean = 0.0 if abs(mean) < 0.05 else mean  # no minus sign on a zero
    return f"{mean:.1f} ± {spread:.1f}" if spread >= 0.05 else f"{mean:.1f}"


def interval(runs: pd.Series) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean over runs; None for one run.

    If every run draws its own data, it covers the choice of data and seed. Splits of the same photos overlap: less.
    """
    if len(runs) < 2:
        return None
    reach = stats.t.ppf(0.975, len(runs) - 1) * runs.sem()
    return runs.mean() - reach, runs.mean() + reach


def span(runs: pd.Series) -> str:
    """The interval as text."""
    ends = interval(runs)
    return f"{ends[0]:+.1f} to {ends[1]:+.1f}" if ends else "-"


def unstacked(cells: pd.Series, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Return cells by (variant, column) as a table with `-` where there is none, and the columns in the given order."""
    table = cells.unstack(sort=False).fillna("-").rename_axis(columns=None)
    return table if columns is None else table[[name for name in columns if name in table]]


def by_run(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A test metric by the reported score: one row per run (seed, settings), one column per variant."""
    rows = table[table["own"] & (table["split"] == "test") & (table["metric"] == metric) & (table["attribute"] == "")]
    return rows.pivot_table(index=["seed", "settings"], columns="variant", values="value", sort=False)


def headline(table: pd.DataFrame) -> str:
    """The headline metric of a recorded table; older tables have MAP@all only."""
    return FINE if (table["metric"] == FINE).any() else "MAP@all"


def reported_scores(table: pd.DataFrame) -> pd.Series:
    """The score that each variant reports."""
    return table[table["own"]].groupby("variant")["score"].first()


def reported_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Test metrics by each variant's reported score: one row per variant, one column per metric and attribute."""
    table = table.query("own and split == 'test'")
    keys = table["metric"].where(table["attribute"] == "", table["attribute"])
    cells = table.assign(key=keys).groupby(["variant", "key"], sort=False)["value"].agg(cell)
    return unstacked(cells, dict.fromkeys(keys))


def results_tables(folder: Path, name: str) -> str:
    """Return all tables of one recorded result: overall metrics, MAP@all by attribute, paired differences."""
    table = sweeps.read(folder / f"{name}.csv")
    cells, metric = reported_cells(table), headline(table)
    overall = cells[[column for column in (FINE, *COLUMNS) if column in cells]]
    if FINE in cells and (cells[FINE] == cells["MAP@all"]).all():
        overall = overall.drop(columns=FINE)
    attributes = cells.drop(columns=[FINE, *COLUMNS], errors="ignore")
    overall.insert(0, "score", reported_scores(table)[overall.index])
    seeds = ", ".join(str(seed) for seed in sorted(table["seed"].unique()))
    about = f"mean ± standard deviation over seeds {seeds}" if "," in seeds else f"one seed ({seeds})"
    texts = [f"Percent, {about}.", markdown_table(overall)]
    texts += ["MAP@all by attribute:", markdown_table(attributes)]
    pairs = pair_table(by_run(table, metric))
    if len(pairs):
        texts += [f"Differences in {'overall MAP@all' if metric == 'MAP@all' else metric}:", markdown_table(pairs)]
    return "\n\n".join(texts)


def pair_table(levels: pd.DataFrame) -> pd.DataFrame:
    """Differences of pairs of rows over runs (`by_run`), 95 % intervals, and in how many runs they are above 0."""
    rows = {}
    for lower, higher in comparison_pairs(list(levels)):
        runs = (levels[higher] - levels[lower]).dropna()
        if len(runs):
            ahead = f"{(runs > 0).sum()} of {len(runs)}"
            rows[f"{higher} - {lower}"] = {"difference": cell(runs), "95 % interval": span(runs), "ahead in": ahead}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("pair")


def recorded(folder: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The results that are recorded yet, by name; raises InputError if none is."""
    names = list(names)
    found = [name for name in names if (folder / f"{name}.csv").exists()] or names[:1]
    return {name: sweeps.read(folder / f"{name}.csv") for name in found}


def summary_table(folder: Path, *names: str) -> str:
    """The headline by the reported score: one row per variant, one column per result."""
    columns = {name: reported_cells(table)[headline(table)] for name, table in recorded(folder, names).items()}
    order = dict.fromkeys(variant for column in columns.values() for variant in column.index)
    return markdown_table(pd.DataFrame(columns, index=list(order)).fillna("-").rename_axis("variant"))


def parts_table(folder: Path, *names: str) -> str:
    """What each part brings in points of the headline, with its 95 % interval: one column per result."""
    labels = {
        f"{part} ({PUBLISHED_NAMES.get(with_it, with_it)} - {PUBLISHED_NAMES.get(without, without)})": (
            without,
            with_it,
        )
        for part, (without, with_it) in PARTS.items()
    }
    return markdown_table(difference_table(folder, names, labels).rename_axis("part"))


def difference_table(folder: Path, names: Iterable[str], pairs: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Differences of pairs of rows (lower, higher) in the headline: one row per label, one column per result."""
    columns = {}
    for name, table in recorded(folder, names).items():
        levels, column = by_run(table, headline(table)), {}
        for label, (lower, higher) in pairs.items():
            if {lower, higher} <= set(levels) and len(runs := (levels[higher] - levels[lower]).dropna()):
                column[label] = f"{runs.mean():+.1f}" + (f" ({span(runs)})" if len(runs) > 1 else "")
        columns[name] = column
    order = [label for label in pairs if any(label in column for column in columns.values())]
    return pd.DataFrame(columns, index=order, dtype=object).fillna("-")


def order_table(folder: Path, *names: str) -> str:
    """The steps of the published order: the printed differences, then ours, one column per result."""
    steps = published_overall(pd.read_csv(folder / "published.csv")).diff()  # of each system to the one before it
    names_of_pairs = {f"{PUBLISHED_NAMES[b]} - {PUBLISHED_NAMES[a]}": (a, b) for a, b in pairwise(PUBLISHED_NAMES)}
    ours = difference_table(folder, names, names_of_pairs)
    higher = [PUBLISHED_NAMES[names_of_pairs[label][1]] for label in ours.index]
    printed = steps.loc[higher].map("{:+.1f}".format).add_suffix(", published").set_axis(ours.index)
    return markdown_table(pd.concat([printed, ours], axis=1).rename_axis("step"))


def space_table(folder: Path, name: str) -> str:
    """Class spaces, mean of attributes: one row per variant that has them; the cosine is in percent too."""
    table = sweeps.read(folder / f"{name}.csv")
    table = table[table["metric"].str.startswith(SPACE)].assign(key=lambda t: t["metric"].str.removeprefix(SPACE))
    means = table.groupby(["variant", "key", "seed", "settings"], sort=False)["value"].mean()
    cells = means.groupby(["variant", "key"], sort=False).agg(cell)
    return markdown_table(unstacked(cells, dict.fromkeys(table["key"])))


def beyond_table(folder: Path, name: str, unseen: str) -> str:
    """Rare, middle and frequent classes by the reported score, and the best likeness within a class, of one result;
    classes left out of training by the reported and by the best score, of another."""
    table = sweeps.complete(sweeps.read(folder / f"{name}.csv"))
    metrics = ("rare classes", "middle classes", "frequent classes", "MAP@R", "calibration error")
    parts = [table[table["metric"] == metric].assign(key=metric) for metric in metrics]
    likeness = table[table["metric"] == "likeness"].groupby(["variant", "seed", "score"])["value"].mean() / 100
    best = likeness.groupby(["variant", "seed"]).max().reset_index()
    cells = pd.concat(parts).groupby(["variant", "key"], sort=False)["value"].agg(cell)
    shown = unstacked(cells)
    if (folder / f"{unseen}.csv").exists():
        of_unseen = sweeps.complete(sweeps.read(folder / f"{unseen}.csv"))
        left_out, own = of_unseen.query("metric == 'unseen classes'"), reported_scores(of_unseen)
        mean = left_out.groupby(["variant", "score"])["value"].agg(["mean", cell])
        shown["unseen classes"] = {v: mean["cell"][v, own[v]] for v in own.index if (v, own[v]) in mean.index}
        top = mean["mean"].groupby("variant").idxmax()
        shown["unseen, best score"] = {v: f"{mean['cell'][key]} ({key[1]})" for v, key in top.items()}
    for cost in COSTS:
        values = table[table["metric"] == cost].groupby("variant")["value"].mean()
        if len(values):
            shown[cost] = values.map("{:,.0f}".format)
    shown["likeness"] = best.groupby("variant")["value"].mean().map("{:.2f}".format)
    return markdown_table(shown.fillna("-"))


def best_table(folder: Path, *names: str) -> str:
    """Which row is best on each result, and which rows it does not lead significantly (`interval`)."""
    rows = {}
    for name, table in recorded(folder, names).items():
        levels = by_run(table, headline(table)).drop(columns="random", errors="ignore")
        means = levels.mean().sort_values(ascending=False)
        best, open_ = means.index[0], []
        for rival in means.index[1:]:
            ends = interval((levels[best] - levels[rival]).dropna())
            if ends is None or ends[0] <= 0:
                open_.append(f"{rival} ({means[rival]:.1f})")
        runs = levels[best].count()
        shown = ", ".join(open_) if runs > 1 else "unknown, one run"
        rows[name] = {
            "runs": runs,
            "best": f"{best} ({means[best]:.1f})",
            "not significantly better than": shown or "-",
        }
    return markdown_table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("data set"))


TABLES: dict[str, Callable[..., str]] = {
    "summary": summary_table,
    "results": results_tables,
    "spaces": space_table,
    "parts": parts_table,
    "order": order_table,
    "beyond": beyond_table,
    "best": best_table,
}
MARKER = re.compile(rf"(<!-- ({'|'.join(TABLES)}): ([\w\- ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write(root: Path) -> None:
    """Replace the text between the markers of README.md and data/results/README.md."""

    def filled(match: re.Match) -> str:
        try:
            text = TABLES[match[2]](root / "data" / "results", *match[3].split())
        except InputError:  # of `sweeps.read`
            text = "Not recorded yet."
        return f"{match[1]}\n{text}\n\n{match[4]}"

    for page in (root / "README.md", root / "data" / "results" / "README.md"):
        page.write_text(MARKER.sub(filled, page.read_text()))
