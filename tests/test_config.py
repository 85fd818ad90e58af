"""params.yaml: the repository's own loads, and whatever is wrong with one becomes one sentence naming the setting."""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from m3lib import compatibility, config
from m3lib.errors import InputError
from tiny import ROOT

VALUES = yaml.safe_load((ROOT / "params.yaml").read_text())
ABSENT = type("Absent", (), {"__repr__": lambda self: "absent"})()  # a name without an address: workers compare ids
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(scalars, scalars, max_size=2))


def paths(values: object, path: tuple = ()) -> Iterator[tuple]:
    """Where something stands in params.yaml: every key at every level, every item of every list."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def changed(path: tuple, value: object) -> dict:
    """The repository's settings with one of them changed, added, or (ABSENT) taken away."""
    everything = copy.deepcopy(VALUES)
    parent = everything
    for key in path[:-1]:
        parent = parent[key]
    if value is ABSENT:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return everything


def load(folder: Path, values: object) -> config.Settings:
    text = values if isinstance(values, str) else yaml.safe_dump(values, allow_unicode=True)
    (folder / "params.yaml").write_text(text)
    return config.load(folder / "params.yaml")


def test_the_repositorys_params_load_with_every_value():
    found = config.load(ROOT / "params.yaml")
    assert asdict(found) == VALUES
    assert VALUES["preset"] == "none"
    for name in found.systems:
        compatibility.check_variant(found.variant(name))


@pytest.mark.parametrize("preset", list(VALUES["presets"]))
def test_a_preset_changes_what_it_lists_and_nothing_else(preset):
    found = asdict(config.build(config.Settings, config.with_preset(VALUES | {"preset": preset}), ""))
    expected = copy.deepcopy(VALUES) | {"preset": preset}
    for section, changes in VALUES["presets"][preset].items():
        for key, value in changes.items():
            expected[section][key] = value
    assert found == expected


@pytest.mark.parametrize("preset", list(VALUES["presets"]))
def test_every_row_of_every_preset_is_a_row_that_can_be_trained(preset):
    found = config.build(config.Settings, config.with_preset(VALUES | {"preset": preset}), "")
    for name in found.systems:
        compatibility.check_variant(found.variant(name))


