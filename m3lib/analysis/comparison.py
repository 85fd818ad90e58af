"""Tables and sentences of the report."""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.analysis.pairs import PUBLISHED_NAMES, comparison_pairs
from m3lib.analysis.significance import paired_bootstrap
from m3lib.compatibility import SCORES
from m3lib.errors import InputError

COLUMNS = {  # column of the main table -> the metric and which of its means
    "MAP@all": ("map_all", "overall_by_query"),
    "MAP@all, mean of attributes": ("map_all", "mean_over_attributes"),
    "MAP@100, hits": ("map_100_hits", "overall_by_query"),
    "MAP@100, min(R, 100)": ("map_100_min", "overall_by_query"),
    "Recall@100": ("recall_100", "overall_by_query"),
}


def read_metrics(folder: Path, variants: list[str]) -> dict[str, dict]:
    """Return the metrics file of each variant, with NaN for null.

    Raises InputError naming the first that is missing or unreadable.
    """
    results = {}
    for variant in variants:
        path = folder / f"{variant}.json"
        try:
            results[variant] = json.loads(path.read_text(), object_hook=nan_for_null)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no metrics of {variant} ({error}); run `dvc repro evaluate@{variant}`") from None
    return results


def nan_for_null(values: dict) -> dict:
    return {name: math.nan if value is None else value for name, value in values.items()}


def summaries(results: Mapping[str, dict], split: str) -> dict[str, dict]:
    """Return the summary of each variant by its configured score; on test, the random ranking comes first."""
    random = {"random": next(iter(results.values()))["random"]} if split == "test" else {}
    return random | {variant: result[split][result["score"]] for variant, result in results.items()}


def main_table(results: Mapping[str, dict], split: str) -> pd.DataFrame:
    """Percent: one row per variant, with its score and one column per metric."""
    rows = {
        variant: {"score": results.get(variant, {}).get("score", "-")}
        | {column: 100 * summary[metric][mean] for column, (metric, mean) in COLUMNS.items()}
        for variant, summary in summaries(results, split).items()
    }
    return pd.DataFrame(rows.values(), index=list(rows))


def fine_attributes(result: dict) -> list[str]:
    """Return the attributes of a metrics file with three classes or more that have test queries; else all attributes.

    Of two classes, the random ranking already finds half or more.
    """
    attributes, classes = list(result["random"]["map_all"]["attributes"]), result["classes"][result["score"]]
    counts = {name: sum(key.startswith(f"{name}: ") for key in classes) for name in attributes}
    return [name for name in attributes if counts[name] > 2] or attributes


def beyond_pooled(result: dict, score: str) -> dict[str, float]:
    """Return what the overall MAP@all of a metrics file hides, as fractions on test by column of `beyond_table`."""
    summary, bands = result["random"] if score == "random" else result["test"][score], result["bands"][score]
    errors = {} if score == "random" else result["calibration"]
    return {
        "MAP@R": summary["map_r"]["overall_by_query"],
        "mean of classes": bands["all"],
        **{f"{band} classes": bands[band] for band in ("rare", "middle", "frequent")},
        "calibration error": pd.Series(errors, dtype=float).mean(),
    }


def beyond_table(results: Mapping[str, dict], milliseconds: Mapping[str, float]) -> pd.DataFrame:
    """One row per variant, below the random ranking, on test by its configured score.

    Percent: MAP@R over queries, MAP@all with each class once and in each band of frequency (`classes.band_means`), and
    the mean calibration error of the attributes. Then bytes per image, and milliseconds per training step where known.
    """
    rows = {"random": beyond_pooled(next(iter(results.values())), "random")}
    rows |= {variant: beyond_pooled(result, result["score"]) for variant, result in results.items()}
    table = 100 * pd.DataFrame(rows).T
    table["bytes per image"] = pd.Series({variant: result["bytes"] for variant, result in results.items()})
    table["ms per step"] = pd.Series(milliseconds, dtype=float)
    return table


def step_milliseconds(recorded: pd.DataFrame, backbones: Mapping[str, str]) -> dict[str, float]:
    """Return the milliseconds of a training step by variant, of those that were measured with their backbone.

    recorded: what `make bench WHAT=train` writes; its last device counts, and of each step the first size.
    """
    last = recorded[recorded["device"] == recorded["device"].iloc[-1]].drop_duplicates(["what", "backbone"])
    measured = last.set_index(["what", "backbone"])["ms"]
    keys = {variant: (f"step of {variant}", backbone) for variant, backbone in backbones.items()}
    return {variant: float(measured[key]) for variant, key in keys.items() if key in measured}


