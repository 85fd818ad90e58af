"""Every network against a float64 re-computation from its weights: one image, one attribute, one class at a time."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m3lib import compatibility, systems
from m3lib.systems import backbone, losses, objective
from m3lib.systems.base import Outputs
from m3lib.systems.losses import Batch
from reference import FORMULAS, as_float64, in_float64, sigmoid, softmax, state_of
from tiny import (
    MODEL,
    OWN,
    TAXONOMY,
    generator,
    make_system,
    make_variant,
    make_whole_system,
    random_labels,
    unit_rows,
)

NETWORKS = list(systems.SYSTEMS)
ASEN_FAMILY = ["asen", "asen_v2", "asen_pp", "modc"]
N, M = TAXONOMY.num_attributes, TAXONOMY.num_classes
B, SIDE = 3, 48  # a 3 x 3 map
P = (SIDE // backbone.STRIDE) ** 2
EMBEDDINGS = {"attribute", "local", "logits", "classes"}
MAPS = {
    "frozen": set(),
    "classifier": set(),
    **{network: {"attribute_maps"} for network in ("asen", "asen_v2", "asen_pp", "modc", "m3_a", "duet")},
    "m3_c": {"class_maps"},
    "m3": {"attribute_maps", "class_maps"},
}


def make_images(size: int = B, seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.randn(size, 3, side, side, generator=generator(seed))


def given_parts(outputs: Outputs) -> dict[str, Tensor]:
    return {name: part for name, part in outputs._asdict().items() if part is not None}


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_have_their_shapes_and_norms(network):
    outputs = make_whole_system(network).eval()(make_images())
    width = MODEL["attribute_embedding"] if network in ("asen", "asen_pp") else 16
    shapes = {
        "attribute": (B, N, width),
        "local": (B, N, width),
        "logits": (B, M),
        "classes": (B, M, MODEL["class_embedding"]),
        "attribute_maps": (B, N, P),
        "class_maps": (B, M, P),
    }
    parts = given_parts(outputs)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {name: shapes[name] for name in parts}
    assert {name for name in parts if name.endswith("maps")} == MAPS[network]
    for name, part in parts.items():
        assert part.isfinite().all()
        if name in ("attribute", "local", "classes"):
            torch.testing.assert_close(part.norm(dim=-1), torch.ones(part.shape[:-1]))
        if name.endswith("maps"):
            assert (part > 0).all()
            torch.testing.assert_close(part.sum(dim=-1), torch.ones(part.shape[:-1]))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_produces_the_embeddings_that_it_declares(network):
    system = make_whole_system(network).eval()
    outputs = system(make_images(1))
    given = compatibility.outputs_of(make_variant(network))
    assert set(given_parts(outputs)) & EMBEDDINGS == given - {"centers"}
    centers = getattr(system, "centers", None)  # in the space of attributes, or of classes
    spaces = {"attribute": outputs.attribute, "classes": outputs.classes}
    widths = {name: part.shape[2] for name, part in spaces.items() if part is not None}
    assert (centers is not None) == ("centers" in given or "classes" in given)
    if centers is not None:
        assert centers.value.shape == (M, widths["attribute" if "centers" in given else "classes"])


@pytest.mark.parametrize("name", ["classification", "m3_classification"])
@pytest.mark.parametrize("network", ASEN_FAMILY)
def test_a_loss_on_class_logits_adds_heads_to_attribute_embeddings(network, name):
    loss = {name: 1.0}
    with_heads, without = make_system(network, loss=loss).state_dict(), make_system(network).state_dict()
    assert {"heads.weight", "heads.bias"} == set(with_heads) - set(without)
    assert make_system(network, loss=loss)(make_images()).logits.shape == (B, M)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_has_the_same_outputs_in_any_batch(network):
    system, images, order = make_whole_system(network).eval(), make_images(5), torch.tensor([3, 0, 4, 1])
    whole, some = (given_parts(system(x)) for x in (images, images[order]))
    for name, part in whole.items():
        torch.testing.assert_close(some[name], part[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_unit_rows_and_maps_stay_float32_under_autocast(network):
    system = make_whole_system(network).eval()
    with torch.autocast("cpu", torch.bfloat16):
        parts = given_parts(system(make_images()))
    assert all(part.dtype == torch.float32 for name, part in parts.items() if name != "logits")
    exact = given_parts(system(make_images()))
    for name, part in parts.items():
        torch.testing.assert_close(part.float(), exact[name], rtol=0.1, atol=0.1)


HEADS = {"loss": {"m3_classification": 1.0}}
CASES = [
    *[(network, {}) for network in NETWORKS],
    *[(network, {"queries": "one_hot"}) for network in ("asen_v2", "asen_pp", "modc", "m3_a", "m3")],
    *[(network, {"attention_batch_norm": False}) for network in ("asen_v2", "modc", "m3_a", "m3_c", "m3")],
    ("asen_pp", {"attention_batch_norm": True}),
    *[(network, HEADS) for network in ASEN_FAMILY],
    *[
        ("m3", {"attribute_conditioned": parent, "refine": refine})
        for parent, refine in [(False, True), (True, False), (False, False)]
    ],
    ("m3", {"attribute_conditioned": True, "refine": False, "queries": "one_hot", "attention_batch_norm": False}),
    ("m3", {"normalise_queries": False}),
    *[
        (network, {"class_projection": kind})
        for network in ("m3_a", "m3_c", "m3")
        for kind in ("factored", "masked", "shared")
    ],
]


@pytest.mark.parametrize("side", [32, 64])  # fewer positions than classes, and more
@pytest.mark.parametrize(("network", "model"), CASES, ids=lambda part: str(part).replace(" ", ""))
def test_forward_against_the_formulas(network, model, side):
    """ASEN++'s local branch has its own test."""
    system, images = make_system(network, **model).double().eval(), make_images(side=side).double()
    with in_float64():
        parts, X = given_parts(system(images)), as_float64(system.backbone(images))
    switches = {"refine": model.get("refine", True), "normalise": model.get("normalise_queries", True)}
    formula = functools.partial(FORMULAS[network], **switches if network == "m3" else {})
    for b in range(B):
        expected = formula(state_of(system), X[b], OWN.numpy())
        assert set(expected) == set(parts)
        for name, value in expected.items():
            np.testing.assert_allclose(as_float64(parts[name][b]), value, rtol=1e-8, atol=1e-10, err_msg=name)


