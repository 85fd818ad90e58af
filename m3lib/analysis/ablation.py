"""What each component of M3-Net, and of Duet, contributes, from recorded runs (`record.RECORDED` names the columns)."""

import pandas as pd

from m3lib.analysis.sweeps import overall

LOSSES = {
    "m3": "Losses 1, 2, 3",
    "m3_no_loss3": "Losses 1, 2",
    "m3_no_loss2": "Losses 1, 3",
    "m3_loss1": "Loss 1",
    "m3_no_loss1": "Losses 2, 3",
}
CONDITIONING = {
    "m3": "M3-Net",
    "m3_shared": "one projection for all classes, queries as they are",
    "m3_masked": "a shared projection and a mask per class",
    "m3_factored": "a shared projection and a small one per class",
    "m3_no_parent": "class queries without their attribute's",
    "m3_no_refine": "class attention on unrefined features",
    "m3_one_hot": "one-hot attribute queries",
    "m3_a": "attribute branch only (M3-Net_a)",
    "m3_c": "class branch only (M3-Net_c)",
}
DUET = {
    "duet": "Duet",
    "duet_one_view": "one view",
    "duet_no_contrast": "classes only",
    "duet_no_classes": "contrast only",
}


def by_score(
    table: pd.DataFrame,
    rows: dict[str, str],
    scores: tuple[str, ...] = ("concat", "top_class", "weighted", "posterior"),
) -> pd.DataFrame:
    """Mean overall MAP@all in percent over seeds: one row per variant (named by `rows`), one column per score."""
    means = overall(table, "test").groupby(["variant", "score"])["percent"].mean().unstack()
    columns = [score for score in scores if score in means]
    return means.reindex([name for name in rows if name in means.index])[columns].rename(index=rows)


def differences(table: pd.DataFrame, rows: dict[str, str], base: str = "m3") -> pd.DataFrame:
    """Overall MAP@all of each variant minus the base's, by their reported scores: mean, min and max over seeds."""
    levels = overall(table, "test").query("own").pivot_table(index="seed", columns="variant", values="percent")
    gaps = levels[[name for name in rows if name in levels and name != base]].sub(levels[base], axis=0).dropna()
    return gaps.agg(["mean", "min", "max"]).T.rename(index=rows)


def factor_correlation(table: pd.DataFrame, variants: tuple[str, ...]) -> pd.DataFrame:
    """Mean rank correlation within classes over seeds: one row per (variant, score), one column per hidden factor."""
    rows = table[(table["metric"] == "likeness") & table["variant"].isin(variants)]
    means = rows.groupby(["variant", "score", "attribute"], sort=False)["value"].mean().unstack() / 100
    return means.reindex(list(variants), level="variant")


def unseen(table: pd.DataFrame) -> pd.DataFrame:
    """MAP@all in percent of classes left out of training, mean over classes and seeds, by variant and score.

    table: recorded runs that left classes out. The row random is the expected MAP of a random ranking.
    """
    rows = table[table["metric"] == "unseen classes"]
    means = rows.groupby(["variant", "score"], sort=False)["value"].mean().unstack()
    means["random"] = means["random"].dropna().item()
    return means.drop(index="random")


def summary_sentences(table: pd.DataFrame, left_out: pd.DataFrame) -> list[str]:
    """Return the answers to the three questions of the ablation in sentences; left_out: see `unseen`."""
    lines, one_seed = [], table["seed"].nunique() == 1
    for name, row in differences(table, LOSSES | CONDITIONING).iterrows():
        spread = "one seed" if one_seed else f"{row['min']:+.1f} to {row['max']:+.1f} over the seeds"
        lines.append(f"{name}: {row['mean']:+.1f} points compared with M3-Net ({spread}).")
    correlation = factor_correlation(table, ("m3",)).loc["m3"]
    if {"posterior", "concat"} <= set(correlation.index):
        gains = (correlation.drop("posterior") - correlation.loc["posterior"]).max().sort_values(ascending=False)
        text = ", ".join(f"{factor} {value:+.2f}" for factor, value in gains.items())
        lines.append(f"Factor correlation within classes, best other score minus class probabilities: {text}.")
    for name, scores in unseen(left_out).iterrows():
        falling = scores.dropna().sort_values(ascending=False)
        lines.append(f"Unseen classes, {name}: {', '.join(f'{s} {value:.1f}' for s, value in falling.items())}.")
    return lines