def attribute_table(results: Mapping[str, dict], split: str) -> pd.DataFrame:
    """MAP@all in percent: one row per variant, one column per attribute."""
    return 100 * pd.DataFrame({name: s["map_all"]["attributes"] for name, s in summaries(results, split).items()}).T


def score_table(results: Mapping[str, dict], split: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Overall MAP@all in percent by variant (row) and score (column), and the configured score of each variant.

    On test, the last column is the random ranking.
    """
    cells = {
        variant: {score: 100 * summary["map_all"]["overall_by_query"] for score, summary in result[split].items()}
        for variant, result in results.items()
    }
    computed = [score for score in SCORES if any(score in row for row in cells.values())]
    table = pd.DataFrame(cells).T.reindex(columns=computed)
    if split == "test":
        table["random"] = 100 * summaries(results, split)["random"]["map_all"]["overall_by_query"]
    return table, {name: result["score"] for name, result in results.items()}


def metrics_for_dvc(results: Mapping[str, dict], split: str) -> dict[str, dict]:
    """Return the few numbers per variant, as fractions, that `dvc metrics show` and `dvc exp show` list."""
    return {
        variant: {
            "map_all": summary["map_all"]["overall_by_query"],
            "map_all_mean": summary["map_all"]["mean_over_attributes"],
            "map_100": summary["map_100_hits"]["overall_by_query"],
            "recall_100": summary["recall_100"]["overall_by_query"],
        }
        for variant, summary in summaries(results, split).items()
    }


# ---- the published table: columns dataset, system, metric, attribute, percent


def published_overall(published: pd.DataFrame) -> pd.DataFrame:
    """Overall MAP@all in percent: one row per published system, one column per data set."""
    overall = published[(published["metric"] == "MAP@all") & (published["attribute"] == "overall")]
    return overall.pivot(index="system", columns="dataset", values="percent").reindex(list(PUBLISHED_NAMES.values()))


def beside_published(table: pd.DataFrame, published: pd.DataFrame, baseline: str = "asen") -> pd.DataFrame:
    """Overall MAP@all in percent and the relative gain over a baseline, ours ("here") and as published.

    One row per published system, below the random ranking; NaN where we have no such variant. table: see `main_table`.
    """
    levels = published_overall(published)[["deepfashion", "fashionai", "darn"]]
    levels = levels.reindex(["random", *levels.index])
    levels.insert(0, "here", table["MAP@all"].rename(index=PUBLISHED_NAMES).reindex(levels.index))
    gain = 100 * (levels / levels.loc[PUBLISHED_NAMES[baseline]] - 1)
    return pd.concat({"MAP@all": levels, f"gain over {PUBLISHED_NAMES[baseline]}": gain}, axis=1)


def against_published(results: Mapping[str, dict], split: str, published: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Percent on a public benchmark: each published row, our row if there is one, and ours minus theirs.

    On test, the random ranking comes first.
    Rows (system, "published" | "here" | "difference"); columns MAP@all of each attribute and overall, then MAP@100
    (over the hits) and Recall@100.
    """
    printed = published[published["dataset"] == dataset]
    columns = printed["attribute"].where(printed["metric"] == "MAP@all", printed["metric"])
    levels = printed.assign(column=columns).pivot(index="system", columns="column", values="percent")
    levels = levels[list(dict.fromkeys([*printed["attribute"], *columns]))]
    here = {}
    for variant, summary in summaries(results, split).items():
        metrics = {"overall": "map_all", "MAP@100": "map_100_hits", "Recall@100": "recall_100"}
        overall = {column: summary[metric]["overall_by_query"] for column, metric in metrics.items()}
        here[variant] = 100 * pd.Series(summary["map_all"]["attributes"] | overall).reindex(levels.columns)
    rows = {("random", "here"): here["random"]} if "random" in here else {}
    for variant, system in PUBLISHED_NAMES.items():
        rows[system, "published"] = levels.loc[system]
        if variant in here:
            rows[system, "here"] = here[variant]
            rows[system, "difference"] = here[variant] - levels.loc[system]
    return pd.DataFrame(rows).T


# ---- differences between variants


def compare(precisions: Mapping[str, np.ndarray], images: np.ndarray, seed: int) -> pd.DataFrame:
    """Paired bootstrap over query images: one row per pair of variants, with differences of overall MAP@all in points.

    precisions: (P,) AP@all of the same (query, class) pairs for each variant; images: (P,) the query image of each.
    Columns lower, higher, difference (higher - lower), low and high (95 % interval), p. The interval covers the choice
    of queries; only recorded results over several seeds show what another training seed would change.
    """
    rows = []
    for lower, higher in comparison_pairs(precisions):
        *points, p = paired_bootstrap(precisions[higher], precisions[lower], images, seed=seed)
        rows.append((lower, higher, *(100 * value for value in points), p))
    return pd.DataFrame(rows, columns=["lower", "higher", "difference", "low", "high", "p"])


# ---- settings


def settings_that_differ(rows: list[dict]) -> pd.DataFrame:
    """The settings that have different values in rows (`Variant.resolved`) or in their stages, by (row, stage).

    A setting that a row does not read, and a loss without a weight, is an empty text.
    """
    stages = [
        {"row": row["name"], "stage": number} | {key: {**row, **stage}[key] for key in ("model", "loss", "train")}
        for row in rows
        for number, stage in enumerate(row["stages"])
    ]
    table = pd.json_normalize(stages).set_index(["row", "stage"]).astype(object)
    return table.loc[:, table.map(str).where(table.notna()).nunique() > 1].fillna("")


# ---- sentences


def order_sentences(pairs: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    """Return one sentence per pair of neighbours on whether the published order holds; pairs: see `compare`."""
    differences, sentences = published_overall(published).diff(), []  # of each system to the one before it
    for pair in pairs.itertuples():
        if (pair.lower, pair.higher) not in pairwise(PUBLISHED_NAMES):
            continue
        signs = set(np.sign(differences.loc[PUBLISHED_NAMES[pair.higher]]))
        agreed = {1: "ahead", -1: "behind"}.get(signs.pop()) if len(signs) == 1 else None
        there = f"{agreed} on all three" if agreed else "ahead on some and behind on others"
        if np.isnan(pair.low):
            compared = f"{PUBLISHED_NAMES[pair.higher]} to {PUBLISHED_NAMES[pair.lower]}"
            sentences.append(f"{compared}: published {there}; here too few query images to tell.")
            continue
        here = "ahead" if pair.low > 0 else "behind" if pair.high < 0 else "not significantly different"
        verdict = "the published order is open" if not agreed else "holds" if here == agreed else "does not hold"
        sentences.append(
            f"{PUBLISHED_NAMES[pair.higher]} to {PUBLISHED_NAMES[pair.lower]}: published {there}; here {here} "
            f"({pair.difference:+.1f} points, 95 % interval {pair.low:+.1f} to {pair.high:+.1f}): {verdict}."
        )
    return sentences


def summary_sentences(
    table: pd.DataFrame,
    per_attribute: pd.DataFrame,
    by_score: pd.DataFrame,
    pairs: pd.DataFrame,
    published: pd.DataFrame,
) -> list[str]:
    """Return the report in a few sentences, each computed from the tables of this run; none if nothing is measured."""
    overall = table["MAP@all"].drop("random", errors="ignore").dropna().sort_values(ascending=False)
    if overall.empty:
        return []
    lines = ["Order by overall MAP@all: " + ", ".join(f"{name} {value:.1f}" for name, value in overall.items()) + "."]
    for rival in ("asen", "modc"):
        if {rival, "m3"} <= set(overall.index):
            gain = 100 * (overall["m3"] / overall[rival] - 1)
            lines.append(f"M3-Net compared with {PUBLISHED_NAMES[rival]}: {gain:+.0f} % relative in overall MAP@all.")
    lines += order_sentences(pairs, published)
    if "random" in per_attribute.index:
        near_chance = per_attribute.drop("random") < 1.2 * per_attribute.loc["random"]
        for name, row in near_chance[near_chance.any(axis=1)].iterrows():
            lines.append(f"{name} is within a fifth of the random ranking on {', '.join(row.index[row])}.")
        if not near_chance.any(axis=None):
            lines.append("No variant is within a fifth of the random ranking on any attribute.")
    if {"weighted", "posterior"} <= set(by_score.columns):
        for name, gain in (by_score["weighted"] - by_score["posterior"]).dropna().items():
            lines.append(f"{name}: class-specific embeddings change MAP by {gain:+.1f} over class probabilities only.")
    return lines
