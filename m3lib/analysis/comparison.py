"""Tables and sentences of the report, from the metrics files alone."""

import json
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.analysis import significance
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.retrieval.ranking import Ranking

COLUMNS = {  # a column of the main table: the metric and which mean of it
    "MAP@all": ("map_all", "overall_by_query"),
    "MAP@all, mean of attributes": ("map_all", "mean_over_attributes"),
    "MAP@100, hits": ("map_100_hits", "overall_by_query"),
    "MAP@100, min(R, 100)": ("map_100_min", "overall_by_query"),
    "Recall@100": ("recall_100", "overall_by_query"),
}
PUBLISHED_NAMES = {"asen": "ASEN", "asen_v2": "ASEN_v2", "asen_pp": "ASEN++", "modc": "MODC"} | {
    "m3_a": "M3-Net_a",
    "m3_c": "M3-Net_c",
    "m3": "M3-Net",
}
SCORES = ("attribute", "segment", "soft_segment", "concat", "top_class", "weighted", "posterior")
FURTHER_PAIRS = (
    ("modc", "m3"),
    ("classifier", "m3"),
    ("asen_v2_l1", "m3"),
    ("modc_l1", "m3"),
    ("asen_pp", "asen_pp_long"),
)


def read_metrics(folder: Path, variants: list[str]) -> dict[str, dict]:
    """The metrics file of each variant; raises InputError naming the first that is missing or unreadable."""
    results = {}
    for variant in variants:
        path = folder / f"{variant}.json"
        try:
            results[variant] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no metrics of {variant} ({error}); run `dvc repro evaluate@{variant}`") from None
    return results


def rows_of(results: Mapping[str, dict], split: str) -> dict[str, dict]:
    """Variant to its summary under its own score, the random ranking first."""
    first = next(iter(results.values()))
    rows = {"random": first["random"]} if split == "test" else {}
    return rows | {variant: result[split][result["score"]] for variant, result in results.items()}


def main_table(results: Mapping[str, dict], split: str) -> pd.DataFrame:
    """Percent; a row per variant, the score it uses, and one column per metric."""
    rows = {
        variant: {"score": results.get(variant, {}).get("score", "-")}
        | {column: 100 * summary[metric][mean] for column, (metric, mean) in COLUMNS.items()}
        for variant, summary in rows_of(results, split).items()
    }
    return pd.DataFrame(rows.values(), index=list(rows))


def attribute_table(results: Mapping[str, dict], split: str) -> pd.DataFrame:
    """MAP@all in percent; a row per variant, a column per attribute."""
    return 100 * pd.DataFrame({name: s["map_all"]["attributes"] for name, s in rows_of(results, split).items()}).T


def beside_published(table: pd.DataFrame, published: pd.DataFrame, baseline: str = "asen") -> pd.DataFrame:
    """Overall MAP@all in percent, ours and as printed for the public benchmarks, and the gains over a baseline.

    published: columns dataset, system, metric, attribute, percent. A row per published system; a column pair per data
    set, ours ("here") first; NaN where we have no such variant.
    """
    overall = published[(published["metric"] == "MAP@all") & (published["attribute"] == "overall")]
    levels = overall.pivot(index="system", columns="dataset", values="percent").reindex(list(PUBLISHED_NAMES.values()))
    ours = table["MAP@all"].rename(index=PUBLISHED_NAMES).reindex(levels.index)
    levels = pd.concat([ours.rename("here"), levels[["deepfashion", "fashionai", "darn"]]], axis=1)
    gain = 100 * (levels / levels.loc[PUBLISHED_NAMES[baseline]] - 1)
    return pd.concat({"MAP@all": levels, f"gain over {PUBLISHED_NAMES[baseline]}": gain}, axis=1)


