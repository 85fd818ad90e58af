"""Panels of images: contact sheets, retrieval results, and attention overlays."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from m3lib.taxonomy import caption

RELEVANT, IRRELEVANT, QUERY = "#2a9d3f", "#d1383d", "#222222"  # frame colors, as on the poster
GLOW = 0.75  # share of the heat color at the peak of an attention map; the rest is the image


def overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the image in grey, with a glow in proportion to the attention relative to its peak.

    image: (H, W, 3) uint8; attention: (H, W), not negative. A map of zeros leaves the grey image, a uniform map glows
    everywhere. The glow runs from violet to yellow by lightness, so it does not depend on telling red from green.
    """
    heat = attention / attention.max() if attention.max() > 0 else np.zeros_like(attention)  # (H, W) in [0, 1]
    grey = image @ np.array([0.299, 0.587, 0.114]) / 255  # (H, W), luma of BT.601
    share = GLOW * heat[..., None]
    mixed = (1 - share) * grey[..., None] + share * plt.get_cmap("inferno")(heat)[..., :3]
    return np.rint(255 * mixed).astype(np.uint8)


def contact_sheet(images: Mapping[str, np.ndarray], title: str, columns: int = 2) -> Figure:
    """One row of images per class, `columns` of them side by side; images: (k, H, W, 3) uint8 by class name."""
    rows = max(1, -(-len(images) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.5 * columns, 0.25 + 1.05 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    if not images:
        axes[0, 0].text(0, 0.5, "no image has a label", va="center")
    for axis, (name, of_class) in zip(axes.flat, images.items(), strict=False):
        axis.imshow(np.hstack(of_class))
        axis.set_title(caption(name), fontsize=9, loc="left", pad=2)
    figure.suptitle(caption(title), fontsize=11)
    return figure


def attention_panel(images: np.ndarray, maps: np.ndarray, names: Sequence[str]) -> Figure:
    """One row per image: the image, then its attention overlay for each attribute (see `overlay`).

    images: (B, H, W, 3) uint8; maps: (B, N, H, W).
    """
    rows, columns = maps.shape[:2]
    figure, axes = plt.subplots(rows, columns + 1, figsize=(1.25 * (columns + 1), 1.35 * rows), squeeze=False)
    for row, image, attention in zip(axes, images, maps, strict=True):
        row[0].imshow(image)
        for axis, attribute_map in zip(row[1:], attention, strict=True):
            axis.imshow(overlay(image, attribute_map))
    for axis, name in zip(axes[0, 1:], names, strict=True):
        axis.set_title(caption(name, 16), fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return figure


def retrieval_panel(
    queries: Sequence[np.ndarray],
    results: Sequence[Sequence[np.ndarray]],
    relevant: np.ndarray,
    captions: Sequence[str],
    maps: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    """One row per query: its image, then its top results, framed green if relevant and red if not; a sentence if none.

    queries: R images (H, W, 3); results: R lists of K images; relevant: (R, K) bool; captions: R texts over the query.
    maps: (R, H, W) attention by name; each is overlaid on the query and shown beside it (see `overlay`).
    """
    if not len(queries):
        figure, axis = plt.subplots(figsize=(4, 0.6))
        axis.axis("off")
        axis.text(0, 0.5, "no query has a label", va="center")
        axis.set_title(caption(title, 80), fontsize=10, loc="left")
        return figure
    maps = maps or {}
    rows, columns = len(relevant), 1 + len(maps) + relevant.shape[1]
    figure, axes = plt.subplots(rows, columns, figsize=(1.05 * columns, 1.28 * rows), squeeze=False)
    for row in range(rows):
        images = [queries[row], *(overlay(queries[row], attention[row]) for attention in maps.values()), *results[row]]
        frames = [QUERY] * (1 + len(maps)) + [RELEVANT if r else IRRELEVANT for r in relevant[row]]
        for axis, image, color in zip(axes[row], images, frames, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(visible=True, color=color, linewidth=2.2)
        axes[row, 0].set_title(caption(captions[row], 80), fontsize=7, loc="left", pad=3)
    for column, name in enumerate(maps, 1):
        axes[-1, column].set_xlabel(name, fontsize=7)
    figure.subplots_adjust(wspace=0.06, hspace=0.28)
    left, above = figure.subplotpars.left, figure.subplotpars.top + 0.2 / figure.get_figheight()
    figure.suptitle(caption(title, 80), fontsize=10, x=left, y=above, ha="left", va="bottom")
    return figure
