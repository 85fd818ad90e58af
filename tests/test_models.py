"""Every network against a float64 re-computation from its weights: one image, one attribute, one class at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3lib import losses, models, training
from m3lib.errors import InputError
from reference import (
    State,
    as_float64,
    below,
    channel_gate,
    linear,
    relu,
    sigmoid,
    softmax,
    spatial_map,
    state_of,
    unit,
)
from tiny import MODEL, OWN, TAXONOMY, generator, make_system, make_variant, random_labels

NETWORKS = list(models.NETWORKS)
M3 = ["m3_a", "m3_c", "m3"]
N, M = TAXONOMY.num_attributes, TAXONOMY.num_classes
B, SIDE = 3, 48  # a 3 x 3 map
P = (SIDE // models.STRIDE) ** 2


def make_images(size: int = B, seed: int = 0) -> Tensor:
    return torch.randn(size, 3, SIDE, SIDE, generator=generator(seed))


def given_parts(outputs: models.Outputs) -> dict[str, Tensor]:
    return {name: part for name, part in outputs._asdict().items() if part is not None}


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_have_their_shapes_and_norms(network):
    outputs = make_system(network).eval()(make_images())
    shapes = {
        "attribute": (B, N, MODEL["embedding"] if network == "asen" else 16),
        "logits": (B, M),
        "classes": (B, M, MODEL["class_embedding"]),
        "attribute_maps": (B, N, P),
        "class_maps": (B, M, P),
    }
    parts = given_parts(outputs)
    assert models.NETWORKS[network].gives == set(parts) & {"attribute", "logits", "classes"}
    assert {name: tuple(part.shape) for name, part in parts.items()} == {name: shapes[name] for name in parts}
    for name, part in parts.items():
        assert part.isfinite().all()
        if name in ("attribute", "classes"):
            torch.testing.assert_close(part.norm(dim=-1), torch.ones(part.shape[:-1]))
        if name.endswith("maps"):
            torch.testing.assert_close(part.sum(dim=-1), torch.ones(part.shape[:-1]))


@pytest.mark.parametrize(
    ("network", "maps"),
    [
        ("classifier", set()),
        ("asen", {"attribute_maps"}),
        ("m3_a", {"attribute_maps"}),
        ("m3_c", {"class_maps"}),
        ("m3", {"attribute_maps", "class_maps"}),
    ],
)
def test_each_network_shows_its_attention(network, maps):
    parts = given_parts(make_system(network).eval()(make_images(1)))
    assert {name for name in parts if name.endswith("maps")} == maps


@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_is_read_alike_in_any_company(network):
    system, images, order = make_system(network).eval(), make_images(5), torch.tensor([3, 0, 4, 1])
    whole, some = (given_parts(system(x)) for x in (images, images[order]))
    for name, part in whole.items():
        torch.testing.assert_close(some[name], part[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_unit_rows_and_maps_stay_float32_under_autocast(network):
    system = make_system(network).eval()
    with torch.autocast("cpu", torch.bfloat16):
        parts = given_parts(system(make_images()))
    assert all(part.dtype == torch.float32 for name, part in parts.items() if name != "logits")
    exact = given_parts(system(make_images()))
    for name, part in parts.items():
        torch.testing.assert_close(part.float(), exact[name], rtol=0.1, atol=0.1)


def asen(w: State, X: np.ndarray) -> dict[str, np.ndarray]:
    """Methods, section 2."""
    U = np.tanh(linear(w, "project", X))  # (P, h)
    maps, found = [], []
    for n in range(N):
        a = np.tanh(w["spatial_query"][n])
        s = np.array([np.tanh(linear(w, "spatial_logit", a * U_j)[0]) for U_j in U])
        alpha = softmax(s)
        z = alpha @ X
        r = relu(w["channel_query"][n])
        inner = relu(linear(w, "channel_gate.0", np.concatenate([z, r])))
        maps.append(alpha)
        found.append(unit(linear(w, "output", z * sigmoid(linear(w, "channel_gate.2", inner)))))
    return {"attribute_maps": np.array(maps), "attribute": np.array(found)}


def attribute_branch(w: State, X: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha_n (P,), g_n (C,), h_n (C,): methods, sections 3 and 6.2 (i)."""
    query = w["table"][n]
    alpha = spatial_map(below(w, "spatial"), X, query)
    z = alpha @ X
    gate = channel_gate(below(w, "channel"), z, query)
    return alpha, gate, z * gate