def against_published(results: Mapping[str, dict], split: str, published: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Percent, on a public benchmark: every published row, ours where there is one, and ours minus theirs.

    Rows (system, "published" | "here" | "difference"); columns MAP@all of each attribute and overall, then MAP@100
    (over the hits found) and Recall@100. From the metrics files and the published table alone.
    """
    printed = published[published["dataset"] == dataset]
    levels = printed[printed["metric"] == "MAP@all"].pivot(index="system", columns="attribute", values="percent")
    levels = levels[list(dict.fromkeys(printed["attribute"]))]
    for metric in ("MAP@100", "Recall@100"):
        levels[metric] = printed[printed["metric"] == metric].set_index("system")["percent"]
    rows = {}
    for variant, system in PUBLISHED_NAMES.items():
        rows[system, "published"] = levels.loc[system]
        if variant in results:
            ours = results[variant][split][results[variant]["score"]]
            here = pd.Series({name: 100 * value for name, value in ours["map_all"]["attributes"].items()})
            here["overall"] = 100 * ours["map_all"]["overall_by_query"]
            here["MAP@100"] = 100 * ours["map_100_hits"]["overall_by_query"]
            here["Recall@100"] = 100 * ours["recall_100"]["overall_by_query"]
            rows[system, "here"] = here.reindex(levels.columns)
            rows[system, "difference"] = rows[system, "here"] - levels.loc[system]
    return pd.DataFrame(rows).T


def score_table(results: Mapping[str, dict], split: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Overall MAP@all in percent per variant (row) and score (column), and the score each variant's row uses."""
    cells = {
        variant: {score: 100 * summary["map_all"]["overall_by_query"] for score, summary in result[split].items()}
        for variant, result in results.items()
    }
    table = pd.DataFrame(cells).T.reindex(
        columns=[score for score in SCORES if any(score in row for row in cells.values())]
    )
    return table, {variant: result["score"] for variant, result in results.items()}


def flat(results: Mapping[str, dict], split: str) -> dict[str, dict]:
    """What `dvc metrics show` and `dvc exp show` list: a few numbers per variant, fractions."""
    summaries = rows_of(results, split)
    return {
        variant: {
            "map_all": summary["map_all"]["overall_by_query"],
            "map_all_mean": summary["map_all"]["mean_over_attributes"],
            "map_100": summary["map_100_hits"]["overall_by_query"],
            "recall_100": summary["recall_100"]["overall_by_query"],
        }
        for variant, summary in summaries.items()
    }


def widest_gap(per_attribute: pd.DataFrame, low: str, high: str) -> str:
    """The attribute on which `high` leads `low` by most."""
    return str((per_attribute.loc[high] - per_attribute.loc[low]).idxmax())


def typical_class(prepared: Prepared, split: str, attribute: str) -> str:
    """The class of middling frequency among the split's queries."""
    own = prepared.taxonomy.classes_of(prepared.taxonomy.names.index(attribute))
    counts = prepared.labels[prepared.rows(split, "query"), own].sum(axis=0)
    present = np.flatnonzero(counts >= min(3, counts.max()))
    middle = present[np.argsort(-counts[present], kind="stable")[len(present) // 2]]
    return prepared.taxonomy.class_name(own.start + int(middle))


def panel_content(
    prepared: Prepared,
    ranking: Ranking,
    attribute: int,
    class_: str | None = None,
    rows: int = 3,
    top: int = 10,
    among: np.ndarray | None = None,
):
    """What `figures.retrieval_panel` draws: queries, their results, which are right, captions.

    With a class, queries that carry it, and a result is right if it carries it too. Without, queries of different
    classes, and a result is right if it shares a class with its query. among: these manifest rows, all of them, are
    the queries.
    """
    taxonomy, own = prepared.taxonomy, prepared.taxonomy.classes_of(attribute)
    query_labels, candidate_labels = ranking.labels(prepared, own)
    if class_ is not None:
        wanted = taxonomy.class_id(taxonomy.names[attribute], class_) - own.start
        only = np.arange(query_labels.shape[1]) == wanted
        query_labels, candidate_labels = query_labels & only, candidate_labels & only
    first = np.argmax(query_labels, axis=1)  # (Q,) the first class that a query carries
    asked = np.flatnonzero(query_labels.any(axis=1))
    if among is not None:
        asked, rows = asked[np.isin(ranking.query_rows[asked], among)], len(among)
    elif class_ is None:
        asked = asked[np.sort(np.unique(first[asked], return_index=True)[1])]
    asked, found = asked[:rows], ranking.order(asked[:rows])[:, :top].numpy()  # (rows,), (rows, top)
    right = (query_labels[asked][:, None] & candidate_labels[found]).any(axis=2)
    captions = [" + ".join(np.array(taxonomy.attributes[attribute].classes)[labels]) for labels in query_labels[asked]]
    images = prepared.images
    results = [[images[row] for row in ranking.candidate_rows[line]] for line in found]
    return [images[row] for row in ranking.query_rows[asked]], results, right, captions


def looks(
    prepared: Prepared, split: str, attribute: int, kept: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The queries whose attention 02_train kept and that are known under an attribute, and their maps of it.

    kept: from `inference.attention_maps`, and "rows". Returns (R,) ascending manifest rows, and (R, H, W) maps by kind.
    """
    rows = kept["rows"]
    known = prepared.labels[rows][:, prepared.taxonomy.classes_of(attribute)].any(axis=1)
    known &= np.isin(rows, prepared.rows(split, "query"))
    return rows[known], {whose: maps[known, attribute] for whose, maps in kept.items() if whose != "rows"}


def neighbours(variants: Collection[str]) -> list[tuple[str, str]]:
    """(lower, higher) pairs of variants: neighbours in the published order, then further ones worth a look."""
    order = [name for name in PUBLISHED_NAMES if name in variants]
    further = [pair for pair in FURTHER_PAIRS if set(pair) <= set(variants)]
    return list(dict.fromkeys([*pairwise(order), *further]))


def compare(precisions: Mapping[str, np.ndarray], images: np.ndarray, seed: int) -> pd.DataFrame:
    """Paired bootstrap over query images: a row per pair, differences of overall MAP@all in points.

    precisions: variant to its (P,) AP@all of the same (query, class) pairs; images: (P,) the query image of each.
    Columns lower, higher, difference (higher - lower), low and high (95 % interval), p. The interval speaks of the
    choice of queries; what another training seed would give is told by recorded results alone.
    """
    rows = []
    for lower, higher in neighbours(precisions):
        found = significance.paired_bootstrap(precisions[higher], precisions[lower], images, seed=seed)
        rows.append((lower, higher, *(100 * value for value in found[:3]), found[3]))
    return pd.DataFrame(rows, columns=["lower", "higher", "difference", "low", "high", "p"])


def published_differences(published: pd.DataFrame) -> pd.DataFrame:
    """Overall MAP@all, higher - lower in points, of neighbours in the published order; a column per data set."""
    overall = published[(published["metric"] == "MAP@all") & (published["attribute"] == "overall")]
    levels = overall.pivot(index="system", columns="dataset", values="percent")
    rows = {
        pair: levels.loc[PUBLISHED_NAMES[pair[1]]] - levels.loc[PUBLISHED_NAMES[pair[0]]]
        for pair in pairwise(PUBLISHED_NAMES)
    }
    return pd.DataFrame(rows).T.rename_axis(["lower", "higher"])


def order_lines(pairs: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    """Where the published order holds, in words: a line per pair of neighbours."""
    printed, lines = published_differences(published), []
    for pair in pairs.itertuples():
        if (pair.lower, pair.higher) not in printed.index:
            continue
        signs = np.sign(printed.loc[(pair.lower, pair.higher)])
        agreed = {1: "ahead", -1: "behind"}.get(int(signs.iloc[0])) if signs.nunique() == 1 else None
        there = f"{agreed} on all three" if agreed else "ahead on some and behind on others"
        here = "ahead" if pair.low > 0 else "behind" if pair.high < 0 else "not told apart"
        verdict = "the order is open there" if not agreed else "holds" if here == agreed else "does not hold"
        lines.append(
            f"{PUBLISHED_NAMES[pair.higher]} to {PUBLISHED_NAMES[pair.lower]}: published {there}; here {here} "
            f"({pair.difference:+.1f} points, 95 % interval {pair.low:+.1f} to {pair.high:+.1f}): {verdict}."
        )
    return lines


def reading(
    table: pd.DataFrame, per_attribute: pd.DataFrame, heat: pd.DataFrame, pairs: pd.DataFrame, published: pd.DataFrame
) -> str:
    """The report in a few sentences, each from this run's numbers."""
    overall = table["MAP@all"].drop("random", errors="ignore").sort_values(ascending=False)
    lines = ["Order by overall MAP@all: " + ", ".join(f"{name} {value:.1f}" for name, value in overall.items()) + "."]
    for rival in ("asen", "modc"):
        if {rival, "m3"} <= set(overall.index):
            gain = 100 * (overall["m3"] / overall[rival] - 1)
            lines.append(f"M3-Net to {PUBLISHED_NAMES[rival]}: {gain:+.0f} % relative in overall MAP@all.")
    lines += order_lines(pairs, published)
    if "random" in per_attribute.index:
        lines += chance_lines(per_attribute)
    if {"weighted", "posterior"} <= set(heat.columns):
        for name, row in heat.dropna(subset=["weighted", "posterior"]).iterrows():
            difference = row["weighted"] - row["posterior"]
            lines.append(
                f"{name}: class-specific embeddings change MAP by {difference:+.1f} over class probabilities alone."
            )
    return "\n".join(lines)


def chance_lines(per_attribute: pd.DataFrame) -> list[str]:
    """Which attributes a variant leaves within a fifth of the random ranking."""
    floor = per_attribute.loc["random"]
    lines = []
    for name, row in per_attribute.drop("random").iterrows():
        near = [attribute for attribute in per_attribute.columns if row[attribute] < 1.2 * floor[attribute]]
        if near:
            lines.append(f"{name} stays within a fifth of the random ranking on {', '.join(near)}.")
    return lines or ["No variant stays within a fifth of the random ranking on any attribute."]
