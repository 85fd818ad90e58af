"""What each part of M3-Net brings, read from recorded experiments (`make record NAME=ablation`) alone.

A recorded table has a row per experiment, variant, split, score, metric and attribute; see `record.py`.
"""

import numpy as np
import pandas as pd

LOSSES = {
    "m3": "Losses 1, 2, 3",
    "m3_no_loss3": "1, 2",
    "m3_no_loss2": "1, 3",
    "m3_loss1": "1",
    "m3_no_loss1": "2, 3",
}
CONDITIONING = {
    "m3": "M3-Net",
    "m3_no_parent": "class queries without their attribute's",
    "m3_no_refine": "class attention on unrefined features",
    "m3_one_hot": "one-hot attribute queries",
    "m3_a": "attributes alone (M3-Net_a)",
    "m3_c": "classes alone (M3-Net_c)",
}
UNSEEN = ("m3", "m3_unseen", "asen_v2_unseen")


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of overall MAP@all on test, a column each for variant, score, own, seed and percent."""
    chosen = (table["metric"] == "MAP@all") & (table["attribute"] == "") & (table["split"] == "test")
    return table[chosen]


def by_score(table: pd.DataFrame, rows: dict[str, str]) -> pd.DataFrame:
    """Mean overall MAP@all in percent over seeds; a row per variant (named by `rows`), a column per score."""
    found = overall(table).groupby(["variant", "score"])["percent"].mean().unstack()
    columns = [score for score in ("concat", "top_class", "weighted", "posterior") if score in found]
    return found.reindex([name for name in rows if name in found.index])[columns].rename(index=rows)


def differences(table: pd.DataFrame, rows: dict[str, str], base: str = "m3") -> pd.DataFrame:
    """Overall MAP@all of each variant minus the base's, by their own scores: mean, lowest and highest over seeds."""
    found = overall(table)
    levels = found[found["own"]].pivot_table(index="seed", columns="variant", values="percent")
    gaps = levels[[name for name in rows if name in levels and name != base]].sub(levels[base], axis=0).dropna()
    return gaps.agg(["mean", "min", "max"]).T.rename(index=rows)


def likeness(table: pd.DataFrame, variants: tuple[str, ...]) -> pd.DataFrame:
    """Mean rank correlation inside a class, over seeds; a row per (variant, score), a column per hidden factor."""
    chosen = table[(table["metric"] == "likeness") & table["variant"].isin(variants)]
    found = chosen.groupby(["variant", "score", "attribute"], sort=False)["percent"].mean().unstack() / 100
    return found.reindex(list(variants), level="variant")


def unseen(table: pd.DataFrame) -> pd.DataFrame:
    """MAP@all in percent of the classes left out of training: mean over them, then over seeds; a column per variant.

    A row per score. `m3` was trained with these classes, and shows what there is to be had.
    """
    chosen = table[(table["metric"] == "MAP@all of a class") & table["variant"].isin(UNSEEN)]
    found = chosen.groupby(["variant", "score"])["percent"].mean().unstack(level="variant")
    return found[[name for name in UNSEEN if name in found]]


def reading(table: pd.DataFrame) -> list[str]:
    """What the numbers say of the three questions, in sentences."""
    lines = []
    gaps = differences(table, LOSSES | CONDITIONING)
    for name, row in gaps.iterrows():
        spread = f"{row['min']:+.1f} to {row['max']:+.1f} over the seeds" if len(seeds(table)) > 1 else "one seed"
        lines.append(f"{name}: {row['mean']:+.1f} points to M3-Net ({spread}).")
    alike = likeness(table, ("m3",)).loc["m3"]
    if {"posterior", "concat"} <= set(alike.index):
        gain = (alike.drop("posterior") - alike.loc["posterior"]).max().sort_values(ascending=False)
        told = ", ".join(f"{factor} {value:+.2f}" for factor, value in gain.items())
        lines.append(f"Likeness inside a class, best score with embeddings minus class probabilities alone: {told}.")
    apart = unseen(table)
    if "m3_unseen" in apart:
        column = apart["m3_unseen"].dropna().sort_values(ascending=False)
        lines.append(
            "Classes left out of training, by score: " + ", ".join(f"{s} {v:.1f}" for s, v in column.items()) + "."
        )
    return lines


def seeds(table: pd.DataFrame) -> list[int]:
    return sorted(np.unique(table["seed"]).tolist())
