"""Draw the splits and roles of a source, once its photos have been read.

Photos that belong together share a split: those with equal keys (the same bytes, or one product by csv.group_column),
and identical or near-identical ones (`duplicates`). They share their role too: a query whose copy is a candidate would
be answered without having learnt anything. A split that is given is followed, and the notes say what it separates.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from m3lib.config import Split
from m3lib.data.manifest import Source, assign_roles, assign_splits
from m3lib.prepare import asen_split, duplicates
from m3lib.taxonomy import Taxonomy


def draw(source: Source, settings: Split) -> Source:
    """Return the source with a split and a role in every row, and a note on its near-identical photos.

    Rows with the split none are left as they are and join no group. Without signatures only equal keys make groups.
    """
    frame = source.manifest
    rows = np.flatnonzero(frame["split"] != "none")
    used = frame.iloc[rows].reset_index(drop=True)
    pairs = np.zeros((0, 2), int)
    if source.signatures is not None:
        pairs = duplicates.find(source.signatures if len(rows) == len(frame) else source.signatures[rows])
    keys = join(used["key"].to_numpy(object), pairs if settings.group_duplicates else pairs[:0])
    used["split"] = used["split"].mask(used["split"] == "", assign_splits(keys, settings))
    used["role"] = used["role"].mask(used["role"] == "", draw_roles(used, keys, settings.query, source.taxonomy))
    if "row" in used:
        used["row"] = used["row"].mask(used["split"] == "train", -1)
    used = with_protocol(used, source.relevance)
    manifest = pd.concat([used.assign(key=keys).set_axis(rows), frame[frame["split"] == "none"]]).sort_index()
    return replace(
        source,
        manifest=manifest,
        notes=(*source.notes, *describe(used, pairs)),
        relevance="any" if source.relevance == "any" else "pair",
    )


def join(keys: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return (I,) the smallest key of each row's group; equal keys and pairs (P, 2) of rows connect rows."""
    values, which = np.unique(keys, return_inverse=True)
    edges, count = which[pairs], len(values)
    graph = coo_array((np.ones(len(pairs)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    smallest = np.unique(group, return_index=True)[1]  # the values are sorted
    return values[smallest[group[which]]]


def draw_roles(frame: pd.DataFrame, keys: np.ndarray, query: float, taxonomy: Taxonomy) -> np.ndarray:
    """Return (I,) roles; those of a public benchmark are drawn per attribute, for one photo of each group."""
    splits = frame["split"].to_numpy()
    if "row" not in frame:
        return assign_roles(keys, splits, query)
    order = np.argsort(frame["image"].to_numpy(object))
    ids = [f"{split} {key}" for split, key in zip(splits[order], keys[order], strict=True)]
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    one = frame.iloc[order[first]]  # of each group, the photo with the smallest name
    drawn = asen_split.draw_roles(one["image"].tolist(), one["row"].to_numpy(), splits[one.index], query, taxonomy)
    roles = np.empty(len(frame), dtype=object)
    roles[order] = drawn[which]
    return roles


def with_protocol(frame: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Under the protocol `row`, keep only the class of the row as the label of a valid or test photo."""
    if protocol != "row":
        return frame
    return frame.assign(labels=[[m] if m >= 0 else ids for ids, m in zip(frame["labels"], frame["row"], strict=True)])


def describe(frame: pd.DataFrame, pairs: np.ndarray) -> list[str]:
    """Return a note on the groups of near-identical photos, and one on the groups that lie in several splits."""
    if not len(pairs):
        return []
    groups = frame.groupby(join(np.arange(len(frame)), pairs))  # named by their first row
    sizes = groups.size()
    several = sizes[sizes > 1]
    counted = f"{several.sum()} of {len(frame)} photos have identical or near-identical ones (groups: {len(several)})"
    largest = f"the largest has {several.max()} photos, such as {frame['image'][several.idxmax()]!r}"
    divided = groups["split"].nunique() > 1
    if not divided.any():
        return [f"{counted}, each in one split; {largest}"]
    example = frame.loc[groups.groups[divided.idxmax()]].drop_duplicates("split")
    named = " and ".join(f"{name!r} ({split})" for name, split in zip(example["image"], example["split"], strict=True))
    return [f"{counted}; {largest}", f"groups of these that lie in several splits: {divided.sum()}, such as {named}"]