BAD = [
    (("preset",), "publishd", "preset", "'published'"),
    (("presets", "none"), {"seed": 3}, "presets.none.seed", "a preset may set wardrobe"),
    (("presets", "none"), [], "presets.none", "expected a mapping"),
    (("presets", "none"), {"train": 3}, "presets.none.train", "expected a mapping"),
    (("presets", "none"), {"train": {"learning": 3}}, "train.learning", "'lr'"),
    (("presets",), 1, "presets", "expected dict"),
    (("sed",), 1, "sed", "'seed'"),
    (("train", "learning"), 1, "train.learning", "'lr'"),
    (("train", "epoch"), 1, "train.epoch", "'epochs'"),
    (("systems", "m3", "netwrk"), "m3", "systems.m3.netwrk", "'network'"),
    (("systems", "m3", "loss"), {"m3_clust": 1}, "systems.m3.loss.m3_clust", "'m3_cluster'"),
    (("systems", "m3", "loss"), {"m3_cluster": "much"}, "systems.m3.loss.m3_cluster", "expected float, got 'much'"),
    (("systems", "m3", "loss"), 3, "systems.m3.loss", "expected a mapping"),
    (("systems", "m3"), 3, "systems.m3", "expected a mapping"),
    (("systems", "m3"), "ab", "systems.m3", "expected a mapping"),
    (("systems", "m3", "network"), "m4", "systems.m3.network", "m3_a"),
    (("systems", "m3", "network"), ABSENT, "systems.m3.network", "missing"),
    (("systems", "m3", "score"), "cosine", "systems.m3.score", "top_class"),
    (("systems", "m3", "name"), "m4", "systems.m3.name", ""),
    (("systems",), [], "systems", "expected dict, got []"),
    (("train", "epochs"), "five", "train.epochs", "expected int, got 'five'"),
    (("train", "epochs"), 5.0, "train.epochs", "expected int, got 5.0"),
    (("train", "epochs"), True, "train.epochs", "expected int, got True"),
    (("train", "epochs"), 0, "train.epochs", "between 1 and inf, got 0"),
    (("train", "batch"), 1, "train.batch", "between 2 and inf, got 1"),
    (("train", "warmup"), 1.5, "train.warmup", "between 0 and 1, got 1.5"),
    (("train", "lr"), "1e-4", "train.lr", "write 0.0001"),
    (("train", "lr"), True, "train.lr", "expected float, got True"),
    (("train", "lr"), -0.1, "train.lr", "-0.1"),
    (("train", "lr"), float("nan"), "train.lr", "nan"),
    (("train", "flip"), 1, "train.flip", "expected bool, got 1"),
    (("train", "precision"), "fp16", "train.precision", "expected one of auto, bf16, fp32, got 'fp16'"),
    (("train", "precision"), ["bf16"], "train.precision", "expected one of auto, bf16, fp32"),
    (("train", "lr"), ABSENT, "train.lr", "missing"),
    (("umap",), ABSENT, "umap", "missing"),
    (("train",), 3, "train", "expected a mapping of settings, got 3"),
    (("train",), None, "train", "expected a mapping of settings, got None"),
    (("wardrobe", "size"), 16, "wardrobe.size", "between 32 and 512, got 16"),
    (("source",), "jpg", "source", "expected one of wardrobe, csv, deepfashion, fashionai, darn, got 'jpg'"),
    (("csv", "multi"), "colour", "csv.multi", "expected list, got 'colour'"),
    (("variants",), [], "variants", "empty"),
    (("variants",), ["m3", "asn"], "variants", "'asn'; did you mean 'asen'"),
    (("variants",), [3], "variant", "3"),
    (("index", "variant"), "m33", "index.variant", "'m33'; did you mean 'm3'"),
    (("index", "gallery"), "train", "index.gallery", "expected one of all, test, got 'train'"),
    (("index", "kind"), "flat", "index.kind", "expected one of auto, exact, compressed, got 'flat'"),
    (("variants",), [["m3"]], "variant", "m3"),
    (("nodes",), 0, "nodes", "between 1 and 1024, got 0"),
    (("nodes",), 2, "rendezvous", "expected host:port of the first machine (nodes: 2)"),
    *[
        (("rendezvous",), address, "rendezvous", f"10.0.0.1:29500, got {address!r}")
        for address in (
            "host",
            "host:",
            ":29500",
            "host:0",
            "host:65536",
            "a host:1",
            "--x:1",
            "host:1:2",
            "host:1\u0663",
        )
    ],
    (("split", "test"), 0.9, "split", "less than 1"),
    (
        ("train", "sampler"),
        "random",
        "train.sampler",
        "expected one of uniform, balanced, asen, asen_pp, asen_pp_exact, got 'random'",
    ),
    (("train", "schedule"), "linear", "train.schedule", "expected one of cosine, step"),
    (("train", "optimizer"), "sgd", "train.optimizer", "expected one of adamw, adam"),
    (("train", "crop"), 0, "train.crop", "between 0.05 and 1"),
    (("train", "jitter"), 1, "train.jitter", "between 0 and 0.9"),
    (("train", "held_out"), "texture: striped", "train.held_out", "expected list"),
    (("model", "temperature"), 0, "model.temperature", "between 0.001 and inf"),
    (("model", "queries"), "random", "model.queries", "expected one of learned, one_hot"),
    (("systems", "modc", "stages"), "ab", "systems.modc.stages", "expected a list of stages, got 'ab'"),
    (("systems", "modc", "stages"), {"epoch_share": 1}, "systems.modc.stages", "expected a list of stages"),
    (("systems", "modc", "stages", 1), 3, "systems.modc.stages.1", "expected a mapping of settings, got 3"),
    (("systems", "modc", "stages", 1), {}, "systems.modc.stages.1.epoch_share", "missing"),
    (("systems", "modc", "stages", 1, "epoch_shar"), 1, "systems.modc.stages.1.epoch_shar", "'epoch_share'"),
    (("systems", "modc", "stages", 1, "model"), {}, "systems.modc.stages.1.model", "no such setting"),
    (("systems", "modc", "stages", 1, "epoch_share"), -1, "systems.modc.stages.1.epoch_share", "between 0.001 and 100"),
    (("systems", "modc", "stages", 1, "restart"), 1, "systems.modc.stages.1.restart", "expected bool"),
    (("systems", "modc", "stages", 1, "global_lr"), 2, "systems.modc.stages.1.global_lr", "between 0 and 1"),
    (("systems", "modc", "stages", 1, "loss"), 3, "systems.modc.stages.1.loss", "expected a mapping"),
    (
        ("systems", "modc", "stages", 1, "loss"),
        {"modc_clustr": 1},
        "systems.modc.stages.1.loss.modc_clustr",
        "'modc_cluster'",
    ),
    (("systems", "modc", "stages", 1, "train"), {"crop": 2}, "systems.modc.stages.1.train.crop", "between 0.05 and 1"),
    *[
        (("systems", "modc", "stages", 1, part), {key: VALUES[part][key]}, f"stages.1.{part}.{key}", "for the row")
        for part, key in config.FIXED_IN_STAGES
    ],
]


