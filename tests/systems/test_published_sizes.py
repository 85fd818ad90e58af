"""Networks at the published setting: shapes and parameter counts, layer by layer."""

import pytest
import torch

from m3lib import systems
from m3lib.taxonomy import Attribute, Taxonomy
from tiny import make_variant

FASHION_AI = Taxonomy(
    tuple(
        Attribute(name, tuple(f"{name} {k}" for k in range(size)))
        for name, size in [
            ("skirt", 6), ("sleeve", 9), ("coat", 8), ("pant", 6), ("collar", 5), ("lapel", 5), ("neckline", 10),
            ("neck", 5),
        ]
    )
)  # fmt: skip
PUBLISHED = {
    "backbone": "resnet50", "backbone_options": {}, "attention_width": 512, "attribute_embedding": 1024,
    "local_backbone": "resnet34", "local_backbone_options": {}, "local_attention_width": 256, "local_size": 0.5,
    "local_from_global": False,
}  # fmt: skip


def layer(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + outputs * bias


def conv(side: int, inputs: int, outputs: int) -> int:
    """A convolution without bias, and its batch norm."""
    return side**2 * inputs * outputs + 2 * outputs


def resnet34_to_layer3() -> int:
    total, inputs = conv(7, 3, 64), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6)):
        total += conv(3, inputs, width) + (2 * blocks - 1) * conv(3, width, width)
        total += conv(1, inputs, width) if width != inputs else 0  # the shortcut that changes the width
        inputs = width
    return total


def resnet50_to_layer3() -> int:
    total, inputs = conv(7, 3, 64), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6)):
        for _ in range(blocks):
            total += conv(1, inputs, width) + conv(3, width, width) + conv(1, width, 4 * width)
            total += conv(1, inputs, 4 * width) if inputs != 4 * width else 0
            inputs = 4 * width
    return total


ATTRIBUTES = 8
GATE = {"query": layer(512, 512), "[z; r]": layer(1024 + 512, 512), "write": layer(512, 1024)}
PARAMETERS = {  # methods, sections 2 to 4, layer by layer
    "asen": {
        "backbone": resnet50_to_layer3(),
        "conv": layer(1024, 512),
        "spatial one-hot": layer(ATTRIBUTES, 512, bias=False),
        "conv to logit": layer(512, 1),
        "channel one-hot": layer(ATTRIBUTES, 1024, bias=False),
        "[z; r]": layer(2048, 512),
        "write": layer(512, 1024),
        "output": layer(1024, 1024),
    },
    "asen_v2": {
        "backbone": resnet50_to_layer3(),
        "A": ATTRIBUTES * 512,
        "conv": layer(1024, 512, bias=False),  # the released one has a bias, which its batch norm cancels
        "norm": 2 * 512,
        "spatial query": layer(512, 512),
        **GATE,
    },
    "asen_pp": {
        "backbone": resnet50_to_layer3(),
        "A": ATTRIBUTES * 512,
        "conv": layer(1024, 512),
        "spatial query": layer(512, 512),
        **GATE,
        "output": layer(1024, 1024),
        "local backbone": resnet34_to_layer3(),
        "local conv": layer(256, 256),
        "local spatial query": layer(512, 256),
        "local channel query": layer(512, 512),
        "local [z; r]": layer(256 + 512, 128),
        "local write": layer(128, 256),
        "local output": layer(256, 1024),
    },
}


@pytest.mark.parametrize("network", PARAMETERS)
def test_published_sizes(network):
    """On the meta device: shapes and counts without numbers."""
    assert resnet50_to_layer3() == 8_543_296
    with torch.device("meta"):
        system = systems.build(make_variant(network, **PUBLISHED), FASHION_AI).eval()
        seen = {}
        if network == "asen_pp":
            system.joined = torch.tensor(True, device="cpu")
            system.local_backbone.register_forward_hook(lambda _, x, y: seen.update(read=x[0].shape, X=y.shape))
        outputs = system(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in system.parameters()) == sum(PARAMETERS[network].values())
    assert outputs.attribute.shape == (1, ATTRIBUTES, 1024)
    assert outputs.attribute_maps.shape == (1, ATTRIBUTES, 14 * 14)
    if network == "asen_pp":
        assert seen == {"read": (ATTRIBUTES, 3, 112, 112), "X": (ATTRIBUTES, 7 * 7, 256)}
        assert outputs.local.shape == (1, ATTRIBUTES, 1024)
        assert system.retrieval_embedding(outputs).shape == (1, ATTRIBUTES, 2048)
