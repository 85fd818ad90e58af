"""What `auto` means: whatever a source's block, the general settings and a preset set, the topmost value counts."""

import copy
from dataclasses import asdict

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3lib import config, layers
from m3lib.errors import InputError
from tiny import ROOT, VALUES

TEXT = (ROOT / "params.yaml").read_text()
SOURCES = ("wardrobe", "csv", "deepfashion", "fashionai", "darn")
VALID = {  # settings of every kind and section that a block may set: values of each
    ("images", "height"): st.integers(16, 1024),
    ("images", "fit"): st.sampled_from(["crop", "pad"]),
    ("split", "query"): st.floats(0, 1),
    ("split", "group_duplicates"): st.booleans(),
    ("model", "class_embedding"): st.integers(1, 999),
    ("loss", "margin"): st.floats(0, 99),
    ("train", "epochs"): st.integers(1, 999),
    ("train", "held_out"): st.lists(st.sampled_from(["a: b", "c: d"])),
    ("umap", "points"): st.integers(50, 999),
}


@st.composite
def layered(draw) -> tuple[dict, dict, tuple[str, str]]:
    """params.yaml, the values of one setting by layer, and the setting's section and key. Another source has another
    value, which must not count."""
    section, key = draw(st.sampled_from(list(VALID)))
    source, other = draw(st.permutations(SOURCES))[:2]
    by_layer = {"block": draw(VALID[section, key])}
    values = copy.deepcopy(VALUES) | {"source": source, "preset": "mini"}
    values[section][key] = "auto"
    for name, value in ((source, by_layer["block"]), (other, draw(VALID[section, key]))):
        values["sources"][name].setdefault(section, {})[key] = value
    for name in draw(st.sets(st.sampled_from(["general", "preset"]))):
        by_layer[name] = draw(VALID[section, key])
    if "general" in by_layer:
        values[section][key] = by_layer["general"]
    if "preset" in by_layer:
        values["presets"]["mini"][section] = {key: by_layer["preset"]}
    return values, by_layer, (section, key)


def expected(by_layer: dict) -> tuple[str, object]:
    """(layer, value) of the topmost layer: a preset over the general value over the block."""
    return next((name, by_layer[name]) for name in ("preset", "general", "block") if name in by_layer)


@settings(max_examples=200, deadline=None)
@given(layered())
def test_the_topmost_layer_wins_and_is_named(drawn):
    values, by_layer, (section, key) = drawn
    layer, value = expected(by_layer)
    before = copy.deepcopy(values)
    loaded = config.parse(values)
    assert getattr(getattr(loaded, section), key) == value
    assert values == before
    places = {"preset": "presets.mini", "general": "params.yaml", "block": f"sources.{values['source']}"}
    assert (f"{section}.{key}", value, places[layer]) in layers.origins(values, loaded)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SOURCES), st.integers(16, 1024), st.integers(1, 99))
def test_the_command_line_wins_over_the_block_of_every_source(tmp_path, source, width, epochs):
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    apply_overrides(path, [f"source={source}", f"images.width={width}", f"train.epochs={epochs}"])
    loaded, block = config.load(path), VALUES["sources"][source]
    assert (loaded.images.width, loaded.train.epochs) == (width, epochs)
    assert (loaded.images.height, loaded.images.fit) == (block["images"]["height"], block["images"]["fit"])
    assert {loaded.variant(row).train.epochs for row in loaded.variants} == {epochs}


def test_a_row_takes_over_the_value_of_the_source_unless_it_has_its_own():
    values = copy.deepcopy(VALUES) | {"source": "csv"}
    values["systems"]["m3"]["train"]["epochs"] = 31
    loaded = config.parse(values)
    epochs = {name: loaded.variant(name).train.epochs for name in ("m3", "m3_a", "modc")}
    assert epochs == {"m3": 31, "m3_a": 31, "modc": VALUES["sources"]["csv"]["train"]["epochs"]}


def test_an_auto_in_a_preset_is_the_sources_value():
    values = copy.deepcopy(VALUES) | {"source": "csv", "preset": "mini"}
    values["train"]["epochs"] = 31
    values["presets"]["mini"]["train"] = {"epochs": "auto"}
    loaded = config.parse(values)
    assert loaded.train.epochs == VALUES["sources"]["csv"]["train"]["epochs"]
    assert ("train.epochs", loaded.train.epochs, "sources.csv") in layers.origins(values, loaded)