def class_logit(w: State, m: int, h: np.ndarray) -> float:
    return w["head.weight"][m] @ h + w["head.bias"][m]


def m3_a(w: State, X: np.ndarray) -> dict[str, np.ndarray]:
    """Methods, section 6.5."""
    branches = [attribute_branch(below(w, "attributes"), X, n) for n in range(N)]
    h = [branch[2] for branch in branches]
    return {
        "attribute_maps": np.array([branch[0] for branch in branches]),
        "attribute": np.array([unit(h_n) for h_n in h]),
        "logits": np.array([class_logit(below(w, "attributes"), m, h[OWN[m]]) for m in range(M)]),
        "classes": np.array([unit(linear(w, "reduce", h[OWN[m]]) * relu(w["mask"][m])) for m in range(M)]),
    }


def m3_c(w: State, X: np.ndarray) -> dict[str, np.ndarray]:
    """Methods, section 6.5: no attribute attention, no parent, the gate reads [u_m; r_m]."""
    v = below(w, "classes")
    maps, logits, found = [], [], []
    for m in range(M):
        beta = spatial_map(below(v, "spatial"), X, w["table"][m])
        u = beta @ X
        kept = u * channel_gate(below(v, "channel"), u, w["table"][m])
        maps.append(beta)
        logits.append(w["head"][m] @ kept + w["bias"][m])
        found.append(unit(linear(v, "reduce", kept)))
    return {"class_maps": np.array(maps), "logits": np.array(logits), "classes": np.array(found)}


def m3(w: State, X: np.ndarray) -> dict[str, np.ndarray]:
    """Methods, section 6.2, the refined features X'_n written out."""
    v, first = below(w, "classes"), m3_a_without_classes(w, X)
    maps, found, evidence = [], [], []
    for m in range(M):
        n = int(OWN[m])
        alpha, gate, h = attribute_branch(below(w, "attributes"), X, n)
        refined = np.array([X[j] * (1 + P * alpha[j]) / 2 * gate for j in range(P)])  # (P, C)
        query = w["table"][m] + w["parent.weight"] @ w["attributes.table"][n]
        beta = spatial_map(below(v, "spatial"), refined, query)
        u = beta @ refined
        maps.append(beta)
        kept = u * channel_gate(below(v, "channel"), u, query, h)
        found.append(unit(linear(v, "reduce", kept)))
        evidence.append(w["head"][m] @ kept)
    logits = first["logits"] + np.array(evidence)
    return first | {"logits": logits, "class_maps": np.array(maps), "classes": np.array(found)}


def m3_a_without_classes(w: State, X: np.ndarray) -> dict[str, np.ndarray]:
    whole = m3_a(w | {"reduce.weight": np.ones((1, X.shape[1])), "mask": np.ones((M, 1))}, X)
    return {name: whole[name] for name in ("attribute_maps", "attribute", "logits")}


def classifier(w: State, X: np.ndarray) -> dict[str, np.ndarray]:
    return {"logits": linear(w, "head", X.mean(axis=0))}


