"""Splits that no reshuffling moves, labels against loops, and a prepared folder that is whole or refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from m3lib.config import Split
from m3lib.data import manifest
from m3lib.data.manifest import LABELLED, SUBSETS, Source
from m3lib.errors import InputError
from tiny import TAXONOMY, make_prepared, random_labels

SPLIT = Split(valid=0.1, test=0.25, query=0.2, group_duplicates=True, seed=0)
KEYS = [f"photo {i}.jpg" for i in range(6000)]


def no_picture(i: int) -> np.ndarray:
    raise AssertionError("nothing here looks at pictures")


def make_source(labels: np.ndarray) -> Source:
    parts = [LABELLED[i % len(LABELLED)] for i in range(len(labels))]
    return Source(TAXONOMY, make_prepared(labels, parts).manifest, no_picture)


def full_labels(size: int = 30, seed: int = 0) -> np.ndarray:
    return random_labels("multi", size, np.random.default_rng(seed))


def test_the_hash_is_the_same_on_every_machine():
    assert manifest.unit_hash(["photos/01.jpg"], "split").tolist() == [0.4884003768205723]
    assert manifest.unit_hash(["photos/01.jpg"], "role") != manifest.unit_hash(["photos/01.jpg"], "split")


def test_splits_and_roles_depend_on_a_rows_own_key_alone():
    splits = manifest.assign_splits(KEYS, SPLIT)
    roles = manifest.assign_roles(KEYS, splits, SPLIT.query)
    chosen = np.random.default_rng(0).permutation(len(KEYS))[:500]
    some = [KEYS[i] for i in chosen]
    assert manifest.assign_splits(some, SPLIT).tolist() == splits[chosen].tolist()
    assert manifest.assign_roles(some, splits[chosen], SPLIT.query).tolist() == roles[chosen].tolist()


def assert_share(found: np.ndarray, share: float) -> None:
    """Within four standard errors of a binomial."""
    assert abs(found.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(found))


def test_shares_are_those_asked_for():
    splits = manifest.assign_splits(KEYS, SPLIT)
    for name, share in [("valid", 0.1), ("test", 0.25), ("train", 0.65)]:
        assert_share(splits == name, share)
    roles = manifest.assign_roles(KEYS, splits, SPLIT.query)
    for name in ("valid", "test"):
        assert_share(roles[splits == name] == "query", 0.2)
    assert set(zip(splits.tolist(), roles.tolist(), strict=True)) == set(LABELLED)
    assert (manifest.assign_roles(KEYS, splits, 1.0) == np.where(splits == "train", "", "both")).all()


def test_another_seed_draws_other_splits_and_roles():
    splits = manifest.assign_splits(KEYS, SPLIT)
    other = manifest.assign_splits(KEYS, replace(SPLIT, seed=1))
    both_test = (splits == "test") & (other == "test")
    assert_share(both_test, 0.25**2)  # as two independent draws
    test = np.full(len(KEYS), "test", dtype=object)
    query, again = (manifest.assign_roles(KEYS, test, 0.2, seed) == "query" for seed in (0, 1))
    assert_share(query & again, 0.2**2)


@pytest.mark.parametrize("kind", ["single", "multi", "partial"])
def test_labels_against_a_loop(kind):
    labels = random_labels(kind, 40, np.random.default_rng(1))
    lists = [[m for m in range(TAXONOMY.num_classes) if row[m]] for row in labels]
    assert np.array_equal(manifest.multi_hot(lists, TAXONOMY.num_classes), labels)
    known = manifest.known_attributes(labels, TAXONOMY)
    for row, ids in enumerate(lists):
        owners = {int(TAXONOMY.attribute_of_class[m]) for m in ids}
        assert [n for n in range(TAXONOMY.num_attributes) if known[row, n]] == sorted(owners)


HELD_OUT = {"colour: green": 1, "details: hood": 6, "sleeve: long": 7}


@pytest.mark.parametrize("names", [list(HELD_OUT)[:1], list(HELD_OUT), list(HELD_OUT)[::-1]])
def test_held_out_classes_leave_train_and_valid_and_stay_in_test(names):
    labels = random_labels("partial", 50, np.random.default_rng(4))
    prepared = make_prepared(labels, [LABELLED[i % len(LABELLED)] for i in range(50)])
    found = manifest.hold_out(prepared, names)
    expected = labels.copy()
    for i, split in enumerate(prepared.manifest["split"]):
        for name in names:
            if split != "test":
                expected[i, HELD_OUT[name]] = False
    assert (expected != labels).sum() > 5
    assert np.array_equal(found.labels, expected)
    assert np.array_equal(prepared.labels, labels)  # what was given is left as it was
    others = ["image", "split", "role"]
    pd.testing.assert_frame_equal(found.manifest[others], prepared.manifest[others])
    assert found.images is prepared.images
    assert found.taxonomy is prepared.taxonomy


def test_holding_nothing_out_changes_nothing():
    prepared = make_prepared(full_labels(5), [("train", "")] * 5)
    assert manifest.hold_out(prepared, []) is prepared


@pytest.mark.parametrize(
    ("name", "words"), [("colour: gren", "'green'"), ("green", "attribute 'green'"), (3, "attribute")]
)
def test_an_unknown_class_to_hold_out_is_named(name, words):
    with pytest.raises(InputError, match=words):
        manifest.hold_out(make_prepared(full_labels(3), [("train", "")] * 3), ["sleeve: long", name])


def prepared_folder(folder, source: Source, images: np.ndarray) -> None:
    manifest.save(source, folder)
    np.save(folder / "images.npy", images)


def test_save_and_open_give_the_same(tmp_path):
    labels = full_labels()
    source = make_source(labels)
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), np.uint8)
    prepared_folder(tmp_path, source, images)
    found = manifest.open_prepared(tmp_path)
    assert found.taxonomy == TAXONOMY
    assert found.manifest["labels"].map(list).tolist() == source.manifest["labels"].tolist()
    columns = ["image", "split", "role"]
    pd.testing.assert_frame_equal(found.manifest[columns], source.manifest[columns], check_dtype=False)
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.images, images)
    assert not found.images.flags.writeable


def test_rows_of_a_split_and_of_a_role():
    parts = [SUBSETS[i] for i in np.random.default_rng(0).integers(0, len(SUBSETS), 60)]
    prepared = make_prepared(full_labels(60), parts)
    for split, role in SUBSETS:
        wanted = {(split, role)} | ({(split, "both")} if role in ("query", "candidate") else set())
        assert prepared.rows(split, role).tolist() == [i for i, part in enumerate(parts) if part in wanted]
        assert prepared.rows(split).tolist() == [i for i, part in enumerate(parts) if part[0] == split]


NEEDED = [("train", ""), ("test", "query"), ("test", "candidate")]


def without_labels(source: Source, *parts: tuple[str, str], least: int = 0) -> Source:
    """The source without the labels of its images in these parts, from class `least` on."""
    emptied = source.manifest.copy()
    own = [pair in parts for pair in zip(emptied["split"], emptied["role"], strict=True)]
    emptied.loc[own, "labels"] = emptied.loc[own, "labels"].map(lambda ids: [m for m in ids if m < least])
    return replace(source, manifest=emptied)


@pytest.mark.parametrize("part", NEEDED, ids=" ".join)
def test_labels_that_allow_no_training_or_no_evaluation_are_refused(tmp_path, part):
    source = replace(make_source(full_labels()), remedies={"role" if part[1] else part[0]: "more photos help"})
    with pytest.raises(InputError, match=f"no {' '.join(part).strip()} image has a label: more photos help"):
        manifest.save(without_labels(source, part), tmp_path)
    with pytest.raises(InputError, match=r"2 faults:\n  no train image .*\n  no test image .*"):
        manifest.save(without_labels(source, *LABELLED), tmp_path)
    assert not list(tmp_path.iterdir())


def test_unlabelled_and_rare_rows_are_saved_and_opened(tmp_path):
    labels = full_labels()
    labels[[3, 8]] = False
    parts = [LABELLED[i % len(LABELLED)] for i in range(30)]
    parts[3], parts[8] = ("none", "unlabelled"), ("none", "rare")
    source = Source(TAXONOMY, make_prepared(labels, parts).manifest, no_picture)
    prepared_folder(tmp_path, source, np.zeros((30, 4, 4, 3), np.uint8))
    found = manifest.open_prepared(tmp_path)
    assert found.rows("none").tolist() == [3, 8]
    assert found.rows("none", "rare").tolist() == [8]
    assert not set(np.concatenate([found.rows(split) for split in ("train", "valid", "test")])) & {3, 8}


@pytest.mark.parametrize("part", LABELLED, ids=" ".join)
def test_an_attribute_without_a_label_in_some_part_is_saved(tmp_path, part):
    """It can't be trained, validated or evaluated, but the others can."""
    manifest.save(without_labels(make_source(full_labels()), part, least=7), tmp_path)
    manifest.save(without_labels(make_source(full_labels()), ("valid", "query"), ("valid", "candidate")), tmp_path)


def test_a_store_of_another_length_is_refused(tmp_path):
    prepared_folder(tmp_path, make_source(full_labels()), np.zeros((29, 4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="don't match"):
        manifest.open_prepared(tmp_path)


def test_a_manifest_without_a_column_is_refused(tmp_path):
    source = make_source(full_labels())
    prepared_folder(tmp_path, source, np.zeros((30, 4, 4, 3), np.uint8))
    source.manifest.drop(columns="role").to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="no column 'role'"):
        manifest.open_prepared(tmp_path)


@pytest.mark.parametrize("name", ["taxonomy.json", "protocol.json", "manifest.parquet", "images.npy"])
@pytest.mark.parametrize("spoil", ["remove", "cut"])
def test_a_missing_or_cut_part_is_refused(tmp_path, name, spoil):
    prepared_folder(tmp_path, make_source(full_labels()), np.zeros((30, 4, 4, 3), np.uint8))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if spoil == "cut":
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"not a prepared data set .*dvc repro prepare"):
        manifest.open_prepared(tmp_path)
