"""Draw the splits and roles of a source, once its photos have been read.

Photos that belong together share a split: those with equal keys (the same bytes, or one product by csv.group_column),
and identical or near-identical ones (`duplicates`). They share their role too: a query whose copy is a candidate would
be answered without having learnt anything. A split that is given is followed, and the notes say what it separates.

One photo in many products, such as a size chart or "no photo available", says nothing about them: it joins none.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from m3lib.config import Split
from m3lib.data.manifest import Source, assign_roles, assign_splits, check_source
from m3lib.errors import InputError
from m3lib.prepare import asen_split, duplicates
from m3lib.taxonomy import Taxonomy

MOST = 3  # products that one photo connects


def draw(source: Source, settings: Split) -> Source:
    """Return the source with a split and a role in every row, and notes on its near-identical photos.

    Rows with the split none are left as they are and join no group. Without signatures only equal keys make groups.
    """
    frame = source.manifest
    rows = np.flatnonzero(frame["split"] != "none")
    used = frame.iloc[rows].reset_index(drop=True)
    pairs = np.zeros((0, 2), int) if source.signatures is None else duplicates.find(source.signatures, rows)
    own, photos = used["key"].to_numpy(object), duplicates.connect(len(rows), pairs)
    keys, common = join(own, photos) if settings.group_duplicates else (own, np.zeros(len(rows), bool))
    drawn = assign(source, used, keys, settings)
    if settings.group_duplicates and not usable(drawn) and usable(assign(source, used, own, settings)):
        ways = {split: f"set split.group_duplicates to false, or {way}" for split, way in source.remedies.items()}
        drawn = replace(drawn, remedies=ways)
    manifest = pd.concat([drawn.manifest.set_axis(rows), frame[frame["split"] == "none"]]).sort_index()
    notes = (*source.notes, *describe(drawn.manifest, photos), *describe_common(used, photos, common))
    return replace(drawn, manifest=manifest, notes=notes)


def join(keys: np.ndarray, photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (I,) the smallest key of each row's group, and (I,) whether a row's photo is too common to connect keys.

    keys: equal ones connect rows. photos: (I,) a number, equal for near-identical photos. Keys with equal sets of
    photos are one product. A photo connects its products, unless more than MOST of them have other photos as well.
    """
    sets: dict[str, set[int]] = {}
    for key, photo in zip(keys, photos, strict=True):
        sets.setdefault(key, set()).add(photo)
    product = pd.factorize(pd.Series([frozenset(sets[key]) for key in keys], dtype=object))[0]
    several = np.array([len(sets[key]) > 1 for key in keys], dtype=bool)
    products = pd.Series(product[several]).groupby(photos[several]).nunique()
    common = several & np.isin(photos, products.index[products > MOST])
    edges = np.stack([product, len(keys) + photos], axis=1)[~common]
    group = duplicates.connect(2 * len(keys), edges)[product]
    values, which = np.unique(keys, return_inverse=True)  # sorted
    return values[pd.Series(which).groupby(group).transform("min").to_numpy()], common


def assign(source: Source, frame: pd.DataFrame, keys: np.ndarray, settings: Split) -> Source:
    """Return the source with a frame's rows; rows with equal keys share the split and the role that are drawn."""
    frame = frame.assign(key=keys)
    frame["split"] = frame["split"].mask(frame["split"] == "", assign_splits(keys, settings))
    frame["role"] = frame["role"].mask(frame["role"] == "", draw_roles(frame, keys, settings, source.taxonomy))
    if "row" in frame:
        frame["row"] = frame["row"].mask(frame["split"] == "train", -1)
    relevance = "any" if source.relevance == "any" else "pair"
    return replace(source, manifest=with_protocol(frame, source.relevance), relevance=relevance)


def usable(source: Source) -> bool:
    """Return whether something can be trained and something evaluated."""
    try:
        check_source(source)
    except InputError:
        return False
    return True


def draw_roles(frame: pd.DataFrame, keys: np.ndarray, settings: Split, taxonomy: Taxonomy) -> np.ndarray:
    """Return (I,) roles; those of a public benchmark are drawn per attribute, for one photo of each group."""
    splits = frame["split"].to_numpy()
    if "row" not in frame or settings.query == 1:
        return assign_roles(keys, splits, settings.query, settings.seed)
    order = np.argsort(frame["image"].to_numpy(object))
    ids = [f"{split} {key}" for split, key in zip(splits[order], keys[order], strict=True)]
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    one = frame.iloc[order[first]]  # of each group, the photo with the smallest name
    names, rows = one["image"].tolist(), one["row"].to_numpy()
    drawn = asen_split.draw_roles(names, rows, splits[one.index], settings.query, taxonomy, settings.seed)
    roles = np.empty(len(frame), dtype=object)
    roles[order] = drawn[which]
    return roles


def with_protocol(frame: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Under the protocol `row`, keep only the class of the row as the label of a valid or test photo."""
    if protocol != "row":
        return frame
    return frame.assign(labels=[[m] if m >= 0 else ids for ids, m in zip(frame["labels"], frame["row"], strict=True)])


def describe(frame: pd.DataFrame, photos: np.ndarray) -> list[str]:
    """Return a note on the clusters of near-identical photos, and one on those that lie in several splits.

    photos: (I,) the first row of each row's cluster.
    """
    groups = frame.groupby(photos)
    sizes = groups.size()
    several = sizes[sizes > 1]
    if not len(several):
        return []
    counted = f"{several.sum()} of {len(frame)} photos have identical or near-identical ones (groups: {len(several)})"
    largest = f"the largest has {several.max()} photos, such as {frame['image'][several.idxmax()]!r}"
    divided = groups["split"].nunique() > 1
    if not divided.any():
        return [f"{counted}, each in one split; {largest}"]
    example = frame.loc[groups.groups[divided.idxmax()]].drop_duplicates("split")
    named = " and ".join(f"{name!r} ({split})" for name, split in zip(example["image"], example["split"], strict=True))
    return [f"{counted}; {largest}", f"groups of these that lie in several splits: {divided.sum()}, such as {named}"]


def describe_common(frame: pd.DataFrame, photos: np.ndarray, common: np.ndarray) -> list[str]:
    """Return a note on the photos that are in too many groups to join them; photos: as for `describe`."""
    groups = frame[common].groupby(photos[common])["key"].nunique()
    if not len(groups):
        return []
    example = f"{frame['image'][groups.idxmax()]!r} (in {groups.max()})"
    return [f"photos in more than {MOST} different groups, which they don't join: {len(groups)}, such as {example}"]
