"""params.yaml: the repository's own loads; every fault becomes a sentence that names its setting; rows inherit."""

import copy
import json
import re
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

from m3lib import config
from m3lib.errors import InputError
from m3lib.validation import FIXED_IN_STAGES
from tiny import ROOT, SETTINGS

TEXT = (ROOT / "params.yaml").read_text()
VALUES = yaml.safe_load(TEXT)
ABSENT = type("Absent", (), {"__repr__": lambda self: "absent"})()  # no address in its name: workers compare test ids
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(scalars, scalars, max_size=2))


def paths(values: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every key and list item of params.yaml."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def changed(*changes: tuple[tuple, object]) -> dict:
    """The repository's settings, each (path, value) set, added, or (ABSENT) removed."""
    everything = copy.deepcopy(VALUES)
    for path, value in changes:
        parent = reduce(getitem, path[:-1], everything)
        if value is ABSENT:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
    return everything


class PlainDumper(yaml.SafeDumper):
    """Writes a value that is used twice twice, without an alias."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def load(folder: Path, values: object) -> config.Settings:
    text = values if isinstance(values, str) else yaml.dump(values, Dumper=PlainDumper, allow_unicode=True)
    (folder / "params.yaml").write_text(text)
    return config.load(folder / "params.yaml")


def resolved(values: dict) -> dict:
    """Settings with each `auto` that the block of the source has a value for replaced by it."""
    values = copy.deepcopy(values)
    for section, block in values["sources"][values["source"]].items():
        values[section] |= {key: value for key, value in block.items() if values[section][key] == "auto"}
    return values


GENERAL = resolved(VALUES)


def test_the_repositorys_params_load_with_every_value():
    assert asdict(config.load(ROOT / "params.yaml")) == GENERAL
    assert VALUES["preset"] == "none"


def test_params_yaml_has_no_anchor_alias_or_merge():
    assert not [event for event in yaml.parse(TEXT) if getattr(event, "anchor", None)]


@pytest.mark.parametrize("preset", list(VALUES["presets"]))
def test_a_preset_changes_what_it_lists_and_nothing_else(tmp_path, preset):
    expected = copy.deepcopy(GENERAL) | {"preset": preset}
    for section, changes in VALUES["presets"][preset].items():
        expected[section] |= changes
    assert asdict(load(tmp_path, VALUES | {"preset": preset})) == expected  # `load` checks every row of it too


M3, STAGE = ("systems", "m3"), ("systems", "modc", "stages", 1)
BAD = [
    (("preset",), "publishd", "preset", "'published'"),
    (("presets", "none"), {"seed": 3}, "presets.none.seed", "a preset may set wardrobe"),
    (("presets", "none"), [], "presets.none", "expected a mapping"),
    (("presets", "none"), {"train": 3}, "presets.none.train", "expected a mapping"),
    (("presets", "none"), {"train": {"learning": 3}}, "train.learning", "'lr'"),
    (("presets",), 1, "presets", "expected a mapping"),
    (("sed",), 1, "sed", "'seed'"),
    (("train", "epoch"), 1, "train.epoch", "'epochs'"),
    ((*M3, "netwrk"), "m3", "systems.m3.netwrk", "'network'"),
    ((*M3, "loss"), {"m3_clust": 1}, "systems.m3.loss.m3_clust", "'m3_cluster'"),
    ((*M3, "loss", "m3_cluster"), "much", "systems.m3.loss.m3_cluster", "expected a number, got 'much'"),
    ((*M3, "loss"), 3, "systems.m3.loss", "expected a mapping"),
    (M3, 3, "systems.m3", "expected a mapping"),
    (M3, "ab", "systems.m3", "expected a mapping"),
    ((*M3, "network"), ABSENT, "systems.m3.network", "missing"),
    ((*M3, "score"), "cosine", "systems.m3.score", "'top_class'"),
    ((*M3, "name"), "m4", "systems.m3.name", "no such setting"),
    ((*M3, "changes"), ["model.beta"], "systems.m3.changes", "no such setting"),
    ((*M3, "like"), "asn", "systems.m3.like", "there is no row 'asn'; did you mean 'asen'"),
    ((*M3, "like"), ["asen"], "systems.m3.like", "there is no row ['asen']"),
    ((*M3, "like"), "m3", "systems.m3.like", "in a circle: m3 -> m3"),
    ((*M3, "like"), "m3_a", "like", "in a circle: "),
    (("systems",), [], "systems", "expected a mapping of settings, got []"),
    (("systems", "m 3"), VALUES["systems"]["m3"], "systems", "'m 3' can't name a row"),
    (("train", "epochs"), "five", "train.epochs", "expected an integer, got 'five'"),
    (("train", "epochs"), 5.0, "train.epochs", "expected an integer, got 5.0"),
    (("train", "epochs"), True, "train.epochs", "expected an integer, got True"),
    (("train", "epochs"), 0, "train.epochs", "at least 1, got 0"),
    (("train", "epochs"), 2**70, "train.epochs", "got a number of 71 bits"),
    (("train", "warmup"), 1.5, "train.warmup", "at most 1, got 1.5"),
    (("train", "lr"), "1e-4", "train.lr", "write 0.0001"),
    (("train", "lr"), True, "train.lr", "expected a number, got True"),
    (("train", "lr"), -0.1, "train.lr", "-0.1"),
    (("train", "lr"), float("nan"), "train.lr", "finite number, got nan"),
    (("train", "warmup"), float("nan"), "train.warmup", "nan"),
    (("train", "lr"), 10**400, "train.lr", "a number of 1329 bits"),
    (("train", "flip"), 1, "train.flip", "expected true or false, got 1"),
    (("train", "precision"), "fp16", "train.precision", "expected 'auto', 'bf16' or 'fp32', got 'fp16'"),
    (("train", "precision"), ["bf16"], "train.precision", "expected 'auto', 'bf16' or 'fp32'"),
    (("train", "lr"), ABSENT, "train.lr", "missing"),
    (("umap",), ABSENT, "umap", "missing"),
    (("train",), None, "train", "expected a mapping of settings, got None"),
    (("csv", "multi"), "colour", "csv.multi", "expected a list, got 'colour'"),
    (("csv", "table"), "a\x1bb", "csv.table", "a character that can't be printed"),
    (("variants",), [], "variants", "empty"),
    (("csv", "separator"), "", "csv.separator", "must not be empty"),
    (("variants",), ["m3", "asn"], "variants", "'asn'; did you mean 'asen'"),
    (("variants",), ["m3", "m3"], "variants", "'m3' is listed twice"),
    (("variants",), [3], "variants.0", "expected text, got 3"),
    (("variants",), "m3", "variants", "expected a list, got 'm3'"),
    (("index", "variant"), "m33", "index.variant", "'m33' is not one of variants; did you mean 'm3'"),
    (("devices",), 0, "devices", "at least 1, got 0"),
    (("split", "test"), 0.9, "split", "less than 1"),
    (("train", "held_out"), "texture: striped", "train.held_out", "expected a list"),
    (STAGE[:-1], "ab", "systems.modc.stages", "expected a list of stages, got 'ab'"),
    (STAGE[:-1], None, "systems.modc.stages", "expected a list of stages"),
    (STAGE, 3, "systems.modc.stages.1", "expected a mapping of settings, got 3"),
    (STAGE, {}, "systems.modc.stages.1.epoch_share", "missing"),
    ((*STAGE, "epoch_shar"), 1, "systems.modc.stages.1.epoch_shar", "'epoch_share'"),
    ((*STAGE, "model"), {}, "systems.modc.stages.1.model", "no such setting"),
    ((*STAGE, "epoch_share"), -1, "systems.modc.stages.1.epoch_share", "at least 0.001"),
    ((*STAGE, "restart"), 1, "systems.modc.stages.1.restart", "expected true or false"),
    ((*STAGE, "loss"), 3, "systems.modc.stages.1.loss", "expected a mapping"),
    ((*STAGE, "loss"), {"modc_centre": 1}, "systems.modc.stages.1.loss.modc_centre", "'modc_cluster'"),
    *[
        ((*STAGE, part), {key: VALUES[part][key]}, f"stages.1.{part}.{key}", "set it for the row")
        for part, key in FIXED_IN_STAGES
    ],
]


@pytest.mark.parametrize(("path", "value", "setting", "advice"), BAD, ids=lambda part: str(part)[:30])
def test_a_wrong_setting_is_named(tmp_path, path, value, setting, advice):
    with pytest.raises(InputError) as error:
        load(tmp_path, changed((path, value)))
    message = str(error.value)
    assert message.startswith("params.yaml")
    assert setting in message
    assert advice in message


def test_all_faults_are_listed_at_once(tmp_path):
    general = [(("train", "lr"), "1e-3"), (("umap", "point"), 3), (("seed",), ABSENT)]
    with pytest.raises(InputError, match=r"^params\.yaml has 4 faults:\n  seed: ") as error:
        load(tmp_path, changed(*general, (("split", "test"), 7)))
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == [
        "  seed", "  split.test", "  train.lr", "  umap.point"
    ]  # fmt: skip
    rows = [(("variants",), ["m3", "m33"]), ((*M3, "model"), {"beta": 0.5}), ((*STAGE, "loss"), {"m3_cluster": 1})]
    with pytest.raises(InputError) as error:
        load(tmp_path, changed(*rows))
    for name in ("variants: there is no row 'm33'", "systems.m3.model.beta: ", "systems.modc.stages.1.loss.m3_cluster"):
        assert name in str(error.value)


def test_a_fault_is_reported_for_the_row_that_lists_it(tmp_path):
    with pytest.raises(
        InputError, match=r"^params\.yaml, systems\.m3\.network: there is no network 'm4'; did you mean "
    ):
        load(tmp_path, changed(((*M3, "network"), "m4")))


def test_one_fault_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^params\.yaml, train\.lr: expected a number, got '1e-3' \(.*\)$"):
        load(tmp_path, changed((("train", "lr"), "1e-3")))


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "just words"])
def test_a_file_that_is_no_mapping(tmp_path, text):
    with pytest.raises(InputError, match=r"params.yaml, top level: expected a mapping"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seed: 0\nthreads: 2\n  source: csv\n", "line 3: not valid YAML"),
        ("seed: 0\nthreads: 2\nseed: 1\n", "line 3: .*'seed' appears twice"),
        ("a: &a {b: 1}\nc: *a\n", "line 2: .*an alias"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", "line 2: .*use `like: <row>` instead"),
    ],
)
def test_invalid_yaml_names_its_line(tmp_path, text, fault):
    with pytest.raises(InputError, match=rf"params\.yaml, {fault}"):
        load(tmp_path, text)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff\n")
    with pytest.raises(InputError, match=r"params\.yaml"):
        config.load(tmp_path / "params.yaml")


def test_a_missing_file_says_how_to_restore_it(tmp_path):
    with pytest.raises(InputError, match=r"params\.yaml does not exist.*git checkout"):
        config.load(tmp_path / "params.yaml")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(paths(VALUES))), values)
@example(("variants", 0), 3)
@example(("systems", "m3"), None)
@example(("split", "valid"), float("inf"))
@example(("systems", "modc", "stages"), None)
@example(("systems",), {0: {}})
@example(("presets",), {None: None})
def test_any_value_yields_settings_or_an_input_error(tmp_path, path, value):
    try:
        loaded = load(tmp_path, changed((path, value)))
    except InputError as error:
        sentence = str(error)
        assert sentence.startswith(("params.yaml", str(tmp_path)))
    else:
        assert all(isinstance(loaded.variant(name), config.Variant) for name in loaded.variants)


OVERRIDES = ["systems.m3.train.lr", "+systems.m3_a.train.lr", "systems.modc.stages.1.loss.modc_cluster", "train.lr"]


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_setting_changed_from_the_command_line_changes_itself_only(tmp_path, name):
    """`dvc exp run -S` rewrites the file; an heir still follows its parent afterwards."""
    path, expected = tmp_path / "params.yaml", json.loads(json.dumps(VALUES))
    path.write_text(TEXT)
    apply_overrides(path, [f"{name}=0.125"])
    *parents, last = [int(key) if key.isdigit() else key for key in name.lstrip("+").split(".")]
    parent = expected
    for key in parents:
        parent = parent.setdefault(key, {}) if isinstance(parent, dict) else parent[key]
    parent[last] = 0.125
    assert yaml.safe_load(path.read_text()) == expected
    apply_overrides(path, ["systems.m3.loss.m3_instance=0.5"])
    loaded = config.load(path)
    assert {loaded.variant(row).loss.m3_instance for row in ("m3", "m3_a", "m3_c", "m3_shared")} == {0.5}


def test_an_integer_is_accepted_as_a_float(tmp_path):
    weight_decay = load(tmp_path, changed((("train", "weight_decay"), 1))).train.weight_decay
    assert type(weight_decay) is float
    assert weight_decay == 1


def test_a_row_lists_only_what_it_changes(tmp_path):
    row = {"network": "m3", "score": "concat", "loss": {"m3_cluster": 2}, "train": {"lr": 0.5}}
    row["model"] = {"attention_width": 7}
    variant = load(tmp_path, changed((("systems",), VALUES["systems"] | {"row": row}))).variant("row")
    assert (variant.name, variant.network, variant.score) == ("row", "m3", "concat")
    for section in ("model", "loss", "train"):
        assert asdict(getattr(variant, section)) == GENERAL[section] | row[section]


def test_a_row_inherits_from_the_row_that_it_is_like(tmp_path):
    rows = {
        "top": {"network": "modc", "score": "segment", "loss": {"asen_triplet": 1, "margin": 0.3}, "stages": STAGES},
        "middle": {"like": "top", "loss": {"margin": 0.4}, "train": {"lr": 0.5, "flip": False}, "stages": STAGES[:1]},
        "heir": {"like": "middle", "score": "attribute", "train": {"lr": 0.25}},
    }
    loaded = load(tmp_path, changed((("systems",), VALUES["systems"] | rows)))
    heir = loaded.variant("heir")
    assert (heir.network, heir.score) == ("modc", "attribute")
    assert asdict(heir.loss) == VALUES["loss"] | {"asen_triplet": 1, "margin": 0.4}
    assert asdict(heir.train) == GENERAL["train"] | {"lr": 0.25, "flip": False}
    assert [stage.epoch_share for stage in heir.stages] == [0.25]
    assert heir.changes == ("train.lr",)
    assert [stage.epoch_share for stage in loaded.variant("top").stages] == [0.25, 1.0]


def test_an_heir_may_inherit_settings_that_its_network_does_not_read(tmp_path):
    rows = {"a": VALUES["systems"]["asen_pp"], "b": {"like": "a", "network": "asen_v2", "stages": []}}
    assert load(tmp_path, changed((("systems",), VALUES["systems"] | rows))).variant("b").network == "asen_v2"


STAGES = [
    {"epoch_share": 0.25, "loss": {"margin": 0.1}},
    {
        "epoch_share": 1,
        "restart": True,
        "global_lr": 1.0,
        "loss": {"modc_cluster": 2},
        "train": {"crop": 0.5, "jitter": 0.2},
    },
]


def test_stages_change_the_rows_losses_and_training(tmp_path):
    row = {"network": "modc", "score": "segment", "loss": {"asen_triplet": 1, "margin": 0.3}, "train": {"lr": 0.5}}
    variant = load(tmp_path, changed((("systems", "modc"), row | {"stages": STAGES}))).variant("modc")
    assert [(s.epoch_share, s.restart, s.global_lr) for s in variant.stages] == [(0.25, False, 1.0), (1.0, True, 1.0)]
    for stage, changes in zip(variant.stages, STAGES, strict=True):
        for section in ("loss", "train"):
            assert asdict(getattr(stage, section)) == GENERAL[section] | row[section] | changes.get(section, {})
    expected = {"loss.asen_triplet", "loss.margin", "train.lr", "stages.0.epoch_share", "stages.0.loss.margin"}
    expected |= {f"stages.1.{name}" for name in ("epoch_share", "restart", "global_lr", "loss.modc_cluster")}
    assert set(variant.changes) == expected | {"stages.1.train.crop", "stages.1.train.jitter"}


@pytest.mark.parametrize("stages", [ABSENT, []])
def test_a_row_without_stages_has_one_stage_of_all_epochs(tmp_path, stages):
    row = VALUES["systems"]["m3"] | ({} if stages is ABSENT else {"stages": stages})
    variant = load(tmp_path, changed((M3, row))).variant("m3")
    assert variant.stages == (config.Stage(1.0, False, 1.0, variant.loss, variant.train),)


def test_resolved_settings_hold_what_the_network_reads():
    resolved = config.load(ROOT / "params.yaml").variant("m3").resolved()
    assert {"class_embedding", "refine", "backbone"} <= set(resolved["model"])
    assert not {"beta", "temperature", "attribute_embedding", "local_size"} & set(resolved["model"])
    weights = {"m3_classification": 4, "m3_instance": 1, "m3_cluster": 1}
    assert {
        name: value for name, value in resolved["loss"].items() if name.startswith(("m3", "asen", "modc"))
    } == weights
    assert resolved["stages"][0]["loss"] == resolved["loss"]
    assert json.loads(json.dumps(resolved))["train"]["lr"] == VALUES["systems"]["m3"]["train"]["lr"]


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


def listed(row: str) -> set[str]:
    """What params.yaml lists for a row, or for one that it is like."""
    values = VALUES["systems"][row]
    own = {f"{section}.{key}" for section in ("model", "loss", "train") for key in values.get(section, {})}
    return own | (listed(values["like"]) if "like" in values else set())


@pytest.mark.parametrize("row", ["classifier", "classifier_bce", "m3_c", "asen_pp_l1", "asen_v2_softmax"])
def test_a_row_knows_which_general_settings_do_not_reach_it(row):
    assert set(SETTINGS.variant(row).own) == listed(row)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("asen_v2", "train"), {"lr": SETTINGS.variant("asen_v2").train.lr, "clip": VALUES["train"]["clip"]}),
        (("m3_a", "loss"), {"m3_cluster": 1}),  # the value of m3, which it is like
        (("asen", "loss"), VALUES["systems"]["asen"]["loss"] | {"positive_power": VALUES["loss"]["positive_power"]}),
        (("asen_pp", "stages", 0), {"epoch_share": 0.75, "loss": {}, "train": {"lr": VALUES["train"]["lr"]}}),
    ],
)
def test_a_present_value_written_into_a_row_changes_nothing_that_its_training_depends_on(tmp_path, path, value):
    row = path[0]
    loaded = load(tmp_path, changed((("systems", *path), value)))
    assert loaded.variant(row).resolved() == SETTINGS.variant(row).resolved()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.lr", "1e-4", 0.0001),
        ("train.held_out", "['texture: plaid', 'style: glam']", ["texture: plaid", "style: glam"]),
        ("+model.backbone_options.channels", "[8, 8, 16, 16]", [8, 8, 16, 16]),
        ("umap", "{points: 60}", {"attributes": 4, "points": 60, "neighbors": 15, "min_dist": 0.1}),
        ("csv.table", "'a: b #c.csv'", "a: b #c.csv"),
        ("csv.group_column", "null", None),
        ("systems.modc.stages.2.train.crop", "0.7", 0.7),
    ],
)
def test_dvc_writes_values_of_any_form_and_loses_no_comment(name, text, value, tmp_path):
    """It rewrites the file as a whole, with other line breaks; what it wrote once keeps its form."""
    path, expected = tmp_path / "params.yaml", copy.deepcopy(VALUES)
    path.write_text(TEXT)
    apply_overrides(path, [f"{name}={text}"])
    *parents, last = [int(key) if key.isdigit() else key for key in name.lstrip("+").split(".")]
    reduce(getitem, parents, expected)[last] = value
    written = path.read_text()
    assert yaml.safe_load(written) == expected
    assert re.findall("# .*", written) == re.findall("# .*", TEXT)
    apply_overrides(path, ["seed=7"])
    assert path.read_text() == written.replace("\nseed: 0", "\nseed: 7")