FORMULAS: dict[str, Callable] = {"classifier": classifier, "asen": asen, "m3_a": m3_a, "m3_c": m3_c, "m3": m3}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(2))
def test_forward_against_the_formulas(network, seed):
    system = make_system(network, seed).eval()
    images = make_images(seed=seed)
    parts, X, w = given_parts(system(images)), as_float64(system.backbone(images)), state_of(system)
    for b in range(B):
        expected = FORMULAS[network](w, X[b])
        assert set(expected) == set(parts)
        for name, value in expected.items():
            np.testing.assert_allclose(parts[name][b].detach().numpy(), value, rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_backbone_is_the_trunk_to_stride_16_by_position(network):
    system, images = make_system(network).eval(), make_images()
    map_ = system.backbone.trunk(images)[-1]  # (B, C, 3, 3)
    assert map_.shape == (B, 16, 3, 3)
    X = system.backbone(images)
    for j in range(P):
        assert torch.equal(X[:, j], map_[:, :, j // 3, j % 3])


def test_posterior_is_a_softmax_or_a_sigmoid_each():
    system = make_system("classifier")
    system.positive_weight.copy_(1 + torch.rand(M, generator=generator(1)))
    logits = 3 * torch.randn(B, M, generator=generator())
    found, shifted = system.posterior(logits), as_float64(logits) - np.log(as_float64(system.positive_weight))
    for b in range(B):
        for n, attribute in enumerate(TAXONOMY.attributes):
            own = TAXONOMY.classes_of(n)
            expected = sigmoid(shifted[b, own]) if attribute.multi else softmax(shifted[b, own])
            np.testing.assert_allclose(found[b, own], expected, rtol=1e-4)


def test_posterior_recovers_the_probability_that_the_weighted_loss_was_fitted_to():
    """100 images of which a known share carries each class of details: at Loss 1's minimum, posterior = share."""
    system, details = make_system("classifier"), TAXONOMY.classes_of(1)
    labels = torch.zeros(100, M, dtype=torch.bool)
    for m, count in zip(range(details.start, details.stop), (4, 30, 50, 90), strict=True):
        labels[torch.randperm(100, generator=generator(m))[:count], m] = True
    labels[:, details.start] |= ~labels.any(dim=1)  # none unknown
    system.count_classes(labels, power=1)
    logits = torch.zeros(1, M, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = losses.classification_loss(logits.expand(100, -1), labels, system.positive_weight, OWN)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (system.positive_weight[details] > 1.5).any()
    share = labels.float().mean(dim=0)[details]
    torch.testing.assert_close(system.posterior(logits.detach())[0, details], share, atol=1e-3, rtol=1e-3)


def test_count_classes_sets_the_positive_weights():
    system = make_system("classifier")
    labels = torch.from_numpy(random_labels("partial", 50, np.random.default_rng(0)))
    system.count_classes(labels, 0.5)
    assert torch.equal(system.positive_weight, losses.positive_weights(labels, OWN, 0.5))


ASKED = {  # what each network gives, as the README's table of rows has it
    "classifier": {"loss": {"classification"}, "score": {"posterior"}},
    "asen": {"loss": {"attribute"}, "score": {"attribute"}},
    "m3_c": {
        "loss": {"classification", "instance", "cluster"},
        "score": {"concat", "top_class", "weighted", "posterior"},
    },
}
EVERY = {
    "loss": {"attribute", "classification", "instance", "cluster"},
    "score": {"attribute", "concat", "top_class", "weighted", "posterior"},
}
NO_LOSS = dict.fromkeys(EVERY["loss"], 0.0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["loss", "score"])
def test_a_loss_or_score_that_a_network_cannot_feed_is_refused(network, kind):
    can = ASKED.get(network, EVERY)
    one_loss, one_score = sorted(can["loss"])[0], sorted(can["score"])[0]
    for use in EVERY[kind]:
        loss, score = (use, one_score) if kind == "loss" else (one_loss, use)
        variant = make_variant(network, score, NO_LOSS | {loss: 1.0})
        if use in can[kind]:
            models.check_variant(variant)
        else:
            with pytest.raises(InputError, match=rf"systems\.{network}: {kind}.{use} needs \w+ outputs, .*{network}"):
                models.build(variant, TAXONOMY)


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_to_train_is_refused(network):
    with pytest.raises(InputError, match=rf"systems\.{network}: every loss has weight 0"):
        models.check_variant(make_variant(network, loss=NO_LOSS))


def build(**model: object) -> models.System:
    return models.build(make_variant("classifier", **model), TAXONOMY)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"backbone": "resnet10"}, r"unknown backbone .*'resnet10'; did you mean .*'resnet10t'"),
        (
            {"backbone_options": MODEL["backbone_options"] | {"output_stride": 8}},
            r"model\.backbone 'resnet10t' gives features of stride \[2, 4, 8, 8, 8\], none of 16",
        ),
        ({"backbone_options": {"colour": "red"}}, r"model\.backbone_options .*'colour'.* don't fit 'resnet10t'"),
        ({"backbone_options": {"stem_width": "wide"}}, r"model\.backbone_options .* don't fit 'resnet10t'"),
        ({"backbone_options": {"channels": [8, 8]}}, r"model\.backbone_options .* don't fit 'resnet10t'"),
        ({"weights": "/nowhere/trunk.safetensors"}, r"no weights from /nowhere/trunk.safetensors .*model\.weights"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_backbone_that_cannot_be_made_is_told_plainly(model, message):
    with pytest.raises(InputError, match=message) as error:
        build(**model)
    assert "\n" not in str(error.value)


def test_pretrained_without_a_net_tells_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", refuse)
    with pytest.raises(InputError, match=r"no weights from timm's hub for 'resnet10t' .*set model\.weights"):
        build(backbone_options={}, pretrained=True)


def refuse(*_: object, **__: object) -> None:
    raise OSError("no route to the hub\nand a second line")


@pytest.fixture
def weight_file(tmp_path):
    """A whole classification model's weights, as timm publishes them."""
    torch.manual_seed(99)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in MODEL["backbone_options"].items()}
    save_file(timm.create_model("resnet10t", **options).state_dict(), tmp_path / "trunk.safetensors")
    return tmp_path / "trunk.safetensors"


def test_a_local_weight_file_is_what_the_trunk_starts_from(weight_file):
    stored = load_file(weight_file)
    torch.manual_seed(0)
    trunk = build(weights=str(weight_file)).backbone.trunk.state_dict()
    assert len(trunk) > 20
    for name, value in trunk.items():
        assert torch.equal(value, stored[name]), name


def test_a_weight_file_of_another_model_or_cut_short_is_refused(weight_file, tmp_path):
    with pytest.raises(InputError, match=r"trunk\.safetensors.*check model\.weights"):
        build(backbone_options=MODEL["backbone_options"] | {"channels": [8, 8, 24, 16]}, weights=str(weight_file))
    (tmp_path / "cut.safetensors").write_bytes(weight_file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cut\.safetensors.*check model\.weights"):
        build(weights=str(tmp_path / "cut.safetensors"))


@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_reaches_every_parameter(network):
    system, loss = make_system(network).train(), make_variant(network).loss
    labels = torch.from_numpy(random_labels("multi", 16, np.random.default_rng(0)))
    if loss.cluster:
        system.centers.update(system(make_images(16, 5)).classes, labels)
    for seed in range(2):  # the second batch's draws reach what the first one's missed
        parts = training.total_loss(system(make_images(16, seed)), labels, system, loss, generator(seed))
        sum(parts.values()).backward()
    missed = {n for n, p in system.named_parameters() if p.grad is None or not (p.grad != 0).any()}
    assert missed == set()


def test_centers_are_kept_but_never_trained():
    for network in M3:
        system = make_system(network)
        names = {name for name, _ in system.named_parameters()}
        assert {"centers.value", "centers.seen"} <= set(system.state_dict()) - names


def test_building_is_the_seeds():
    first, again, other = (make_system("m3", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


class Given(torch.nn.Module):
    """A backbone that returns what it is given."""

    def forward(self, X: Tensor) -> Tensor:
        return X


@pytest.mark.parametrize("name", ["class_maps", "classes", "logits", "attribute"])
def test_gradient_flows_through_both_attentions_to_the_features(name):
    """M3-Net is progressive: along a random direction, the slope of each output is the one measured."""
    system = make_system("m3").eval().double()
    system.backbone = Given()
    X, direction = torch.randn(2, B, P, 16, generator=generator(), dtype=torch.float64)

    def value(X: Tensor) -> Tensor:
        part = getattr(system(X), name)
        return (part * torch.randn(part.shape, generator=generator(3))).sum()

    X.requires_grad_()
    value(X).backward()
    with torch.no_grad():
        measured = (value(X + 1e-3 * direction) - value(X - 1e-3 * direction)) / 2e-3
    assert float((X.grad * direction).sum()) == pytest.approx(float(measured), rel=5e-3, abs=2e-3)
