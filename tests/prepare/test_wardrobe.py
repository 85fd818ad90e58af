"""The drawn benchmark: its images, labels and hidden factors are reproducible, correct and varied."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations
from multiprocessing import get_context

import numpy as np
import pytest

from m3lib.config import Split, Wardrobe
from m3lib.data.manifest import check_source, known_attributes, multi_hot
from m3lib.prepare import splits, wardrobe
from m3lib.prepare.wardrobe import multi_track, partial_track, patterns, trims
from m3lib.prepare.wardrobe.garments import SHAPES, SLEEVES, Garment
from m3lib.prepare.wardrobe.rendering import render, to_svg

SPLIT = Split(valid=0.1, test=0.2, query=0.2, group_duplicates=True, seed=0)
TRACKS = ("multi", "single", "partial")
CHANGES = [
    {"sleeve_length": 0.8}, {"sleeve": "bell", "sleeve_length": 0.7}, {"hem": 90.0}, {"hue": 0.1}, {"lightness": 0.8},
    {"neckline": "deep v"}, {"collar": "notched lapel"}, {"shape": "fit and flare"}, {"details": ("belt",)},
    {"buttons": "row"}, {"open_front": True}, {"crop": "upper"}, {"turn": 8.0}, {"arm": 40.0},
    {"lower": "skirt", "lower_shape": "a-line", "lower_hem": 90.0, "worn": "both"},
]  # fmt: skip
FORMS = {
    "shape": SHAPES, "sleeve": SLEEVES, "collar": ["", *trims.COLLARS], "buttons": ["", *trims.BUTTONS],
    "neckline": ["crew", *partial_track.DRAWN_AS["neckline design"].values()],
}  # fmt: skip


def read(track, images=1500, seed=0, size=64):
    return splits.draw(wardrobe.read(Wardrobe(track=track, images=images, size=size, seed=seed)), SPLIT)


@pytest.fixture(scope="module")
def sources():
    return {track: read(track, 3000 if track == "partial" else 1500) for track in TRACKS}


def multi_hot_of(source):
    return multi_hot(source.manifest["labels"].tolist(), source.taxonomy.num_classes)


def draw(garment):
    return render(garment, 64, np.random.default_rng(3)).astype(int)


def changed_pixels(before, after):
    """(64, 64) bool: which pixels differ clearly."""
    return np.abs(draw(before) - draw(after)).max(axis=2) > 40


@pytest.mark.parametrize("track", TRACKS)
def test_an_image_does_not_depend_on_the_number_of_images_or_their_order(track):
    few, many = read(track, images=20), read(track, images=60)
    images = {row: few.load(row) for row in (7, 3)}
    for row in (3, 7):
        np.testing.assert_array_equal(images[row], many.load(row))
    drawn = ["split", "role"]  # of so few images, each split gets some
    assert few.manifest.drop(columns=drawn).equals(many.manifest.head(20).drop(columns=drawn))


def test_worker_processes_draw_the_same_images(sources):
    load = sources["multi"].load
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(load, 11).result(), load(11))


def test_images_differ_between_tracks_seeds_and_rows():
    sampled = [*((track, 0, 1) for track in TRACKS), ("multi", 1, 1), ("multi", 0, 2)]
    images = {read(track, 20, seed).load(row).tobytes() for track, seed, row in sampled}
    assert len(images) == len(sampled)
    assert read("multi", 20).manifest["labels"].tolist() != read("multi", 20, 1).manifest["labels"].tolist()


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("size", [32, 96])
def test_images_are_square_uint8_rgb_with_content(track, size):
    load = read(track, 20, size=size).load
    for row in range(6):
        image = load(row)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.std() > 15


@pytest.mark.parametrize("track", TRACKS)
def test_every_garment_can_be_drawn(track):
    for row in range(800 if track == "partial" else 200):
        svg = to_svg(wardrobe.sample_image(track, 0, row)[0], np.random.default_rng(row))
        assert "nan" not in svg
        assert "{" not in svg


@pytest.mark.parametrize("track", TRACKS)
def test_manifest_is_valid_and_names_images_by_track_and_row(track, sources):
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
def test_splits_depend_on_the_name_only(track, sources):
    manifest = sources[track].manifest
    other = read(track, images=200, seed=5).manifest
    assert other[["image", "split", "role"]].equals(manifest[["image", "split", "role"]].head(200))
    shares = manifest["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.04)
    assert shares["valid"] == pytest.approx(0.1, abs=0.03)


def test_single_has_exactly_one_class_per_attribute(sources):
    taxonomy = sources["single"].taxonomy
    counts = np.add.reduceat(multi_hot_of(sources["single"]), taxonomy.offsets[:-1], axis=1, dtype=int)
    assert taxonomy.num_attributes == 9
    assert (counts == 1).all()


def test_partial_labels_one_attribute_per_image(sources):
    hot, taxonomy = multi_hot_of(sources["partial"]), sources["partial"].taxonomy
    assert taxonomy.num_attributes == 8
    assert all(attribute.classes[0] == "invisible" for attribute in taxonomy.attributes)
    assert (hot.sum(axis=1) == 1).all()
    assert (known_attributes(hot, taxonomy).mean(axis=0) > 0.06).all()


def test_multi_has_many_classes_with_a_long_tail_and_none_dominates(sources):
    hot, taxonomy = multi_hot_of(sources["multi"]), sources["multi"].taxonomy
    assert taxonomy.names == ["texture", "fabric", "shape", "part", "style"]
    assert all(attribute.multi and len(attribute.classes) >= 20 for attribute in taxonomy.attributes)
    known = known_attributes(hot, taxonomy)
    assert (known.mean(axis=0) > 0.6).all()
    for n in range(taxonomy.num_attributes):
        shares = hot[known[:, n]][:, taxonomy.classes_of(n)].mean(axis=0)
        assert 0 < shares.min() < 0.04
        assert 3 * shares.min() < shares.max() < 0.3
        assert (shares**2).sum() / shares.sum() < 0.15  # precision of a random ranking


def test_labels_are_true_and_15_percent_are_missing(sources):
    manifest, taxonomy = sources["multi"].manifest, sources["multi"].taxonomy
    written = total = 0
    for row in range(300):
        labels = wardrobe.sample_image("multi", 0, row)[1]
        true = {taxonomy.class_id(attribute, class_) for attribute, names in labels.items() for class_ in names}
        assert set(manifest["labels"][row]) <= true
        written, total = written + len(manifest["labels"][row]), total + len(true)
    assert written / total == pytest.approx(0.85, abs=0.04)


def test_an_image_has_exactly_the_styles_whose_combination_it_shows():
    seen = set()
    for row in range(600):
        garment, labels, _ = wardrobe.sample_image("multi", 0, row)
        marks = {name for attribute, names in labels.items() if attribute != "style" for name in names}
        marks |= {"@blue"} if 0.55 <= garment.hue <= 0.69 else set()
        marks |= {"@dark"} if garment.lightness < 0.25 else set()
        marks |= set() if labels["part"] else {"@no part"}
        expected = {s for s, groups in multi_track.STYLES.items() if all(set(g.split("|")) & marks for g in groups)}
        assert set(labels["style"]) == expected
        seen |= expected
    assert seen == set(multi_track.STYLES)


def test_styles_consist_of_existing_classes():
    taxonomy = wardrobe.taxonomy_of("multi")
    classes = {class_ for attribute in taxonomy.attributes for class_ in attribute.classes}
    for groups in multi_track.STYLES.values():
        assert {name for group in groups for name in group.split("|") if name[0] != "@"} <= classes


def test_labels_agree_with_the_garment():
    for row in range(300):
        garment, labels, _ = wardrobe.sample_image("multi", 0, row)
        assert garment.texture in labels["texture"]
        assert labels["fabric"] == [garment.fabric]
        cut = garment.lower_shape if garment.worn == "lower" else garment.shape
        assert cut in labels["shape"]
        assert ("hood" in labels["part"]) == (garment.collar == "hood")
        assert ("bell sleeve" in labels["part"]) == (garment.sleeve == "bell")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ", ".join(change))
def test_a_changed_factor_changes_the_image(change):
    plain = Garment(sleeve_length=0.3, hem=70.0)
    assert not changed_pixels(plain, plain).any()
    assert changed_pixels(plain, replace(plain, **change)).mean() > 0.006


def test_every_print_and_fabric_looks_different():
    plain = Garment(hem=70.0, lightness=0.6)
    garments = [replace(plain, texture=name) for name in patterns.TEXTURES]
    garments += [replace(plain, fabric=name) for name in patterns.FABRICS if name != "cotton"]
    for one, other in combinations([draw(garment) for garment in garments], 2):
        assert np.abs(one - other).mean() > 1


@pytest.mark.parametrize("field", FORMS)
def test_every_form_looks_different(field):
    plain = Garment(hem=90.0, sleeve_length=0.7, lightness=0.6)
    for one, other in combinations([draw(replace(plain, **{field: name})) for name in FORMS[field]], 2):
        assert (np.abs(one - other).max(axis=2) > 40).mean() > 0.001


def test_a_print_changes_nothing_but_the_garment():
    plain = Garment(hem=70.0)
    changed = changed_pixels(plain, replace(plain, texture="polka dot"))
    assert changed[24:56, 24:40].mean() > 0.1
    assert not changed[:, :6].any()


def test_labelled_buttons_are_drawn():
    for row in range(600):
        garment, labels, _ = wardrobe.sample_image("single", 0, row)
        svg, bare = (to_svg(look, np.random.default_rng(row)) for look in (garment, replace(garment, buttons="")))
        buttons = sum(svg.count(tag) - bare.count(tag) for tag in ("<circle", "<ellipse"))
        assert (buttons > 0) == (labels["button"] != ["no button"])


def test_partial_draws_the_sleeve_that_the_label_names():
    names = set()
    for row in range(1500):
        garment, labels, _ = wardrobe.sample_image("partial", 0, row)
        for name in set(labels.get("sleeve length", [])) - {"invisible"}:
            low, high = partial_track.DRAWN_AS["sleeve length"][name]
            assert low <= garment.sleeve_length <= high
            names.add(name)
    assert names == set(partial_track.DRAWN_AS["sleeve length"])
