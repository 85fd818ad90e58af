"""The style, and the charts of evaluation, UMAP, the report, the ablation and sweeps: tables in, a figure out."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from m3lib.figures import fonts
from m3lib.taxonomy import caption

MEAN, OTHER = "#2a9d3f", "#c9ccd1"
GREYS = {"random": 0.85, "frozen": 0.7, "classifier": 0.5, "classifier_bce": 0.25}  # the plain rows; 0 is black
MAX_COLORS = 10  # more cannot be distinguished


def use_style() -> None:
    """Set the style of figures and tables; call once, before the first figure or table."""
    pd.set_option("display.html.use_mathjax", False)  # a `$` in a name is not a formula
    sns.set_theme(style="ticks", font_scale=0.9, rc={"figure.dpi": 110, "axes.spines.top": False})
    plt.rcParams.update({"axes.spines.right": False, "legend.frameon": False, "savefig.bbox": "tight"})
    plt.rcParams["font.family"] = fonts.register()


def attribute_bars(percent: pd.DataFrame, floor: pd.Series | None, ylabel: str) -> Figure:
    """Grouped bars: one group per attribute, one bar per variant, and the random ranking as a line across the group.

    percent: one row per variant, one column per attribute. floor: the random ranking by attribute, if known.
    """
    long = percent.rename_axis("variant").reset_index().melt("variant", var_name="attribute", value_name="value")
    figure, axis = plt.subplots(figsize=(max(7, 1.5 * percent.shape[1]), 3.4))
    sns.barplot(long, x="attribute", y="value", hue="variant", palette=palette(percent.index), ax=axis)
    positions = np.arange(percent.shape[1])
    if floor is not None:
        values = floor[percent.columns]
        axis.hlines(values, positions - 0.45, positions + 0.45, color="black", linewidth=1.2, label="random ranking")
    for position in positions[percent.isna().all()]:
        axis.text(position, 0, "not measured", ha="center", va="bottom", rotation=90, fontsize=8)
    axis.set(xlabel="", ylabel=ylabel)
    axis.set_xticks(positions, [caption(name) for name in percent.columns])
    axis.tick_params(axis="x", rotation=20 if percent.shape[1] > 5 else 0)
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def class_frequencies(shares: Mapping[str, np.ndarray]) -> Figure:
    """One line per attribute, one dot per class, from the most to the least frequent, on a logarithmic axis.

    shares: attribute to the share of images that have each of its classes; classes without an image have no dot.
    """
    figure, axis = plt.subplots(figsize=(7, 3))
    for (name, values), color in zip(shares.items(), sns.color_palette("husl", len(shares)), strict=True):
        falling = 100 * np.sort(values[values > 0])[::-1]
        axis.plot(1 + np.arange(len(falling)), falling, marker=".", color=color, label=caption(name))
    axis.set(yscale="log", xlabel="class, from the most to the least frequent", ylabel="share of training images (%)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=8)
    return figure


def palette(variants: Sequence[str]) -> dict[str, tuple]:
    """Return one colour per variant, the same in every figure: greys for the plain rows."""
    systems = [variant for variant in variants if variant not in GREYS]
    hues = [colour for colour in sns.color_palette("colorblind") if max(colour) - min(colour) > 0.1]  # without its grey
    hues = [*hues[:7], *hues[:6:-1]]  # yellow last
    colours = dict(zip(systems, sns.color_palette(hues, len(systems)), strict=True))
    return colours | {variant: (GREYS[variant],) * 3 for variant in variants if variant in GREYS}


def learning_curves(curves: pd.DataFrame, floor: float) -> Figure:
    """Validation MAP@all over epochs: one line per variant, and the random ranking as a black line.

    curves: index (variant, row), columns epoch and valid_map_all, a fraction. floor: of the random ranking, percent.
    """
    table = curves.rename_axis(["variant", None]).reset_index("variant")
    table["valid MAP@all (%)"] = 100 * table["valid_map_all"]
    figure, axis = plt.subplots(figsize=(5.5, 3))
    colours = palette(table["variant"].unique())
    sns.lineplot(table, x="epoch", y="valid MAP@all (%)", hue="variant", palette=colours, marker="o", ax=axis)
    axis.axhline(floor, color="black", linewidth=1.2, label="random ranking")
    if table["valid MAP@all (%)"].isna().all():
        axis.text(0.5, 0.5, "nothing can be validated", ha="center", transform=axis.transAxes)
    highest = table["valid MAP@all (%)"].max()
    axis.set(ylim=(0, 1.08 * np.nanmax([highest, floor, 0]) or 1), xticks=sorted(table["epoch"].unique()))
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def score_heatmap(percent: pd.DataFrame, configured: Mapping[str, str], label: str) -> Figure:
    """One cell per variant (row) and score (column), empty where a variant's embeddings lack what the score compares.

    The frame marks the configured score of each variant, {variant: score}, as in the main table.
    """
    figure, axis = plt.subplots(figsize=(1.5 + 1.25 * percent.shape[1], 0.7 + 0.45 * len(percent)))
    limits = {} if percent.notna().any(axis=None) else {"vmin": 0, "vmax": 100}
    colours = {"cmap": "crest", "cbar_kws": {"label": label}, **limits}
    sns.heatmap(percent, annot=True, fmt=".1f", linewidths=1, ax=axis, **colours)
    for row, variant in enumerate(percent.index):
        column = list(percent.columns).index(configured[variant])
        axis.add_patch(plt.Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=2))
    axis.set(xlabel="score", ylabel="")
    axis.tick_params(axis="y", rotation=0)
    return figure


def difference_chart(pairs: pd.DataFrame, xlabel: str) -> Figure:
    """One line per pair of systems: the second minus the first, and its interval.

    pairs: columns lower, higher, difference, low, high.
    """
    figure, axis = plt.subplots(figsize=(6, 0.6 + 0.3 * len(pairs)))
    positions = np.arange(len(pairs))
    interval = np.stack([pairs["difference"] - pairs["low"], pairs["high"] - pairs["difference"]])
    axis.errorbar(pairs["difference"], positions, xerr=interval, fmt="o", color="black", markersize=4, capsize=3)
    axis.axvline(0, color=OTHER, linewidth=1.2, zorder=0)
    axis.set(yticks=positions, yticklabels=pairs["higher"] + " - " + pairs["lower"], xlabel=xlabel)
    axis.invert_yaxis()
    return figure


def sweep_panels(runs: pd.DataFrame, setting: str, ylabel: str) -> Figure:
    """One panel per variant: its metric against one setting, one dot per seed and a line through the means.

    runs: columns variant, percent, and the setting, on a logarithmic axis where its numbers span fourfold or more.
    """
    grid = sns.relplot(
        runs, x=setting, y="percent", col="variant", col_wrap=min(4, runs["variant"].nunique()), kind="line",
        errorbar=None, color="black", linewidth=1, height=1.9, aspect=1.15, facet_kws={"sharey": False},
    )  # fmt: skip
    numeric = pd.api.types.is_numeric_dtype(runs[setting])
    wide = numeric and runs[setting].min() > 0 and runs[setting].max() >= 4 * runs[setting].min()
    for variant, axis in grid.axes_dict.items():
        of_variant = runs[runs["variant"] == variant]
        axis.scatter(of_variant[setting], of_variant["percent"], color="black", s=16, alpha=0.6, linewidth=0)
        axis.set_title(caption(variant), fontsize=9)
        if numeric:
            axis.set_xscale("log" if wide else "linear")
            ticks = sorted(runs[setting].unique())
            axis.set_xticks(ticks, [tick_text(value) for value in ticks], rotation=30)
            axis.xaxis.set_minor_locator(NullLocator())
    grid.set_axis_labels(setting, ylabel)
    return grid.figure


def parallel_coordinates(runs: pd.DataFrame, settings: Sequence[str], label: str) -> Figure:
    """One line per run, through the values of its settings to its metric; darker is better.

    runs: columns percent and the settings; the values of a setting are evenly spaced, in their order.
    """
    columns = [*settings, label]
    ticks = {name: np.unique(runs[name]) for name in settings}
    heights = {name: dict(zip(values, np.linspace(0, 1, len(values)), strict=True)) for name, values in ticks.items()}
    low, high = runs["percent"].min(), runs["percent"].max()
    figure, axis = plt.subplots(figsize=(2.2 * len(columns), 3.4))
    for _, run in runs.sort_values("percent").iterrows():
        share = (run["percent"] - low) / max(high - low, 1e-9)
        line = [*(heights[name][run[name]] for name in settings), share]
        axis.plot(range(len(columns)), line, color=plt.get_cmap("viridis_r")(share), linewidth=1.3)
    texts = [{tick_text(value): height for value, height in heights[name].items()} for name in settings]
    background = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1}
    for number, by_text in enumerate([*texts, {f"{low:.1f}": 0, f"{high:.1f}": 1}]):
        axis.axvline(number, color=OTHER, linewidth=1, zorder=0)
        for text, height in by_text.items():
            axis.text(number + 0.04, height, text, fontsize=8, va="center", bbox=background)
    axis.set(xticks=range(len(columns)), xticklabels=columns, yticks=[], xlim=(-0.1, len(columns) - 0.6))
    sns.despine(ax=axis, left=True, bottom=True)
    return figure


def tick_text(value: float | str) -> str:
    return caption(value) if isinstance(value, str) else f"{value:g}"


def seed_dots(rows: pd.DataFrame, xlabel: str) -> Figure:
    """One line per variant: one dot per seed, and a bar at the mean; rows: columns variant, percent."""
    position, order = pd.factorize(rows["variant"])
    figure, axis = plt.subplots(figsize=(6, 0.7 + 0.28 * len(order)))
    axis.scatter(rows["percent"], position, color="black", s=14, alpha=0.6, linewidth=0)
    for number, mean in rows.groupby(position)["percent"].mean().items():
        axis.plot([mean, mean], [number - 0.3, number + 0.3], color=MEAN, linewidth=2)
    axis.set(yticks=range(len(order)), yticklabels=order, xlabel=xlabel)
    axis.grid(axis="x", color=OTHER, linewidth=0.5)
    axis.invert_yaxis()
    return figure


def umap_panels(points: Mapping[str, pd.DataFrame], columns: int = 2) -> Figure:
    """One scatter plot per attribute, coloured by class; all but the ten largest classes are grey.

    points: attribute to a table with x, y and class_.
    """
    rows = -(-len(points) // columns)
    figure = plt.figure(figsize=(5.6 * columns, 3.7 * rows))
    for number, (attribute, table) in enumerate(points.items(), 1):
        axis = figure.add_subplot(rows, columns, number)
        scatter(axis, table)
        axis.set_title(caption(attribute))
    figure.tight_layout()
    return figure


def scatter(axis: Axes, table: pd.DataFrame) -> None:
    """Draw points by class, or say that there are too few (their positions are NaN then)."""
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)
    if not table["x"].notna().any():
        text = f"{len(table)} points: too few for UMAP"
        axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
        return
    shown = table["class_"].value_counts(sort=True).index[:MAX_COLORS].tolist()
    rest = ~table["class_"].isin(shown)
    if rest.any():
        axis.scatter(table["x"][rest], table["y"][rest], s=7, color=OTHER, linewidth=0, label="other classes")
    for name, colour in zip(shown, sns.color_palette("tab10", MAX_COLORS), strict=False):
        of_class = table[table["class_"] == name]
        axis.scatter(of_class["x"], of_class["y"], s=9, color=colour, linewidth=0, label=caption(name))
    axis.legend(fontsize=7, markerscale=1.8, bbox_to_anchor=(1, 1), loc="upper left", handletextpad=0.1)


def class_chart(table: pd.DataFrame) -> Figure:
    """Average precision against the number of training images: one dot per class, and a dash for the random ranking.

    table: columns attribute, class_, images (training images), ap (percent), floor (random ranking, percent).
    """
    figure, axis = plt.subplots(figsize=(7, 3.4))
    sns.scatterplot(table, x="images", y="ap", hue="attribute", ax=axis, s=28, linewidth=0)
    axis.scatter(table["images"], table["floor"], color="black", s=28, linewidth=1, marker="_", label="random ranking")
    axis.set(xlabel="training images of the class", ylabel="MAP@all of its queries (%)")
    if (table["images"] == 0).any():  # 0 has a place on this axis, left of 1
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, *(n for n in (1, 2, 5, 10, 100, 1000, 10_000, 100_000) if n <= table["images"].max())])
    else:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_locator(NullLocator())
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles, map(caption, labels), bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=8)
    return figure