SELECTED = [[0, 4, 8], [2], [], list(range(M)), [m for m in range(M) if OWN[m] != 1]]


@pytest.mark.parametrize("selected", SELECTED, ids=len)
@pytest.mark.parametrize("network", ["m3_a", "m3_c", "m3"])
def test_embedding_selected_classes_changes_nothing_else(network, selected):
    """Their embeddings, all other outputs, and their gradients are those of embedding all classes."""
    system, images = make_system(network).double().eval(), make_images().double()
    class_ids, found = torch.tensor(selected, dtype=torch.int64), []
    with in_float64():
        for outputs in (system(images), system(images, class_ids)):
            phi = outputs.classes if outputs.class_ids is not None else outputs.classes[:, class_ids]
            system.zero_grad()
            (phi * torch.randn(phi.shape, generator=generator(), dtype=torch.float64)).sum().backward()
            grads = {name: weight.grad for name, weight in system.named_parameters() if weight.grad is not None}
            found.append(given_parts(outputs) | {"classes": phi, "class_ids": class_ids} | grads)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-8, atol=1e-12, msg=name)


def test_class_probabilities_are_a_softmax_or_sigmoids():
    system = make_system("classifier")
    system.positive_weight.copy_(1 + torch.rand(M, generator=generator(1)))
    logits = 3 * torch.randn(B, M, generator=generator())
    found = system.class_probabilities(Outputs(logits=logits))
    shifted = as_float64(logits) - np.log(as_float64(system.positive_weight))
    for b in range(B):
        for n, attribute in enumerate(TAXONOMY.attributes):
            own = TAXONOMY.classes_of(n)
            expected = sigmoid(shifted[b, own]) if attribute.multi else softmax(shifted[b, own])
            np.testing.assert_allclose(found[b, own], expected, rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_class_probabilities_come_from_logits_or_from_centers(network):
    system = make_whole_system(network).eval()
    found = system.class_probabilities(system(make_images()))
    assert (found is not None) == bool(compatibility.outputs_of(make_variant(network)) & {"logits", "centers"})


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_modc_class_probabilities_are_a_softmax_over_the_centers_seen(temperature):
    system, missing = make_system("modc", temperature=temperature), {1, 7, 8}  # all of sleeve's
    system.centers.value.copy_(unit_rows(M, 16, seed=1))
    system.centers.seen.copy_(torch.tensor([m not in missing for m in range(M)]))
    f = unit_rows(B, N, 16)
    found = system.class_probabilities(Outputs(f))
    for b in range(B):
        for n in range(N):
            own = range(M)[TAXONOMY.classes_of(n)]
            cosines = {m: as_float64(f[b, n]) @ as_float64(system.centers.value[m]) for m in own if m not in missing}
            share = {m: np.exp(cosine / temperature) for m, cosine in cosines.items()}
            for m in own:
                expected = share.get(m, 0) / sum(share.values()) if share else 1 / len(own)
                assert float(found[b, m]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert found[:, 1].eq(0).all()


OTHER = {  # another value of each setting of model that is no file
    "input_scale": 0.7, "attention_width": 14, "attribute_embedding": 11, "class_embedding": 7, "queries": "one_hot",
    "class_projection": "masked", "normalise_queries": False, "attribute_conditioned": False,
    "refine": False, "local_backbone_options": MODEL["backbone_options"] | {"stem_width": 16},
    "local_from_global": True, "local_attention_width": 10, "local_size": 1.0, "box_threshold": 0.9, "beta": 0.3,
    "temperature": 0.5, "views": 1,
}  # fmt: skip


def shown(network: str, **model: object) -> list[Tensor]:
    """Everything a setting of model can change: outputs, what retrieval stores, and the posterior."""
    system, images = make_whole_system(network, **model).eval(), make_images(1)
    if hasattr(system, "centers"):
        system.centers.value.copy_(unit_rows(*system.centers.value.shape))
        system.centers.seen.fill_(True)
    with torch.no_grad():
        outputs = system(images)
        parts = [*outputs, system.retrieval_embedding(outputs), system.class_probabilities(outputs)]
        parts.append(torch.tensor(system.views))
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_reads_the_settings_that_it_declares_and_no_others(network):
    first = shown(network)
    others = OTHER | {"attention_batch_norm": not make_variant(network).model.attention_batch_norm}
    changed = set()
    for name, value in others.items():
        again = shown(network, **{name: value})
        alike = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, again, strict=True)]
        changed |= set() if all(alike) else {name}
    assert changed == set(others) & (compatibility.COMMON_SETTINGS | compatibility.declaration(network).settings)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_reaches_every_parameter(network):
    system, loss = make_whole_system(network).train(), make_variant(network).stages[-1].loss
    labels = torch.from_numpy(random_labels("multi", 16, np.random.default_rng(0)))
    batch = Batch(torch.arange(16), labels, losses.find_anchors(labels, OWN))
    if hasattr(system, "centers"):
        objective.update_centers(system(make_images(16, 5)), labels, system, loss)
        assert system.centers.seen.all()
    for seed in range(2):  # the second batch's draws reach what the first one's missed
        parts = objective.total_loss(system(make_images(16, seed)), batch, system, loss, generator(seed))
        sum(parts.values()).backward()
    trained = {name: weight for name, weight in system.named_parameters() if weight.requires_grad}
    missed = {name for name, weight in trained.items() if weight.grad is None or not (weight.grad != 0).any()}
    assert missed == set()