def test_only_settings_that_depend_on_the_source_differ_between_sources():
    loaded = {source: asdict(config.parse(VALUES | {"source": source})) for source in SOURCES}
    general = {s: {k for k, v in VALUES[s].items() if v == "auto"} for s in layers.SOURCE_SECTIONS}
    general["train"].remove("precision")  # `auto` is its own value
    for source, values in loaded.items():
        for section in layers.SOURCE_SECTIONS:
            own = {key: values[section][key] for key in general[section]}
            assert own == VALUES["sources"][source].get(section, {})
            assert values[section] == VALUES[section] | own


def test_origins_of_some_sections_only():
    values = VALUES | {"source": "csv", "preset": "published"}
    found = layers.origins(values, config.parse(values), ("images", "split"))
    sizes = VALUES["presets"]["published"]["images"]
    assert sorted(found) == [
        ("images.fit", "pad", "sources.csv"),
        ("images.format", "jpeg", "presets.published"),
        ("images.height", sizes["height"], "presets.published"),
        ("images.width", sizes["width"], "presets.published"),
    ]


CSV = ("sources", "csv")
BAD = [
    (("source",), "cvs", "source: expected one of wardrobe, csv, deepfashion, fashionai, darn, got 'cvs'"),
    (("source",), ["csv"], "fashionai, darn, got ['csv']"),
    (("sources",), 3, "sources: expected a mapping of settings, got 3"),
    (("sources", "cvs"), {}, "sources.cvs: there is no such source; did you mean 'csv'?"),
    (CSV, None, "sources.csv: expected a mapping of settings, got None"),
    ((*CSV, "systems"), {}, "sources.csv.systems: a source may set images, split, model, loss, train, umap, not this"),
    ((*CSV, "train"), [], "sources.csv.train: expected a mapping of settings, got []"),
    ((*CSV, "train", "epoch"), 3, "sources.csv.train.epoch: there is no such setting; did you mean 'epochs'"),
    ((*CSV, "train", "epochs"), "six", "sources.csv.train.epochs: expected an integer, got 'six'"),
    ((*CSV, "train", "epochs"), 0, "sources.csv.train.epochs: must be at least 1, got 0"),
    ((*CSV, "train", "lr"), "1e-4", "sources.csv.train.lr: expected a number, got '1e-4' (YAML reads 1e-4 as text"),
    ((*CSV, "train", "epochs"), "auto", "sources.csv.train.epochs: expected an integer, got 'auto'"),
    (
        (*CSV, "train", "precision"),
        "fp32",
        "sources.csv.train.precision: a source can't set this, since auto is one of its own values",
    ),
    (
        ("umap", "points"),
        "auto",
        "umap.points: auto needs a value in sources.wardrobe; add umap.points there, or replace auto",
    ),
    (("sources", "wardrobe"), {}, "images.fit: auto needs a value in sources.wardrobe; add images.fit there"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), BAD, ids=lambda part: str(part)[:30])
def test_a_wrong_block_or_an_auto_without_a_value_is_named(tmp_path, path, value, sentence):
    """Also in the block of another source than this run's."""
    values = copy.deepcopy(VALUES)
    inside = values
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"^params\.yaml") as error:
        config.load(tmp_path / "params.yaml")
    assert sentence in str(error.value)


def test_all_faults_of_blocks_are_listed_at_once():
    values = copy.deepcopy(VALUES)
    values["sources"]["csv"]["images"] |= {"width": 5, "fit": "stretch"}
    values["sources"]["darn"]["umap"] = {"point": 3}
    with pytest.raises(InputError, match=r"params\.yaml has 3 faults") as error:
        config.parse(values)
    names = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert names == ["sources.csv.images.width", "sources.csv.images.fit", "sources.darn.umap.point"]


def test_each_auto_without_a_value_is_listed():
    values = copy.deepcopy(VALUES)
    values["sources"]["wardrobe"] = {"images": {"width": 96}}
    with pytest.raises(InputError) as error:
        config.parse(values)
    lines = str(error.value).splitlines()[1:]
    expected = ["images.height", "images.fit", "model.trainable", "train.epochs"]
    assert [line.split(":")[0].strip() for line in lines] == expected
