"""What goes together: declarations agree with the networks, and contradicting settings are reported."""

import subprocess
import sys
import textwrap
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from m3lib import compatibility, config, systems
from m3lib.compatibility import COMMON_SETTINGS, LOGIT_LOSSES, LOSS_SETTINGS, LOSSES, SCORES, Declaration, declaration
from m3lib.config import Variant
from m3lib.errors import InputError
from tiny import ROOT, SETTINGS, TAXONOMY, generator, make_system, make_variant

NETWORKS = list(systems.SYSTEMS)
PUBLISHED = [name for name in NETWORKS if name != "duet"]  # which has a classification loss of its own


def with_logits(loss: dict) -> dict:
    """The weights of a row that has this loss on class logits and no other, if any."""
    return loss and dict.fromkeys(LOGIT_LOSSES, 0) | loss


def test_declarations_and_settings_name_the_same_things():
    weights = {field.name for field in fields(config.Loss)}
    assert set(LOSSES) == weights - set(LOSS_SETTINGS)
    assert set().union(*(declaration(name).losses for name in NETWORKS)) == set(LOSSES)
    read = COMMON_SETTINGS.union(*(declaration(name).settings for name in NETWORKS))
    assert read == {field.name for field in fields(config.Model)}
    assert compatibility.registry() == systems.SYSTEMS


@pytest.mark.parametrize("loss", [{}, {"classification": 1.0}, {"m3_classification": 1.0}], ids=str)
@pytest.mark.parametrize("network", PUBLISHED)
def test_a_network_produces_the_outputs_that_it_declares(network, loss):
    variant, system = make_variant(network, loss=loss), make_system(network, loss=loss)
    for stage in variant.stages:
        system.enter_stage(stage.loss)
    outputs = system(torch.randn(2, 3, 32, 32, generator=generator()))
    produced = {name for name in ("attribute", "local", "logits", "classes") if getattr(outputs, name) is not None}
    if hasattr(system, "centers") and "classes" not in produced:
        produced |= {"centers"}
    assert produced == compatibility.outputs_of(variant)


class Recorder:
    """Settings that remember which of them were read."""

    def __init__(self, settings: config.Model):
        self.settings, self.read = settings, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.settings, name)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_reads_the_settings_that_it_declares(network):
    variant = make_variant(network)
    recorder = Recorder(variant.model)
    systems.build(SimpleNamespace(**vars(variant) | {"model": recorder}), TAXONOMY)
    assert recorder.read | {"cache_frozen"} == COMMON_SETTINGS | declaration(network).settings  # the trainer reads it


ASEN_FAMILY = ["asen", "asen_v2", "asen_pp", "modc"]
FOREIGN = {  # model settings that a network does not read
    "frozen": ("beta",),
    "classifier": ("attention_width", "beta"),
    "asen": ("beta", "temperature", "queries", "attention_batch_norm", "local_backbone_options"),
    "asen_v2": ("attribute_embedding", "class_embedding"),
    "asen_pp": ("temperature", "attribute_conditioned"),
    "m3_a": ("attribute_conditioned",),
    "m3_c": ("queries", "refine"),
    "m3": ("attribute_embedding", "beta"),
}


def row(name: str, **changes: object) -> Variant:
    """A row of params.yaml with changes merged into it, as a person would write them."""
    rows = yaml.safe_load((ROOT / "params.yaml").read_text())["systems"]
    for key, value in changes.items():
        rows[name][key] = rows[name].get(key, {}) | value if isinstance(value, dict) else value
    return replace(SETTINGS, systems=rows).variant(name)


def pairs(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(key, value) for key, values in table.items() for value in values]


def refused(name: str, **changes: object) -> str:
    with pytest.raises(InputError) as error:
        row(name, **changes)
    message = str(error.value)
    assert message.startswith("params.yaml")
    assert f"systems.{name}." in message
    return message


@pytest.mark.parametrize(("network", "key"), pairs(FOREIGN))
def test_a_setting_of_another_network_is_refused(network, key):
    message = refused(network, model={key: getattr(SETTINGS.model, key)})
    assert f"systems.{network}.model.{key}: {network} has no such setting" in message


NEEDS = {  # a loss, and some networks that can't be trained with it
    "asen_triplet": ("classifier", "m3_c"),
    "asen_pp_local": ("asen", "modc", "m3"),
    "asen_pp_align": ("asen", "m3_a"),
    "modc_cluster": ("asen_pp", "m3"),
    "modc_pseudo": ("asen_v2", "m3"),
    "m3_instance": ("asen", "classifier"),
    "m3_cluster": ("modc", "classifier"),
}


@pytest.mark.parametrize(("loss", "network"), pairs(NEEDS))
def test_a_loss_that_a_network_cannot_be_trained_with_is_refused(loss, network):
    assert f"loss.{loss}: {network} can't be trained with this loss" in refused(network, loss={loss: 1})


@pytest.mark.parametrize("loss", ["classification", "m3_classification"])
@pytest.mark.parametrize("network", PUBLISHED)
def test_every_network_can_be_trained_with_a_loss_on_class_logits(network, loss):
    row(network, loss=with_logits({loss: 1}))


def test_two_losses_on_the_same_class_logits_are_refused():
    expected = "loss: classification and m3_classification both train the same class logits"
    assert expected in refused("m3", loss={"classification": 1})