@pytest.mark.parametrize("network", ["asen_pp", "m3"])
def test_initial_weights_depend_on_the_seed_only(network):
    first, again, other = (make_system(network, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


class Given(nn.Module):
    """A backbone that returns what it is given."""

    def forward(self, X: Tensor) -> Tensor:
        return X


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("name", ["class_maps", "classes", "logits", "attribute"])
def test_gradient_flows_through_both_attentions_to_the_features(name, refine):
    """M3-Net is progressive: along a random direction, the slope of each output is the one measured."""
    system = make_system("m3", refine=refine).eval().double()
    system.backbone = Given()
    X, direction = torch.randn(2, B, P, 16, generator=generator(), dtype=torch.float64)

    def value(X: Tensor) -> Tensor:
        part = getattr(system(X), name)
        return (part * torch.randn(part.shape, generator=generator(3))).sum()

    with in_float64():
        value(X.requires_grad_()).backward()
        with torch.no_grad():
            measured = (value(X + 1e-5 * direction) - value(X - 1e-5 * direction)) / 2e-5
    assert float((X.grad * direction).sum()) == pytest.approx(float(measured), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("refine", "reached"), [(True, True), (False, False)])
def test_only_refinement_lets_the_attribute_map_steer_where_a_class_looks(refine, reached):
    system = make_system("m3", refine=refine, attribute_conditioned=False).eval()
    maps = system(make_images()).class_maps
    (maps * torch.randn(maps.shape, generator=generator())).sum().backward()
    grad = system.attributes.spatial.query.weight.grad
    assert (grad is not None and bool((grad != 0).any())) == reached
