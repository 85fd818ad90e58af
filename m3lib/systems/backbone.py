"""The backbone of every network: a timm model up to its stride-16 features, of which the first blocks may be frozen."""

import logging

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from m3lib.config import data_path
from m3lib.errors import InputError, shown
from m3lib.systems.imagenet import converted_file
from m3lib.taxonomy import one_line

STRIDE = 16  # features after ResNet's layer3, as in all published systems
BACKBONE_PREFIX = "backbone.trunk."  # of the backbone's tensors in a model trained here (data/models/*.safetensors)


class Backbone(nn.Module):
    """A timm model up to its stride-16 features, as (B, P, C).

    It normalises images as its weights were trained (timm's `pretrained_cfg`). Its blocks compute one after another.
    Those before the first trained one are frozen: they get no gradient, nothing of them is kept for the backward pass,
    and they stay in evaluation mode. Their output is rounded to half precision, so that it may be stored.

    scale: side of the images that it reads, relative to the stored side. prefix: of its settings in error messages.
    trainable: all, heads (no block), or the name of the first trained block. pooled: the whole model with its pooled
    output, as one frozen block, (B, 1, C).
    """

    def __init__(
        self,
        name: str,
        options: dict,
        pretrained: bool = False,
        weights: str = "",
        scale: float = 1,
        prefix: str = "",
        trainable: str = "all",
        pooled: bool = False,
    ):
        super().__init__()
        self.trunk = create_trunk(name, options, pretrained, weights, prefix, pooled)
        self.channels = self.trunk.head_hidden_size if pooled else self.trunk.feature_info.channels()[-1]
        self.channels_last = str(getattr(self.trunk, "output_fmt", "NCHW")).endswith("NHWC")
        self.scale = scale
        for statistic in ("mean", "std"):
            values = torch.tensor(self.trunk.pretrained_cfg[statistic])[:, None, None]
            self.register_buffer(statistic, values, persistent=False)
        blocks = block_names(self.trunk)
        start = first_trained(blocks, "heads" if pooled else trainable, f"model.{prefix}backbone {name!r}")
        self.frozen_blocks, self.trained_blocks = blocks[:start], blocks[start:]
        for block in self.frozen_blocks:
            self.trunk.get_submodule(block).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for block in self.frozen_blocks:
            self.trunk.get_submodule(block).eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return (B, C, rows, columns), about 1/16 of the sides of the scaled images.

        images: (B, 3, H, W) in [0, 1], or what the frozen blocks made of them (B, c, h, w).
        """
        x = self.frozen_output(images) if images.shape[1] == 3 else images
        return self.through(self.trained_blocks, x) if self.trained_blocks else x

    def frozen_output(self, images: Tensor) -> Tensor:
        """Return the output (B, c, h, w) of the frozen blocks; the normalised images, if no block is frozen."""
        if self.scale != 1:
            sides = [max(STRIDE, round(self.scale * side)) for side in images.shape[2:]]
            images = F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False)
        x = (images - self.mean) / self.std
        if not self.frozen_blocks:
            return x
        with torch.no_grad():
            return self.through(self.frozen_blocks, x).half().to(images.dtype)

    def through(self, blocks: list[str], x: Tensor) -> Tensor:
        """Return the output of some blocks, (B, c, h, w), for images or the output of the blocks before."""
        if self.channels_last and blocks == self.trained_blocks and self.frozen_blocks:
            x = x.permute(0, 2, 3, 1)
        for block in blocks:
            x = self.trunk.get_submodule(block)(x)
        if isinstance(x, list):  # of a trunk that is one block
            x = x[-1]
        if x.dim() == 2:  # pooled
            return x[:, :, None, None]
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).flatten(2).mT  # (B, P, C)


def is_efficientnet(trunk: nn.Module) -> bool:
    """Whether a feature extractor is of the EfficientNet or MobileNet family, which timm builds in its own way."""
    return [name for name, _ in trunk.named_children()] == ["conv_stem", "bn1", "blocks"]


def block_names(trunk: nn.Module) -> list[str]:
    """Return the names of the blocks of a trunk, each of which reads the output of the one before.

    A trunk that timm does not build as a chain of blocks is one block, with the empty name.
    """
    from timm.models._features import FeatureListNet

    children = list(dict(trunk.named_children()))
    if isinstance(trunk, FeatureListNet):
        return children
    if is_efficientnet(trunk):
        return [*children[:2], *(f"blocks.{number}" for number in range(len(trunk.blocks)))]
    return [""]


def first_trained(blocks: list[str], trainable: str, what: str) -> int:
    """Return the number of the first trained block; raises InputError if model.trainable names none."""
    if trainable in ("all", "heads"):
        return 0 if trainable == "all" else len(blocks)
    if trainable not in blocks or not trainable:
        whole = blocks == [""]
        names = "timm can't divide it" if whole else ", ".join(blocks)
        advice = "all or heads" if whole else "all, heads or a block"
        raise InputError(f"model.trainable: {trainable!r} is no block of {what} ({names}); set it to {advice}")
    return blocks.index(trainable)


def create_trunk(
    name: str, options: dict, pretrained: bool, weights: str, prefix: str = "", pooled: bool = False
) -> nn.Module:
    """Return timm's feature extractor; raises InputError for a name, an option or weights that timm can't use.

    weights: a timm weight file or a model trained here; safetensors only, since loading a pickle executes its content.
    pooled: the whole model, with pooled output, instead of a feature extractor.
    """
    import timm  # imported here: it takes seconds, and evaluation does without

    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    arguments |= {"num_classes": 0} if pooled else {"features_only": True}
    try:
        trunk = timm.create_model(name, **arguments)
    except Exception as error:  # timm raises many types
        problem = f"model.{prefix}backbone_options {shown(options)} don't fit {name!r}"
        raise InputError(f"{problem}: {one_line(str(error))}") from None
    if not pooled:
        strides = trunk.feature_info.reduction()
        if STRIDE not in strides:
            raise InputError(f"model.{prefix}backbone {name!r} gives features of stride {strides}, none of {STRIDE}")
        arguments["out_indices"] = (strides.index(STRIDE),)
    packaged = converted_file(name) if pretrained and not weights else None
    try:
        if file := packaged or (data_path(weights) if weights else None):
            return trunk_from_file(name, arguments, str(file))
        return without_later_blocks(timm.create_model(name, pretrained=pretrained, **arguments))
    except Exception as error:  # timm, its hub and safetensors raise many types
        source = weights or (str(packaged) if packaged else f"timm's hub for {name!r}")
        advice = f"check model.{prefix}weights" if weights else advise_download(name, prefix)
        if packaged:
            advice = "run `dvc repro weights`"
        reason = one_line(str(error) or type(error).__name__)[:300]
        raise InputError(f"no weights from {source} ({reason}); {advice}") from None


def trunk_from_file(name: str, arguments: dict, file: str) -> nn.Module:
    """Return a trunk with the weights of a file; raises ValueError if it does not hold all of them."""
    import timm

    if trained_here := read_trained_backbone(file):
        trunk = without_later_blocks(timm.create_model(name, **arguments))
        trunk.load_state_dict(trained_here)
        return trunk
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)  # it warns of later blocks, which we leave out
    arguments = arguments | {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    trunk = without_later_blocks(timm.create_model(name, **arguments))
    # timm only warns about a file of another network, and its names differ from the trunk's. So the trunk is built
    # a second time under another seed: tensors that differ were not loaded.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        second = without_later_blocks(timm.create_model(name, **arguments)).state_dict()
    random = [key for key, value in trunk.state_dict().items() if not torch.equal(value, second[key])]
    if random:
        raise ValueError(f"it has nothing for {len(random)} of the backbone's tensors, such as {random[0]}")
    return trunk


def without_later_blocks(trunk: nn.Module) -> nn.Module:
    """Drop the blocks behind the last feature map, which timm keeps, and computes, in the EfficientNet family."""
    if is_efficientnet(trunk):
        last = trunk.feature_info.get_dicts()[-1]["module"]  # such as blocks.4
        trunk.blocks = trunk.blocks[: int(last.removeprefix("blocks.")) + 1]
    return trunk


def advise_download(name: str, prefix: str) -> str:
    """Return what to do if the hub can't be reached: the file to download, where to save it, the setting."""
    import timm

    hub = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not hub:
        return f"timm has none for this backbone: set model.{prefix}weights to a file of yours"
    path = f"data/weights/{name}.safetensors"
    file = f"model.safetensors of huggingface.co/{hub}"
    return f"fetch {file} by hand, save it as {path}, and set model.{prefix}weights: {path}"


def read_trained_backbone(path: str) -> dict[str, Tensor]:
    """Return the backbone's tensors from a model trained here; empty for any other safetensors file."""
    if not path.endswith(".safetensors"):  # timm chooses the format by the name
        raise ValueError("its name does not end in .safetensors")
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(BACKBONE_PREFIX)]  # noqa: SIM118, not a dict
        return {name.removeprefix(BACKBONE_PREFIX): file.get_tensor(name) for name in names}


@torch.no_grad()
def copy_trunk(source: Backbone, target: Backbone) -> None:
    """Copy the weights of `source` into `target`; raises InputError if their architectures differ."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError:
        advice = "set model.local_backbone and its options to the global backbone's, or local_from_global to false"
        raise InputError(f"model.local_from_global copies one backbone to another architecture: {advice}") from None