FITTING = {  # the scores of each network, without and with a loss on class logits
    **dict.fromkeys(["frozen", "classifier"], ({"posterior"}, {"posterior"})),
    **dict.fromkeys(
        ["asen", "asen_v2", "asen_pp"], ({"attribute"}, {"attribute", "segment", "soft_segment", "posterior", "open"})
    ),
    "modc": ({"attribute", "segment", "soft_segment", "posterior", "open"},) * 2,
    "m3_c": ({"concat", "top_class", "weighted", "posterior"},) * 2,
    **dict.fromkeys(["m3_a", "m3"], (set(SCORES),) * 2),
}


@pytest.mark.parametrize("loss", [{}, {"classification": 1}, {"m3_classification": 1}], ids=str)
@pytest.mark.parametrize("score", list(SCORES))
@pytest.mark.parametrize("network", PUBLISHED)
def test_a_score_is_accepted_if_the_network_produces_what_it_compares(network, score, loss):
    changes = {"score": score, "loss": with_logits(loss)}
    if score in FITTING[network][bool(loss)]:
        row(network, **changes)
    else:
        assert f"score: {score} compares " in refused(network, **changes)


ONE = {"epoch_share": 1}


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (
            "modc",
            {"stages": [ONE, ONE | {"loss": {"asen_triplet": 0, "modc_pseudo": 1}}]},
            "stages.1: modc_pseudo weighs",
        ),
        ("asen", {"stages": [ONE | {"global_lr": 0.1}]}, "stages.0.global_lr: it scales everything but a local branch"),
        ("modc", {"stages": [ONE, ONE | {"global_lr": 0.1}]}, "stages.1.global_lr"),
        ("asen", {"loss": {"asen_triplet": 0}}, "stages.0: every loss has weight 0"),
        ("modc", {"stages": [ONE, ONE | {"loss": {"asen_triplet": 0}}]}, "stages.1: every loss has weight 0"),
        ("asen", {"stages": [ONE, ONE | {"loss": {"asen_pp_local": 1}}]}, "stages.1.loss.asen_pp_local"),
        (
            "m3",
            {"loss": {"m3_instance": 0, "m3_cluster": 0}},
            "score: weighted compares class-specific embeddings, which no loss of this row trains; give m3_cluster or",
        ),
    ],
)
def test_contradictions_are_refused(name, changes, sentence):
    assert sentence in refused(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("modc", {"stages": [ONE, ONE | {"loss": {"asen_triplet": 0, "modc_cluster": 1, "modc_pseudo": 1}}]}),
        ("asen_pp", {"stages": [ONE, ONE | {"global_lr": 0}]}),
        ("m3", {"train": {"epochs": 4}, "stages": [{"epoch_share": 0.13}] * 2}),
    ],
)
def test_settings_that_go_together_are_accepted(name, changes):
    row(name, **changes)


def test_all_faults_of_a_row_are_listed():
    message = refused("m3", model={"beta": 0.5}, loss={"modc_cluster": 1}, score="segment")
    assert message.count("\n  systems.m3.") == 2


def test_rows_are_checked_without_torch():
    """The first stage checks them, and importing torch takes seconds."""
    code = (
        "import sys; from pathlib import Path; from m3lib import config; "
        "config.load(Path('params.yaml')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A function that writes a person's system, toy.py, and maybe the registry, and reads the declaration."""
    monkeypatch.setattr(compatibility, "SYSTEMS_FOLDER", tmp_path)

    def declare(text: str, registry: str = 'SYSTEMS: dict[str, str] = {"toy": "toy.Toy"}\n') -> Declaration:
        (tmp_path / "__init__.py").write_text(registry)
        (tmp_path / "toy.py").write_text(text)
        compatibility.registry.cache_clear()
        compatibility.declaration.cache_clear()
        return compatibility.declaration("toy")

    yield declare
    compatibility.registry.cache_clear()
    compatibility.declaration.cache_clear()


def test_a_declaration_is_found_among_other_assignments(toy):
    """Only literals are read: nothing of a person's file is executed to check a row."""
    text = """
        import math
        from torch import nn
        BLOCK = nn.ReLU()
        class Toy:
            scale = math.sqrt(2)
            block, other = nn.ReLU(), {[]: 1}
            size: int
            outputs: set[str] = {"attribute"}
            losses = also = {"asen_triplet"}
            settings = set()
        """
    assert toy(textwrap.dedent(text)) == ({"attribute"}, {"asen_triplet"}, set())


DECLARED = 'class Toy:\n    outputs = {"attribute"}\n    settings = set()\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (DECLARED, r"toy\.py, class Toy: declare losses as literal sets of strings"),
        (DECLARED + "    losses = set(LOSSES)\n", r"toy\.py, class Toy: declare losses as literal sets"),
        (DECLARED + "    losses = {1}\n", r"toy\.py, class Toy: declare losses as literal sets"),
        (DECLARED + "    losses = 'asen_triplet'\n", r"toy\.py, class Toy: declare losses as literal sets"),
        (DECLARED + "    losses = {\n", r"toy\.py, line 4: not valid Python \("),
        (DECLARED + "\0", r"toy\.py.* (not valid Python|can't be read) \("),
        ("class Other:\n    pass\n", r"toy\.py: there is no class 'Toy', which SYSTEMS names for 'toy'"),
    ],
)
def test_a_faulty_system_file_is_one_sentence(toy, text, sentence):
    with pytest.raises(InputError, match=sentence):
        toy(text)


def test_a_registered_system_without_a_file_is_one_sentence(toy):
    with pytest.raises(InputError, match=r"absent\.py can't be read \(No such file"):
        toy(DECLARED, 'SYSTEMS = {"toy": "absent.Toy"}\n')
