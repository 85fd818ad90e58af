"""model.trainable: which blocks are trained, and that the others stay as they are and cost no memory."""

import pytest
import torch
from torch import Tensor, nn

from m3lib.errors import InputError
from m3lib.systems.backbone import Backbone, block_names, create_trunk
from tiny import BACKBONE, generator, make_system

LITE = "tf_efficientnet_lite0"
FAMILIES = {  # timm builds the chains of these in different ways; the last one is no chain
    "resnet10t": BACKBONE,
    LITE: {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "regnetx_002": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 2, 4, 8]},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 3},
}


def make_images(count: int = 2, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator())


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_one_after_another_are_the_trunk(name):
    own = Backbone(name, FAMILIES[name]).eval()
    with torch.no_grad():
        expected = own.trunk((make_images() - own.mean) / own.std)[-1]
        features = own.features(make_images())
    torch.testing.assert_close(features, expected.permute(0, 3, 1, 2) if own.channels_last else expected)


def test_later_blocks_of_an_efficientnet_are_dropped():
    trunk = create_trunk(LITE, {}, False, "")
    assert block_names(trunk) == ["conv_stem", "bn1", *(f"blocks.{number}" for number in range(5))]
    assert trunk.feature_info.channels()[-1] == 112


@pytest.mark.parametrize("name", ["resnet10t", LITE])
@pytest.mark.parametrize("position", [0, 3, -1, "heads", "all"])
def test_frozen_blocks_have_no_gradient_keep_their_statistics_and_save_nothing(name, position):
    blocks = block_names(create_trunk(name, FAMILIES[name], False, ""))
    trainable = position if isinstance(position, str) else blocks[position]
    own = Backbone(name, FAMILIES[name], trainable=trainable).train()
    start = {"heads": len(blocks), "all": 0}.get(trainable, position if position != -1 else len(blocks) - 1)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        output = own.features(make_images())
    assert (not saved) == (trainable == "heads")
    if trainable != "heads":
        output.square().mean().backward()
    for number, block in enumerate(blocks):
        module = own.trunk.get_submodule(block)
        assert all((parameter.grad is not None) == (number >= start) for parameter in module.parameters())
        assert all(part.training == (number >= start) for part in module.modules())
        for key, value in module.state_dict().items():
            if key.endswith("running_mean"):
                assert torch.equal(value, before[f"trunk.{block}.{key}"]) == (number < start)


@pytest.mark.parametrize(("name", "block"), [(LITE, "blocks.3"), ("swin_tiny_patch4_window7_224", "layers_1")])
def test_the_rest_computes_the_same_from_the_output_of_the_frozen_blocks(name, block):
    own = Backbone(name, FAMILIES[name], trainable=block).eval()
    images = make_images()
    output = own.frozen_output(images)
    assert output.shape[2] == output.shape[3] == {LITE: 8}.get(name, 16)
    assert torch.equal(output, output.half().float())
    assert torch.equal(own.features(images), own.features(output))


def test_normalisation_is_that_of_the_weights():
    assert Backbone(LITE, {}).mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert Backbone("resnet10t", BACKBONE).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    own = Backbone("resnet10t", BACKBONE | {"in_chans": 3}).eval()
    seen = []
    own.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    own.trunk.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    own.features(make_images())
    expected = (make_images() - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    torch.testing.assert_close(seen[0], expected)


def test_all_blocks_of_the_frozen_network_are_frozen():
    system = make_system("frozen", trainable="all").train()
    trained = [name for name, parameter in system.named_parameters() if parameter.requires_grad]
    assert trained == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert not any(part.training for part in system.backbone.trunk.modules())
    assert isinstance(system.norm, nn.BatchNorm1d)


@pytest.mark.parametrize(
    ("name", "trainable", "message"),
    [
        (LITE, "layer3", r"'layer3' is no block of model\.backbone 'tf_efficientnet_lite0' \(conv_stem, .*blocks\.4\)"),
        ("resnet10t", "blocks.3", r"'blocks\.3' is no block of .*'resnet10t' \(conv1, bn1, .*layer3\); set it to all"),
        ("resnet10t", "", r"'' is no block"),
        ("vit_tiny_patch16_224", "blocks.1", r"'blocks\.1' is no block of .*\(timm can't divide it\); set it to all"),
    ],
)
def test_a_name_of_no_block_lists_the_blocks(name, trainable, message):
    with pytest.raises(InputError, match=rf"model\.trainable: {message}"):
        Backbone(name, FAMILIES[name], trainable=trainable)