@pytest.mark.parametrize(("path", "value", "setting", "advice"), BAD, ids=lambda part: str(part)[:30])
def test_a_wrong_setting_is_named_in_one_sentence(tmp_path, path, value, setting, advice):
    with pytest.raises(InputError) as error:
        load(tmp_path, changed(path, value))
    message = str(error.value)
    assert "params.yaml" in message
    assert setting in message
    assert advice in message
    assert "\n" not in message


@pytest.mark.parametrize("address", ["127.0.0.1:29500", "first.example.org:1", "node_1:65535"])
def test_machines_of_a_training_meet_at_an_address(tmp_path, address):
    values = VALUES | {"devices": 4, "nodes": 3, "rendezvous": address}
    assert load(tmp_path, values).machines.processes == 12


@pytest.mark.parametrize("stages", [3, None, 0.5])
def test_stages_that_are_no_list_are_named(tmp_path, stages):
    with pytest.raises(InputError, match=r"params\.yaml, systems\.modc\.stages: expected a list of stages"):
        load(tmp_path, changed(("systems", "modc", "stages"), stages))


def test_what_a_variant_derives_is_no_setting(tmp_path):
    with pytest.raises(InputError, match=r"params\.yaml, systems\.m3\.changes: this follows from the row itself"):
        load(tmp_path, changed(("systems", "m3", "changes"), ["model.beta"]))


@pytest.mark.parametrize("key", ["train.weight_decay", "loss.center_momentum", "loss.positive_power"])
def test_a_stage_gives_nothing_that_would_be_ignored(tmp_path, key):
    section, _, name = key.partition(".")
    own = {"epoch_share": 0.3, section: {name: VALUES[section][name]}}
    with pytest.raises(InputError, match=rf"params\.yaml, systems\.modc\.stages\.1\.{key}: a stage can't"):
        load(tmp_path, changed(("systems", "modc", "stages", 1), own))


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "just words"])
def test_a_file_that_is_no_mapping(tmp_path, text):
    with pytest.raises(InputError, match=r"params.yaml, top level: expected a mapping"):
        load(tmp_path, text)


def test_invalid_yaml_tells_its_line(tmp_path):
    with pytest.raises(InputError, match=r"params\.yaml, line 3: not valid YAML"):
        load(tmp_path, "seed: 0\nthreads: 2\n  source: wardrobe\n")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff\n")
    with pytest.raises(InputError, match=r"params\.yaml"):
        config.load(tmp_path / "params.yaml")


def test_a_missing_file_tells_how_to_get_it_back(tmp_path):
    with pytest.raises(InputError, match=r"params\.yaml does not exist.*git checkout"):
        config.load(tmp_path / "params.yaml")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(paths(VALUES))), values)
@example(("variants", 0), 3)
@example(("systems", "m3"), None)
@example(("split", "valid"), float("inf"))
@example(("systems", "modc", "stages"), None)
def test_any_value_gives_settings_or_an_input_error(tmp_path, path, value):
    found = load_or_error(tmp_path, changed(path, value))
    if isinstance(found, InputError):
        assert "\n" not in str(found)
    else:
        assert all(isinstance(found.variant(name), config.Variant) for name in found.variants)


def load_or_error(folder: Path, values: object) -> config.Settings | InputError:
    try:
        return load(folder, values)
    except InputError as error:
        return error


def test_one_mapping_for_two_settings_is_named(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("train: {<<: *fast}", "train: *fast", 1))
    with pytest.raises(
        InputError, match=r"systems\.m3_c\.train: an alias of systems\.m3_a\.train, .*\{<<: \*its_name\}$"
    ):
        config.load(tmp_path / "params.yaml")


