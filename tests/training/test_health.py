"""What shows whether a network is alive; and that a tiny training does not collapse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm import tqdm

from m3lib import systems
from m3lib.analysis import spaces
from m3lib.systems.base import Outputs
from m3lib.systems.losses import Batch, find_anchors
from m3lib.systems.objective import total_loss
from m3lib.training import health, inference
from m3lib.training.trainer import Trainer
from stripes import PREPARED, run, short
from tiny import OWN, generator, make_system, make_variant, random_labels

NETWORKS = [name for name in systems.SYSTEMS if name not in ("frozen", "classifier")]


def test_saturated_and_dead_units_are_counted():
    system = make_system("asen_v2").eval()
    units = {}
    for name, scale in (("small", 1e-3), ("large", 1e3)):
        with torch.no_grad():
            system.attributes.spatial.query.weight.copy_(
                scale * torch.ones_like(system.attributes.spatial.query.weight)
            )
            system.attributes.table.rows.abs_()
            system.attributes.channel.query.bias.fill_(-scale * 1e3)
        watch = health.Watch(system)
        with watch, torch.no_grad():
            system(torch.rand(2, 3, 32, 32))
        units[name] = watch.units
    assert units["small"].keys() == units["large"].keys()
    query, gate = "attributes.spatial.queries, tanh", "attributes.channel.gate, relu"
    assert units["small"][query]["saturated"] == 0
    assert units["large"][query]["saturated"] == 1
    assert units["large"][gate]["dead"] == 1
    assert not any(name.startswith("backbone") for name in units["small"])


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_its_activations_watched(network):
    system = make_system(network).eval()
    with health.Watch(system) as watch, torch.no_grad():
        system(torch.rand(2, 3, 32, 32))
    assert {"tanh", "relu", "sigmoid"} == {name.rpartition(", ")[2] for name in watch.units}


@pytest.mark.parametrize("name", ["classification", "m3_classification", "duet_classification"])
def test_the_logits_of_a_constant_minimise_the_classification_losses(name):
    """Their gradient is 0, where the labels are those that the class shares were counted on."""
    loss = make_variant("classifier", loss={"classification": 0.0} | {name: 1.0}).loss
    system, labels = make_system("classifier"), torch.from_numpy(random_labels("single", 40, np.random.default_rng(0)))
    if name != "classification":
        system.positive_weight.copy_(1 + torch.rand(len(OWN)))
    found = health.constant(Outputs(logits=torch.zeros(40, len(OWN))), system, loss, health.class_prior(labels, OWN))
    logits = found.logits[:1].clone().requires_grad_()
    batch = Batch(torch.arange(40), labels, find_anchors(labels, OWN))
    total_loss(Outputs(logits=logits.expand(40, -1)), batch, system, loss, generator())[name].backward()
    assert logits.grad.abs().max() < 1e-6


def test_a_constant_embedding_has_the_margin_as_its_triplet_loss(tmp_path):
    variant = short("asen_v2", 20, batch=24)
    system, curves = run(variant, tmp_path / "c.safetensors")
    _, losses = health.examine(system, PREPARED, variant, pd.DataFrame(curves), seed=0)
    assert losses.loc["asen_triplet", "trivial"] == pytest.approx(variant.loss.margin, rel=1e-5)
    assert losses.loc["asen_triplet", "ratio"] < 1


@pytest.mark.parametrize("best", [1, 2])
def test_the_losses_are_those_of_the_stage_of_the_best_epoch(best, tmp_path):
    """A network whose best epoch is before its second branch joined has no loss of that branch."""
    variant = short("asen_pp", 2, (0.5, 0.5))
    trainer = Trainer(PREPARED, variant, 0, 1)
    for _ in range(best):
        trainer.run_epoch(tqdm(disable=True))
    curves = pd.DataFrame({"epoch": [1, 2], "valid_map_all": np.eye(2)[best - 1]})
    _, losses = health.examine(trainer.system, PREPARED, variant, curves, seed=0)
    assert ("asen_pp_local" in losses.index) == (best == 2)


@pytest.mark.parametrize("network", ["m3_a", "m3_c", "m3"])
def test_a_tiny_training_leaves_the_class_spaces_of_each_class_its_own(network, tmp_path):
    table = trained_spaces(network, tmp_path)
    assert (table["cosine"] < 0.8).all()
    assert table["advantage"].mean() > 3


def test_the_row_m3_shared_repeats_one_space(tmp_path):
    """What the test above would find, were the spaces to collapse."""
    table = trained_spaces("m3", tmp_path, class_projection="shared", normalise_queries=False)
    assert (table["cosine"] > 0.95).all()
    assert table["advantage"].mean() < 1


def trained_spaces(network: str, path: Path, **model: object) -> pd.DataFrame:
    variant = short(network, 20, batch=24, shift=0.0, class_embedding=16, attention_width=16, **model)
    system, _ = run(variant, path / "c.safetensors", seed=0)
    return spaces.space_table(PREPARED, "valid", inference.embed(system, PREPARED, PREPARED.rows("valid"), "fp32"))
