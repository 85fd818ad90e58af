"""What belongs together: the tables agree with the networks, and what contradicts is told in one sentence."""

import subprocess
import sys
import typing
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import yaml

from m3lib import compatibility, config, systems
from m3lib.config import Variant
from m3lib.errors import InputError
from m3lib.retrieval.ranking import Embeddings
from tiny import ROOT, SETTINGS, TAXONOMY, generator, make_system, make_variant

NETWORKS = list(systems.NETWORKS)


def test_every_table_knows_every_network_loss_and_score():
    names = typing.get_type_hints(Variant)
    assert (
        set(NETWORKS) == set(compatibility.GIVES) == set(compatibility.MODEL) == set(typing.get_args(names["network"]))
    )
    assert set(compatibility.SCORES) == set(typing.get_args(names["score"]))
    assert {need for needs in compatibility.SCORES.values() for need in needs} <= {f.name for f in fields(Embeddings)}
    weights = {field.name for field in fields(config.Loss)}
    settings = {"margin", "pseudo_margin", "hardness", "center_momentum", "positive_power"}
    assert set(compatibility.LOSSES) == weights - settings
    model = {field.name for field in fields(config.Model)}
    assert compatibility.EVERY.union(*compatibility.MODEL.values()) == model


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_gives_what_its_row_of_the_table_says(network, learned):
    variant = make_variant(network, loss={"m3_classification": float(learned)} if network in ASEN_FAMILY else {})
    system = make_system(network, loss={"m3_classification": variant.loss.m3_classification})
    for stage in variant.stages:
        system.enter_stage(stage.loss)
    outputs = system(torch.randn(2, 3, 32, 32, generator=generator()))
    given = {name for name in ("attribute", "local", "logits", "classes") if getattr(outputs, name) is not None}
    if hasattr(system, "centers") and "classes" not in given:
        given |= {"centers"}
    assert given == compatibility.gives(variant)
    assert (system.posterior(outputs) is not None) == bool(given & {"logits", "centers"})


class Recorder:
    """Settings that remember which of them were read."""

    def __init__(self, settings: config.Model):
        self.settings, self.read = settings, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.settings, name)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_reads_the_settings_that_its_row_may_give(network):
    variant = make_variant(network)
    recorder = Recorder(variant.model)
    systems.build(replace(variant, model=recorder), TAXONOMY)
    assert recorder.read == compatibility.EVERY | compatibility.MODEL[network]


@pytest.mark.parametrize("name", list(SETTINGS.systems))
def test_every_row_of_params_yaml_passes(name):
    compatibility.check_variant(SETTINGS.variant(name))


ASEN_FAMILY = ["asen", "asen_v2", "asen_pp", "modc"]
OWN_SETTINGS = {
    "asen": ("attribute_embedding",),
    "asen_v2": ("queries", "attention_batch_norm"),
    "asen_pp": ("beta", "box_threshold", "local_size", "local_backbone_options"),
    "modc": ("temperature",),
    "m3": ("attribute_conditioned", "refine", "class_embedding"),
    "m3_c": ("class_embedding", "attention_batch_norm"),
}
FOREIGN = {
    "classifier": ("attention_width", "beta"),
    "asen": ("beta", "temperature", "queries", "attention_batch_norm", "local_backbone_options"),
    "asen_v2": ("attribute_embedding", "beta", "class_embedding"),
    "asen_pp": ("temperature", "attribute_conditioned"),
    "modc": ("attribute_embedding", "local_size"),
    "m3_a": ("attribute_conditioned", "attribute_embedding"),
    "m3_c": ("queries", "refine"),
    "m3": ("attribute_embedding", "beta"),
}