OVERRIDES = [
    "systems.m3.train.lr",
    "systems.m3_a.train.lr",
    "systems.m3.loss.m3_cluster",
    "systems.modc.stages.1.loss.modc_cluster",
    "presets.published.systems.m3.loss.m3_cluster",
]


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_setting_changed_from_the_command_line_changes_itself_alone(tmp_path, name):
    """What `dvc exp run -S` does to the file, anchors and all."""
    path, expected = tmp_path / "params.yaml", json.loads(json.dumps(VALUES))  # stages shared no longer
    path.write_text((ROOT / "params.yaml").read_text())
    apply_overrides(path, [f"{name}=0.125"])
    *parents, last = [int(key) if key.isdigit() else key for key in name.split(".")]
    reduce(getitem, parents, expected)[last] = 0.125
    assert yaml.safe_load(path.read_text()) == expected
    config.load(path)


def test_an_int_is_taken_where_a_float_is_asked(tmp_path):
    found = load(tmp_path, changed(("train", "weight_decay"), 1)).train.weight_decay
    assert type(found) is float
    assert found == 1


def test_a_variant_lists_only_what_it_changes(tmp_path):
    own = {
        "network": "m3",
        "score": "concat",
        "loss": {"m3_cluster": 2},
        "train": {"lr": 0.5},
        "model": {"attention_width": 7},
    }
    found = load(tmp_path, changed(("systems", "m3"), own)).variant("m3")
    assert (found.name, found.network, found.score) == ("m3", "m3", "concat")
    for section in ("model", "loss", "train"):
        assert asdict(getattr(found, section)) == VALUES[section] | own[section]


def test_reading_a_variant_changes_no_setting():
    found = config.load(ROOT / "params.yaml")
    before = copy.deepcopy(asdict(found))
    for name in found.systems:
        found.variant(name)
    assert asdict(found) == before


STAGES = [
    {"epoch_share": 0.25, "loss": {"margin": 0.1}},
    {
        "epoch_share": 1,
        "restart": True,
        "global_lr": 0.5,
        "loss": {"modc_cluster": 2},
        "train": {"crop": 0.5, "jitter": 0.2},
    },
]


def test_stages_change_the_rows_own_losses_and_training(tmp_path):
    own = {"network": "modc", "score": "segment", "loss": {"asen_triplet": 1, "margin": 0.3}, "train": {"lr": 0.5}}
    found = load(tmp_path, changed(("systems", "modc"), own | {"stages": STAGES})).variant("modc")
    assert [(s.epoch_share, s.restart, s.global_lr) for s in found.stages] == [(0.25, False, 1.0), (1.0, True, 0.5)]
    for stage, changes in zip(found.stages, STAGES, strict=True):
        for section in ("loss", "train"):
            expected = VALUES[section] | own[section] | changes.get(section, {})
            assert asdict(getattr(stage, section)) == expected


@pytest.mark.parametrize("stages", [None, []])
def test_a_row_without_stages_is_one_stage_of_all_epochs(tmp_path, stages):
    own = VALUES["systems"]["m3"] | ({} if stages is None else {"stages": stages})
    found = load(tmp_path, changed(("systems", "m3"), own)).variant("m3")
    assert found.stages == (config.Stage(1.0, False, 1.0, found.loss, found.train),)


def test_changes_are_the_settings_that_a_row_gives(tmp_path):
    own = {
        "model": {"attention_width": 3, "backbone_options": {"a": 1}},
        "loss": {"modc_cluster": 1},
        "train": {},
        "stages": STAGES,
    }
    own |= {"network": "modc", "score": "segment"}
    found = load(tmp_path, changed(("systems", "modc"), own)).variant("modc")
    expected = {"model.attention_width", "model.backbone_options", "loss.modc_cluster"}
    expected |= {
        "stages.0.epoch_share",
        "stages.0.loss.margin",
        "stages.1.epoch_share",
        "stages.1.restart",
        "stages.1.global_lr",
    }
    expected |= {"stages.1.loss.modc_cluster", "stages.1.train.crop", "stages.1.train.jitter"}
    assert sorted(found.changes) == sorted(expected)


def test_find_root_looks_upwards(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "notebooks/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks/deep")
    monkeypatch.setattr(config, "__file__", str(tmp_path / "m3lib/config.py"))
    assert config.find_root() == tmp_path


def test_find_root_refuses_code_of_another_copy(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"m3lib was imported from .*, but the workspace is {tmp_path}"):
        config.find_root()


def test_find_root_outside_any_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no dvc\.yaml in .* or above it"):
        config.find_root()
