"""The readers on the split files that all published rows use: their counts, their labels, and what chance scores."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from m3lib.analysis.significance import query_images
from m3lib.data.manifest import Prepared, multi_hot
from m3lib.errors import InputError
from m3lib.prepare import asen_split, darn, deepfashion, fashionai
from m3lib.prepare.asen_split import by_photo
from m3lib.prepare.public import Annotations, check_row
from m3lib.prepare.splits import with_protocol
from m3lib.retrieval import metrics, ranking
from m3lib.taxonomy import Taxonomy
from tiny import ROOT

SPLITS = ROOT.parent / "shared/splits"
pytestmark = pytest.mark.skipif(not SPLITS.is_dir(), reason=f"the released split files are not at {SPLITS}")

QUERIES = {
    "fashionai": [422, 623, 535, 422, 341, 289, 703, 265],
    "darn": [476, 448, 491, 448, 463, 533, 509, 483, 442],
    "deepfashion": [1008, 1483, 1097, 1022, 915],
}
CANDIDATES = {
    "fashionai": [1703, 2383, 2088, 1722, 1401, 1269, 2734, 1100],
    "darn": [1886, 1897, 1901, 1884, 2004, 2003, 1890, 1836, 1867],
    "deepfashion": [4271, 5914, 4364, 4030, 3521],
}
IMAGES = {"fashionai": 18_000, "darn": 21_461, "deepfashion": 27_625}
UNANSWERED = {"fashionai": 0, "darn": 3, "deepfashion": 23}
SETS = list(QUERIES)
PAIRS, PAIR_CANDIDATES = [3725, 5344, 3728, 3435, 2991], [8802, 12208, 10484, 9177, 8648]

# Percent: mean of R / C overall and by attribute, chance's Recall@100, and the highest Recall@100 that can be
CHANCE = {
    ("fashionai", "row"): (15.47, [16.86, 12.23, 13.05, 17.11, 21.98, 21.21, 10.85, 20.73], 5.50, 37.36),
    ("darn", "row"): (31.00, [5.12, 23.17, 10.21, 29.64, 43.07, 38.54, 14.90, 61.88, 54.36], 5.24, 41.78),
    ("deepfashion", "row"): (3.21, [6.52, 2.56, 3.05, 2.36, 1.75], 2.27, 77.26),
    ("deepfashion", "pair"): (5.32, [11.44, 4.31, 4.17, 4.01, 2.47], 1.01, 48.57),
    ("deepfashion", "any"): (7.75, None, None, 36.87),
}


@dataclass(frozen=True)
class Test:
    """The test part of a set: its taxonomy, its rows, all labels of each photo, and a frame as a source has it."""

    __test__ = False
    taxonomy: Taxonomy
    rows: pd.DataFrame
    known: Annotations

    @property
    def frame(self) -> pd.DataFrame:
        labels = self.known.labels or {name: [m] for name, m in zip(self.rows["image"], self.rows["row"], strict=True)}
        return self.rows.assign(split="test", labels=[labels[name] for name in self.rows["image"]])

    def prepared(self, protocol: str, every: int = 1) -> Prepared:
        """every: of the queries, one in so many is kept."""
        frame = with_protocol(self.frame, protocol)
        asks = (frame["role"] == "query").to_numpy()
        frame = frame[~asks | (np.cumsum(asks) % every == 0)].reset_index(drop=True)
        pictures = np.zeros((len(frame), 1, 1, 3), np.uint8)
        return Prepared(self.taxonomy, frame, pictures, "any" if protocol == "any" else "pair")

    def count(self, role: str) -> list[int]:
        rows = self.rows["row"][self.rows["role"] == role]
        return np.bincount(self.taxonomy.attribute_of_class[rows], minlength=self.taxonomy.num_attributes).tolist()


def official_names():
    """Photo by line of the filenames, and its (type, id) pairs, by hand."""
    names = (SPLITS / "deepfashion/filenames_test.txt").read_text().split()
    lines = (SPLITS / "deepfashion/label_test.txt").read_text().splitlines()
    numbers = [list(map(int, line.split())) for line in lines]
    assert [row[0] for row in numbers] == list(range(len(names)))
    return names, [list(zip(row[1::2], row[2::2], strict=True)) for row in numbers]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A list_attr_cloth.txt and list_attr_img.txt of the test photos, as they would be downloaded."""
    folder = tmp_path_factory.mktemp("deepfashion")
    names, pairs = official_names()
    kinds = {class_id: kind for own in pairs for kind, class_id in own}
    assert sorted(kinds) == list(range(1000))
    rows = [f"no. {class_id} of all{kinds[class_id]:>20}" for class_id in range(1000)]
    (folder / "list_attr_cloth.txt").write_text("\n".join(["1000", "attribute_name  attribute_type", *rows, ""]))
    absent = np.tile(np.frombuffer(b"-1 ", np.uint8), (1000, 1))
    with (folder / "list_attr_img.txt").open("wb") as file:
        file.write(f"{len(names)}\nimage_name  attribute_labels\n".encode())
        for name, own in zip(names, pairs, strict=True):
            values = absent.copy()
            values[[class_id for _, class_id in own], 0] = ord(" ")
            file.write(f"{name:<70} ".encode() + values.tobytes() + b"\n")
    yield folder
    (folder / "list_attr_img.txt").unlink()  # 80 MB


