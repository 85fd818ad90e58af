"""Copies of a photo share a split and a role in every split that is drawn; a given split is kept and checked."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from copied import COPIES, photo, signatures
from m3lib.config import Split
from m3lib.data.manifest import Source, assign_roles, assign_splits, check_source
from m3lib.errors import InputError
from m3lib.prepare import catalogue, pack, splits
from tiny import SETTINGS, TAXONOMY

SPLIT = Split(valid=0.25, test=0.25, query=0.4, group_duplicates=True, seed=0)
SINGLE = [photo(seed) for seed in range(40)]
COPIED = [change(SINGLE[i]) for i, change in enumerate(COPIES.values())]
SIGNATURES = signatures([*SINGLE, *COPIED])  # photo 40 + i is a copy of photo i
NAMES = [f"{i:02}.jpg" for i in range(len(SIGNATURES))]


def make_source(keys: Sequence[str] = NAMES, given: Sequence[str] | str = "", signed: np.ndarray = SIGNATURES, **more):
    columns = {"image": NAMES[: len(keys)], "split": given, "role": "", "key": keys, "labels": [[0]] * len(keys)} | more
    return Source(TAXONOMY, pd.DataFrame(columns), load=None, signatures=signed)


def places(source: Source) -> dict[str, tuple[str, str]]:
    """Photo -> split and role."""
    frame = source.manifest
    return {name: place for name, *place in zip(frame["image"], frame["split"], frame["role"], strict=True)}


def straddling(found: dict[str, list[str]]) -> list[int]:
    return [i for i in range(len(COPIED)) if found[NAMES[i]] != found[NAMES[40 + i]]]


def test_copies_share_split_and_role_and_other_photos_keep_theirs():
    found = places(splits.draw(make_source(), SPLIT))
    assert not straddling(found)
    alone = assign_splits(NAMES, SPLIT)
    roles = assign_roles(NAMES, alone, SPLIT.query)
    others = range(len(COPIED), 40)
    assert [found[NAMES[i]] for i in others] == [[alone[i], roles[i]] for i in others]


def test_without_grouping_copies_are_drawn_as_other_photos_and_counted():
    source = splits.draw(make_source(), replace(SPLIT, group_duplicates=False))
    assert source.manifest["split"].tolist() == assign_splits(NAMES, SPLIT).tolist()
    apart = {i for i in range(len(COPIED)) if len({source.manifest["split"][i], source.manifest["split"][40 + i]}) > 1}
    assert "20 of 50 photos have identical or near-identical ones (groups: 10)" in source.notes[0]
    assert source.notes[1].startswith(f"groups of these that lie in several splits: {len(apart)}, such as '0")
    assert len(apart) > 1


def test_forty_copies_in_forty_groups_share_a_split_and_a_role():
    signed = np.concatenate([np.repeat(SIGNATURES[:1], 40, axis=0), SIGNATURES[1:11]])
    source = splits.draw(make_source([f"group p{i}" for i in range(50)], signed=signed), SPLIT)
    found = list(places(source).values())
    assert len(set(map(tuple, found[:40]))) == 1
    assert {split for split, _ in found} == {"train", "valid", "test"}
    assert "40 of 50 photos" in source.notes[0]
    assert "(groups: 1), each in one split; the largest has 40 photos" in source.notes[0]


def test_groups_and_copies_are_joined():
    """Photos 0 to 3 are a product; 41 is a copy of 1, and belongs to a product with 20 and 21."""
    keys = ["group a" if i < 4 else "group b" if i in (20, 21, 41) else name for i, name in enumerate(NAMES)]
    found = places(splits.draw(make_source(keys), SPLIT))
    together = [NAMES[i] for i in (0, 1, 2, 3, 20, 21, 40, 41, 42, 43)]
    assert len({tuple(found[name]) for name in together}) == 1


def products(count: int, *shared: tuple[int, range]) -> Source:
    """Products of two photos of their own; shared: a photo and the products that have it too."""
    keys = [f"group p{i:02}" for i in range(count) for _ in range(2)]
    photos = list(range(len(keys)))
    for number, owners in shared:
        keys += [f"group p{i:02}" for i in owners]
        photos += [2 * count + number] * len(owners)
    signed = np.random.default_rng(0).integers(0, 256, (2 * count + len(shared), SIGNATURES.shape[1]), np.uint8)
    signed[:, :2] = 32  # height and width
    names = [f"{i:03}.jpg" for i in range(len(keys))]
    frame = pd.DataFrame({"image": names, "split": "", "role": "", "key": keys, "labels": [[0]] * len(keys)})
    return Source(TAXONOMY, frame, load=None, signatures=signed[photos])


def joined(source: Source) -> list[int]:
    """The sizes of the sets of products that share a key, beginning with the largest."""
    own = source.manifest["key"]
    keys = splits.draw(source, SPLIT).manifest["key"]
    return sorted(own.groupby(keys).nunique(), reverse=True)


@pytest.mark.parametrize(
    "shared", [[(0, range(60))], [(0, range(30)), (1, range(30, 60))], [(0, range(60)), (1, range(5))]]
)
def test_a_photo_of_many_products_does_not_join_them(shared):
    """Such as a size chart, or a drawing that says that there is no photo."""
    source = products(60, *shared)
    assert joined(source) == [1] * 60
    drawn = splits.draw(source, SPLIT)
    assert drawn.manifest.groupby("key")["split"].nunique().max() == 1
    assert {"train", "valid", "test"} == set(drawn.manifest["split"])
    assert drawn.notes[-1] == (
        f"photos in more than 3 different groups, which they don't join: {len(shared)}, such as '120.jpg' "
        f"(in {len(shared[0][1])})"
    )
    order = np.random.default_rng(1).permutation(len(source.manifest))
    rows = source.manifest.iloc[order].reset_index(drop=True)
    assert places(splits.draw(replace(source, manifest=rows, signatures=source.signatures[order]), SPLIT)) == places(
        drawn
    )


def test_a_photo_of_few_products_joins_them():
    assert joined(products(20, (0, range(3)), (1, range(5, 7)))) == [3, 2] + [1] * 15
    assert joined(products(20, (0, range(4)))) == [1] * 20


def test_copies_without_a_product_stay_together_where_products_do_not_join():
    source = products(20, (0, range(10)))
    source.manifest.loc[[40, 41, 42], "key"] = ["a", "b", "b"]  # three of the copies
    drawn = splits.draw(source, SPLIT).manifest
    assert drawn["key"][[40, 41, 42]].tolist() == ["a"] * 3
    assert drawn["key"].nunique() == 21


def test_products_with_equal_photos_are_one_product():
    """Such as one shirt in eight sizes, each with its own group."""
    source = products(20)
    signed = source.signatures.copy()
    signed[:16] = np.tile(signed[:2], (8, 1))
    assert joined(replace(source, signatures=signed)) == [8] + [1] * 12


@pytest.mark.parametrize("others", [4, 10, 30])
@pytest.mark.parametrize("seed", range(5))
def test_many_copies_of_one_photo_leave_no_split_empty(others, seed):
    """Fifty copies: more than half of all photos."""
    signed = np.concatenate([SIGNATURES[:others], np.repeat(SIGNATURES[30:31], 50, axis=0)])
    keys = [f"{seed} {i}" for i in range(len(signed))]
    frame = pd.DataFrame({"image": keys, "split": "", "role": "", "key": keys, "labels": [[0]] * len(keys)})
    found = splits.draw(Source(TAXONOMY, frame, load=None, signatures=signed), SPLIT).manifest
    assert len(set(zip(found["split"], found["role"], strict=True))) == 5
    assert found["key"][others:].nunique() == 1


@pytest.mark.parametrize("on", [True, False])
def test_advice_names_the_grouping_only_if_it_empties_a_split(on):
    signed = np.repeat(SIGNATURES[:1], 40, axis=0)
    source = replace(make_source(NAMES[:40], signed=signed), remedies={"test": "raise split.test"})
    drawn = splits.draw(source, SPLIT)
    with pytest.raises(
        InputError, match=r"no test image has a label: set split\.group_duplicates to false, or raise split\.test"
    ):
        check_source(drawn)
    settings = replace(SPLIT, group_duplicates=on, test=0.0)
    assert splits.draw(source, settings).remedies == source.remedies


def test_the_order_of_rows_does_not_matter():
    before = places(splits.draw(make_source(), SPLIT))
    order = np.random.default_rng(0).permutation(len(NAMES))
    moved = make_source()
    moved = replace(moved, manifest=moved.manifest.iloc[order].reset_index(drop=True), signatures=SIGNATURES[order])
    assert places(splits.draw(moved, SPLIT)) == before


def test_a_given_split_is_kept_and_its_leaks_are_counted():
    given = ["train"] * 25 + ["valid"] * 5 + ["test"] * 10 + ["train"] * 6 + ["test"] * 4
    source = splits.draw(make_source(given=given), SPLIT)
    assert source.manifest["split"].tolist() == given
    assert "20 of 50 photos have identical or near-identical ones (groups: 10); the largest has 2" in source.notes[0]
    named = "'06.jpg' (train) and '46.jpg' (test)"
    assert source.notes[1] == f"groups of these that lie in several splits: 4, such as {named}"


def test_unlabelled_rows_join_no_group():
    """Photo 40, a copy of 0, has no label; what it is a copy of, and every other photo, is as without it."""
    given = ["none" if i == 40 else "" for i in range(len(NAMES))]
    role = ["rare" if i == 40 else "" for i in range(len(NAMES))]
    source = splits.draw(make_source(given=given, role=role), SPLIT)
    assert source.manifest["image"].tolist() == NAMES
    found = places(source)
    assert found.pop(NAMES[40]) == ["none", "rare"]
    kept = [i for i in range(len(NAMES)) if i != 40]
    alone = make_source()
    alone = replace(alone, manifest=alone.manifest.iloc[kept].reset_index(drop=True), signatures=SIGNATURES[kept])
    assert found == places(splits.draw(alone, SPLIT))


def test_the_rows_of_a_public_benchmark_are_drawn_for_groups():
    """A photo's row is of another attribute than its copy's."""
    rows = [[0, 3, 7][i % 3] for i in range(len(NAMES))]
    source = splits.draw(make_source(row=rows), SPLIT)
    found = places(source)
    assert not straddling(found)
    train = source.manifest["split"] == "train"
    assert (source.manifest["row"] == np.where(train, -1, rows)).all()
    assert len(set(map(tuple, found.values()))) == 5


@pytest.mark.parametrize("count", range(1, 40))
def test_small_sets_have_a_query_and_a_candidate_in_valid_and_test(count):
    for seed in range(8):
        keys = [f"{seed} {i}" for i in range(count)] * 2
        found = assign_splits(keys, SPLIT)
        roles = assign_roles(keys, found, SPLIT.query)
        parts = set(zip(found.tolist(), roles.tolist(), strict=True))
        assert "train" in found
        if count >= 3:
            assert {"valid", "test"} <= set(found)
        if count >= 5:
            assert len(parts) == 5


def test_a_split_without_a_share_stays_empty():
    assert set(assign_splits(NAMES[:6], replace(SPLIT, valid=0.0))) == {"train", "test"}


def test_copies_of_photos_on_the_disk_are_found_while_they_are_packed(tiny_catalogue, tmp_path):
    """A catalogue in which every photo is saved twice, the second time as a PNG of another size."""

    def twice(rows):
        for row, path in zip(rows[1:61], tiny_catalogue.photos, strict=True):
            image = photo(int(path.stem))
            image.save(path, quality=90)
            image.resize((90, 120), Image.Resampling.BICUBIC).save(path.with_name(f"{path.stem}-copy.png"))
            rows.append([f"photos/{path.stem}-copy.png", *row[1:]])

    tiny_catalogue.change(twice)
    images = replace(SETTINGS.images, height=16, width=16, format="raw")
    packed = pack.pack(catalogue.read(tiny_catalogue.settings, 0.0), tmp_path / "prepared", images, 1)
    source = splits.draw(packed, tiny_catalogue.split)
    found = places(source)
    assert all(found[f"photos/{i:02}.jpg"] == found[f"photos/{i:02}-copy.png"] for i in range(60))
    assert "120 of 120 photos have identical or near-identical ones (groups: 60), each in one split" in source.notes[0]