def row(**changes: object) -> Variant:
    """One row of params.yaml (`name`) with changes merged into it, as a user would write them."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    own = values["systems"][changes.pop("name")]
    for key, value in changes.items():
        own[key] = own.get(key, {}) | value if isinstance(value, dict) else value
    own_name = next(name for name, given in values["systems"].items() if given is own)
    return replace(SETTINGS, systems=values["systems"]).variant(own_name)


def pairs(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(network, key) for network, keys in table.items() for key in keys]


@pytest.mark.parametrize(("network", "key"), pairs(OWN_SETTINGS))
def test_a_row_may_give_its_networks_own_settings(network, key):
    compatibility.check_variant(row(name=network, model={key: getattr(SETTINGS.model, key)}))


def refused(variant: Variant) -> str:
    with pytest.raises(InputError) as error:
        compatibility.check_variant(variant)
    message = str(error.value)
    assert message.startswith(f"params.yaml, systems.{variant.name}")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("network", "key"), pairs(FOREIGN))
def test_a_setting_of_another_network_is_refused(network, key):
    message = refused(row(name=network, model={key: getattr(SETTINGS.model, key)}))
    assert f"systems.{network}.model.{key}" in message
    assert f"{network} has no such setting" in message


NEEDS = {  # a loss, and the networks that can't train it
    "asen_triplet": ["classifier", "m3_c"],
    "asen_pp_local": ["asen", "asen_v2", "modc", "classifier", "m3"],
    "asen_pp_align": ["asen", "modc", "m3_a"],
    "modc_cluster": ["asen", "asen_pp", "classifier", "m3"],
    "modc_pseudo": ["asen_v2", "m3"],
    "m3_instance": ["asen", "modc", "classifier"],
    "m3_cluster": ["asen_pp", "modc", "classifier"],
}


@pytest.mark.parametrize(("loss", "network"), pairs(NEEDS))
def test_a_loss_that_a_network_cannot_train_is_refused(loss, network):
    assert f"loss.{loss} needs " in refused(row(name=network, loss={loss: 1}))


def test_a_loss_of_one_stage_alone_is_looked_at():
    assert "loss.asen_pp_local needs local" in refused(
        row(name="asen", stages=[{"epoch_share": 1}, {"epoch_share": 1, "loss": {"asen_pp_local": 1}}])
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_can_learn_loss_1(network):
    compatibility.check_variant(row(name=network, loss={"m3_classification": 1}))


FITTING = {  # the scores of each network, without and with Loss 1
    "classifier": ({"posterior"}, {"posterior"}),
    **dict.fromkeys(
        ["asen", "asen_v2", "asen_pp"], ({"attribute"}, {"attribute", "segment", "soft_segment", "posterior"})
    ),
    "modc": ({"attribute", "segment", "soft_segment", "posterior"},) * 2,
    "m3_c": ({"concat", "top_class", "weighted", "posterior"},) * 2,
    **dict.fromkeys(["m3_a", "m3"], (set(compatibility.SCORES),) * 2),
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("score", list(compatibility.SCORES))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_score_is_taken_where_the_network_gives_what_it_reads(network, score, learned):
    variant = row(name=network, score=score, **({"loss": {"m3_classification": 1}} if learned else {}))
    if score in FITTING[network][learned]:
        compatibility.check_variant(variant)
    else:
        assert f"score {score} needs " in refused(variant)


ONE = {"epoch_share": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"name": "modc", "stages": [ONE, ONE | {"loss": {"asen_triplet": 0, "modc_pseudo": 1}}]},
            "stage 1: loss.modc_pseudo weighs",
        ),
        (
            {"name": "asen", "stages": [ONE | {"global_lr": 0.1}]},
            "stage 0: global_lr spares a local branch, which asen",
        ),
        ({"name": "modc", "stages": [ONE, ONE | {"global_lr": 0.1}]}, "stage 1: global_lr"),
        ({"name": "asen", "loss": {"asen_triplet": 0}}, "stage 0: every loss has weight 0"),
        ({"name": "modc", "stages": [ONE, ONE | {"loss": {"asen_triplet": 0}}]}, "stage 1: every loss has weight 0"),
    ],
)
def test_what_contradicts_itself_is_refused(given, told):
    assert told in refused(row(**given))


@pytest.mark.parametrize(
    "given",
    [
        {"name": "modc", "stages": [ONE, ONE | {"loss": {"asen_triplet": 0, "modc_cluster": 1, "modc_pseudo": 1}}]},
        {"name": "asen_pp", "stages": [ONE, ONE | {"global_lr": 0}]},
        {"name": "m3", "train": {"epochs": 4}, "stages": [{"epoch_share": 0.13}] * 2},
    ],
)
def test_what_fits_passes(given):
    compatibility.check_variant(row(**given))


def test_building_checks_first():
    with pytest.raises(InputError, match=r"systems\.asen: loss\.asen_pp_local needs local"):
        systems.build(make_variant("asen", loss={"asen_pp_local": 1.0}), TAXONOMY)


def test_rows_are_checked_without_torch():
    """The pipeline's first stage does it; torch takes seconds to import."""
    code = (
        "import sys; from pathlib import Path; from m3lib import compatibility, config; "
        "found = config.load(Path('params.yaml')); "
        "[compatibility.check_variant(found.variant(n)) for n in found.systems]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