@pytest.fixture(scope="module")
def tests(official):
    """Each set's test part."""
    taxonomy, class_ids = deepfashion.read_classes(official / "list_attr_cloth.txt")
    labels, notes = by_photo(deepfashion.read_labels(official / "list_attr_img.txt", class_ids), "list_attr_img.txt")
    assert not notes
    known = {
        "fashionai": Annotations(fashionai.TAXONOMY, None),
        "darn": Annotations(darn.TAXONOMY, None),
        "deepfashion": Annotations(taxonomy, labels, file="list_attr_img.txt"),
    }
    return {
        name: Test(own.taxonomy, asen_split.read_held_out(SPLITS / name, "test", own.taxonomy)[0], own)
        for name, own in known.items()
    }


# counts


@pytest.mark.parametrize("name", SETS)
def test_queries_and_candidates(tests, name):
    test = tests[name]
    assert test.count("query") == QUERIES[name]
    assert test.count("candidate") == CANDIDATES[name]
    assert len(test.rows) == test.rows["image"].nunique() == IMAGES[name]
    relevant, _ = answers(test.prepared("row"))
    assert [len(counts) for counts in relevant] == QUERIES[name]
    assert sum(np.count_nonzero(counts == 0) for counts in relevant) == UNANSWERED[name]


def test_deepfashion_as_image_class_pairs(tests):
    assert [len(a.classes) for a in tests["deepfashion"].taxonomy.attributes] == [156, 218, 180, 216, 230]
    relevant, sizes = answers(tests["deepfashion"].prepared("pair"))
    assert [len(counts) for counts in relevant] == PAIRS
    assert sizes == PAIR_CANDIDATES
    assert sum(np.count_nonzero(counts == 0) for counts in relevant) == 2


def open_lines(name: str, file: str) -> list[str]:
    return (SPLITS / name / file).read_text().splitlines()


# labels


def test_fashionai_rows_agree_with_the_table(tests):
    path = SPLITS / "fashionai/label_test.csv"
    labels, notes = by_photo(fashionai.read_labels(path), path.name)
    part = tests["fashionai"].rows
    assert not notes
    assert labels == {name.split("/", 1)[1]: [m] for name, m in zip(part["image"], part["row"], strict=True)}


def test_every_train_label_of_fashionai_is_read():
    rows = asen_split.read_rows(SPLITS / "fashionai/label_train.txt", 144_335, fashionai.TAXONOMY)
    labels = [ids for _, ids in rows.values()]
    assert len(labels) == 144_335
    assert all(len(ids) == 1 for ids in labels)
    counts = np.bincount([ids[0] for ids in labels], minlength=fashionai.TAXONOMY.num_classes)
    by_attribute = np.add.reduceat(counts, fashionai.TAXONOMY.offsets[:-1])
    assert by_attribute.tolist() == [17428, 24546, 20563, 17199, 13961, 12782, 26770, 11086]
    assert fashionai.TAXONOMY.full_name(int(counts.argmin())) == "sleeve length: Invisible"
    assert counts.min() == 359


def test_deepfashion_labels_are_those_of_the_file(tests):
    test = tests["deepfashion"]
    for name, pairs in zip(*official_names(), strict=True):
        labels = [
            (test.taxonomy.attribute_of_class[m] + 1, test.taxonomy.class_name(m)) for m in test.known.labels[name]
        ]
        assert sorted(labels) == sorted((kind, f"no. {class_id} of all") for kind, class_id in pairs)
    assert sum(map(len, test.known.labels.values())) == 95_891


