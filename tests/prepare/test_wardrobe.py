"""The drawn benchmark: what is promised of images, labels and hidden factors."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

from m3lib.config import Split, Wardrobe
from m3lib.data.manifest import check_source, known_attributes, multi_hot
from m3lib.prepare import wardrobe
from m3lib.prepare.wardrobe import garments, multi_track, patterns

SPLIT = Split(valid=0.1, test=0.2, query=0.2)
TRACKS = ("multi", "single", "partial")


def source(track, images=1500, seed=0, size=64):
    return wardrobe.read(Wardrobe(track=track, images=images, size=size, seed=seed), SPLIT)


@pytest.fixture(scope="module")
def sources():
    return {track: source(track, 3000 if track == "partial" else 1500) for track in TRACKS}


def hot_of(read):
    return multi_hot(read.manifest["labels"].tolist(), read.taxonomy.num_classes)


def picture(garment, size=64):
    return garments.draw(garment, size, np.random.default_rng(3)).astype(int)


def changed(before, after):
    """The share of pixels that differ clearly."""
    return float((np.abs(picture(before) - picture(after)).max(axis=2) > 40).mean())


@pytest.mark.parametrize("track", TRACKS)
def test_a_row_is_the_same_in_any_order_and_any_number(track):
    few, many = source(track, images=20), source(track, images=60)
    shown = {row: few.load(row) for row in (7, 3)}
    for row in (3, 7):
        np.testing.assert_array_equal(shown[row], many.load(row))
    assert few.manifest.equals(many.manifest.head(20))


def test_worker_processes_draw_the_same(sources):
    load = sources["multi"].load
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(load, 11).result(), load(11))


def test_seeds_and_rows_and_tracks_differ():
    seen = [source(track, 20, seed).load(row) for track, seed, row in [*((t, 0, 1) for t in TRACKS), ("multi", 1, 1)]]
    seen.append(source("multi", 20).load(2))
    assert len({image.tobytes() for image in seen}) == len(seen)
    assert source("multi", 20).manifest["labels"].tolist() != source("multi", 20, 1).manifest["labels"].tolist()


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("size", [32, 96])
def test_pictures_are_square_rgb_bytes_with_content(track, size):
    load = source(track, 20, size=size).load
    for row in range(6):
        image = load(row)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.std() > 15


@pytest.mark.parametrize("track", TRACKS)
def test_every_description_can_be_drawn(track):
    for row in range(800 if track == "partial" else 200):
        drawing = garments.svg(wardrobe.describe(track, 0, row)[0], np.random.default_rng(row))
        assert drawing.endswith("</svg>")
        assert "nan" not in drawing


@pytest.mark.parametrize("track", TRACKS)
def test_manifest_is_complete(track, sources):
    manifest, taxonomy = sources[track].manifest, sources[track].taxonomy
    assert manifest["image"].is_unique
    assert manifest["image"][5] == f"{track}-000005"
    for ids in manifest["labels"]:
        assert ids == sorted(set(ids))
        assert all(0 <= id_ < taxonomy.num_classes for id_ in ids)
    check_source(sources[track])


@pytest.mark.parametrize("track", TRACKS)
def test_hidden_factors_are_finite_and_vary(track, sources):
    factors = sources[track].manifest.filter(like="factor_")
    assert len(factors.columns) >= 12
    assert np.isfinite(factors.to_numpy()).all()
    assert (factors.nunique() > 30).all()


@pytest.mark.parametrize("track", TRACKS)
def test_splits_follow_the_hash_of_the_name(track, sources):
    manifest = sources[track].manifest
    other = source(track, images=200, seed=5).manifest
    assert other[["image", "split", "role"]].equals(manifest[["image", "split", "role"]].head(200))
    shares = manifest["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.04)
    assert shares["valid"] == pytest.approx(0.1, abs=0.03)


def test_single_has_exactly_one_class_of_each_attribute(sources):
    read = sources["single"]
    counts = np.add.reduceat(hot_of(read), read.taxonomy.offsets[:-1], axis=1, dtype=int)
    assert read.taxonomy.num_attributes == 9
    assert (counts == 1).all()


def test_partial_knows_one_attribute_of_each_image(sources):
    read = sources["partial"]
    hot = hot_of(read)
    assert read.taxonomy.num_attributes == 8
    assert all(attribute.classes[0] == "invisible" for attribute in read.taxonomy.attributes)
    assert (hot.sum(axis=1) == 1).all()
    assert (known_attributes(hot, read.taxonomy).mean(axis=0) > 0.06).all()


def test_multi_has_many_classes_none_dominant_and_a_long_tail(sources):
    read = sources["multi"]
    hot, taxonomy = hot_of(read), read.taxonomy
    assert taxonomy.names == ["texture", "fabric", "shape", "part", "style"]
    assert all(attribute.multi and len(attribute.classes) >= 20 for attribute in taxonomy.attributes)
    known = known_attributes(hot, taxonomy)
    assert (known.mean(axis=0) > 0.6).all()
    for n in range(taxonomy.num_attributes):
        shares = hot[known[:, n]][:, taxonomy.classes_of(n)].mean(axis=0)
        assert 0 < shares.min() < 0.04
        assert shares.max() < 0.3
        assert shares.max() > 3 * shares.min()
        assert (shares**2).sum() / shares.sum() < 0.15  # precision of a random ranking


def test_labels_are_true_and_a_modest_share_is_dropped(sources):
    read = sources["multi"]
    kept = total = 0
    for row in range(300):
        truth = wardrobe.describe("multi", 0, row)[1]
        true = {read.taxonomy.class_id(attribute, class_) for attribute, names in truth.items() for class_ in names}
        assert set(read.manifest["labels"][row]) <= true
        kept, total = kept + len(read.manifest["labels"][row]), total + len(true)
    assert kept / total == pytest.approx(wardrobe.KEEP, abs=0.04)


def test_styles_arise_from_their_combination_and_from_nothing_else():
    seen = set()
    for row in range(600):
        garment, truth, _ = wardrobe.describe("multi", 0, row)
        marks = {name for attribute, names in truth.items() if attribute != "style" for name in names}
        marks |= {"@blue"} if 0.55 <= garment.hue <= 0.69 else set()
        marks |= {"@dark"} if garment.lightness < 0.25 else set()
        marks |= set() if truth["part"] else {"@no part"}
        expected = {s for s, groups in multi_track.STYLES.items() if all(set(g.split("|")) & marks for g in groups)}
        assert set(truth["style"]) == expected
        seen |= expected
    assert seen == set(multi_track.STYLES)


def test_style_rules_name_known_classes():
    taxonomy = wardrobe.taxonomy_of("multi")
    classes = {class_ for attribute in taxonomy.attributes for class_ in attribute.classes}
    for groups in multi_track.STYLES.values():
        assert {name for group in groups for name in group.split("|") if name[0] != "@"} <= classes


def test_what_is_labelled_is_what_is_drawn():
    for row in range(300):
        garment, truth, _ = wardrobe.describe("multi", 0, row)
        assert garment.texture in truth["texture"]
        assert truth["fabric"] == [garment.fabric]
        cut = garment.lower_shape if garment.worn == "lower" else garment.shape
        assert cut in truth["shape"]
        assert ("hood" in truth["part"]) == (garment.collar == "hood")
        assert ("bell sleeve" in truth["part"]) == (garment.sleeve == "bell")


@pytest.mark.parametrize(
    "change",
    [
        {"sleeve_length": 0.8},
        {"sleeve": "bell", "sleeve_length": 0.7},
        {"hem": 90.0},
        {"hue": 0.1},
        {"lightness": 0.8},
        {"neckline": "deep v"},
        {"collar": "notched lapel"},
        {"shape": "fit and flare"},
        {"details": ("belt",)},
        {"buttons": "row"},
        {"open_front": True},
        {"lower": "skirt", "lower_shape": "a-line", "lower_hem": 90.0, "worn": "both"},
        {"crop": "upper"},
        {"turn": 8.0},
        {"arm": 40.0},
    ],
    ids=lambda change: ", ".join(change),
)
def test_a_changed_factor_changes_the_picture(change):
    plain = garments.Garment(sleeve_length=0.3, hem=70.0)
    assert changed(plain, plain) == 0
    assert changed(plain, replace(plain, **change)) > 0.006


def test_every_print_and_fabric_looks_different():
    plain = garments.Garment(hem=70.0, lightness=0.6)
    looks = [replace(plain, texture=name) for name in patterns.TEXTURES]
    looks += [replace(plain, fabric=name) for name in patterns.FABRICS if name != "cotton"]
    pictures = np.stack([picture(look) for look in looks]).reshape(len(looks), -1)
    apart = np.abs(pictures[:, None] - pictures[None]).mean(axis=2) + 99 * np.eye(len(looks))
    assert apart.min() > 1


@pytest.mark.parametrize(
    ("factor", "names"),
    [
        ("shape", garments.SHAPES),
        ("sleeve", garments.SLEEVES),
        ("collar", patterns.COLLARS),
        ("buttons", patterns.BUTTONS),
        ("neckline", ["crew", *wardrobe.PARTIAL["neckline design"].values()]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_form_looks_different(factor, names):
    plain = garments.Garment(hem=90.0, sleeve_length=0.7, lightness=0.6)
    pictures = [picture(replace(plain, **{factor: name})) for name in names]
    for row, one in enumerate(pictures):
        for other in pictures[:row]:
            assert (np.abs(one - other).max(axis=2) > 40).mean() > 0.001


def test_a_print_changes_the_garment_alone():
    plain = garments.Garment(hem=70.0)
    difference = np.abs(picture(plain) - picture(replace(plain, texture="polka dot"))).max(axis=2) > 40
    assert difference[24:56, 24:40].mean() > 0.1
    assert difference[:, :6].mean() == 0


def test_labelled_buttons_are_drawn():
    for row in range(600):
        garment, truth, _ = wardrobe.describe("single", 0, row)
        marks = [
            garments.svg(look, np.random.default_rng(row)).count('stroke-width=".6"')
            for look in (garment, replace(garment, buttons=""))
        ]
        assert (marks[0] > marks[1]) == (truth["button"] != ["no button"])


@pytest.mark.parametrize("class_", wardrobe.PARTIAL["sleeve length"])
def test_partial_draws_the_sleeve_it_names(class_):
    rows = [wardrobe.describe("partial", 0, row) for row in range(1500)]
    low, high = wardrobe.PARTIAL["sleeve length"][class_]
    drawn = [garment.sleeve_length for garment, truth, _ in rows if truth == {"sleeve length": [class_]}]
    assert drawn
    assert all(low <= length <= high for length in drawn)