def test_deepfashion_rows_agree_with_the_labels(tests):
    test = tests["deepfashion"]
    ids = [[] for _ in range(5)]  # of each type, rising
    _, pairs = official_names()
    for kind, class_id in sorted({pair for own in pairs for pair in own}):
        ids[kind - 1].append(class_id)
    for role in asen_split.ROLES:
        for line in open_lines("deepfashion", f"{role}_test.txt"):
            index, attribute, value = map(int, line.split())
            assert (attribute + 1, ids[attribute][value]) in pairs[index]
    for name, m in zip(test.rows["image"], test.rows["row"], strict=True):
        check_row(test.known, name, m, "here")
    wrong = next(m for m in range(1000) if m not in test.known.labels[name])
    with pytest.raises(InputError, match=r"here: .* in list_attr_img\.txt"):
        check_row(test.known, name, wrong, "here")


# chance


def answers(prepared: Prepared) -> tuple[list[np.ndarray], list[int]]:
    """Of each attribute, by counting alone: R of every query, and the number of candidates."""
    hot = multi_hot(prepared.manifest["labels"].tolist(), prepared.taxonomy.num_classes)
    asks = (prepared.manifest["role"] == "query").to_numpy()
    relevant, sizes = [], []
    for n in range(prepared.taxonomy.num_attributes):
        own = hot[:, prepared.taxonomy.classes_of(n)]
        known = own.any(axis=1)
        query, candidate = own[asks & known], own[~asks & known]
        if prepared.relevance == "any":
            kinds, counts = np.unique(candidate, axis=0, return_counts=True)  # far fewer than candidates
            shared = query.astype(np.float32) @ kinds.astype(np.float32).T > 0
            relevant.append(shared @ counts)
        else:
            relevant.append(candidate.sum(axis=0)[np.nonzero(query)[1]])
        sizes.append(len(candidate))
    return relevant, sizes


@pytest.mark.parametrize(("name", "protocol"), CHANCE)
def test_mean_share_of_right_candidates(tests, name, protocol):
    overall, attributes, recall, ceiling = CHANCE[name, protocol]
    relevant, sizes = answers(tests[name].prepared(protocol))
    shares = [own / size for own, size in zip(relevant, sizes, strict=True)]
    assert 100 * np.concatenate(shares).mean() == pytest.approx(overall, abs=0.01)
    if attributes:
        assert [100 * own.mean() for own in shares] == pytest.approx(attributes, abs=0.01)
    if recall:
        found = [np.full(len(own), 100 / size) for own, size in zip(relevant, sizes, strict=True)]  # where R = 0 too
        assert 100 * np.concatenate(found).mean() == pytest.approx(recall, abs=0.01)
    R = np.concatenate(relevant)
    assert 100 * np.mean(np.minimum(R, 100) / np.maximum(R, 1)) == pytest.approx(ceiling, abs=0.01)


# One query in so many, for the time it takes
EVERY = {("deepfashion", "row"): 3, ("deepfashion", "pair"): 12, ("deepfashion", "any"): 20}


@pytest.mark.parametrize(("name", "protocol"), CHANCE)
def test_a_random_ranking_scores_like_chance(tests, name, protocol):
    """Within four standard errors of what is expected of each query, and near the stated recall."""
    prepared = tests[name].prepared(protocol, EVERY.get((name, protocol), 1))
    relevant, sizes = answers(prepared)
    scores = ranking.evaluate(prepared, "test", "random", seed=3)
    assert list(scores) == prepared.taxonomy.names
    for own, R in zip(scores.values(), relevant, strict=True):
        assert own.relevant.tolist() == R.tolist()
    chance = np.concatenate([metrics.expected_random_ap(R, C) for R, C in zip(relevant, sizes, strict=True)])
    hits = np.concatenate([100 / C * (R > 0) for R, C in zip(relevant, sizes, strict=True)])
    groups = query_images(prepared, "test", scores)
    for values, expected in (("ap_all", chance), ("recall_100", hits)):
        excess = np.concatenate([getattr(own, values) for own in scores.values()]) - expected
        assert abs(excess.mean()) < 4 * standard_error(excess, groups)
    recall = CHANCE[name, protocol][2]
    if recall:
        found = np.concatenate([own.recall_100 for own in scores.values()])
        assert abs(100 * found.mean() - recall) < 0.01 + 400 * standard_error(found, groups)


def standard_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Of the mean; the pairs of one image share a ranking, so they count together."""
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, values - values.mean())
    return float(np.sqrt((sums**2).sum()) / len(values))
