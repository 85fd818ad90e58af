"""The backbone of every network: a timm model up to its stride-16 features."""

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from m3lib.config import data_path
from m3lib.errors import InputError, shown
from m3lib.taxonomy import one_line

STRIDE = 16  # features after ResNet's layer3, as in all published systems
BACKBONE_PREFIX = "backbone.trunk."  # of the backbone's tensors in a model trained here (data/models/*.safetensors)


class Backbone(nn.Module):
    """A timm model up to its stride-16 features, as (B, P, C).

    scale: side of the images that it reads, relative to the stored side. prefix: of its settings in error messages.
    """

    def __init__(
        self, name: str, options: dict, pretrained: bool = False, weights: str = "", scale: float = 1, prefix: str = ""
    ):
        super().__init__()
        self.trunk = create_trunk(name, options, pretrained, weights, prefix)
        self.channels = self.trunk.feature_info.channels()[-1]
        self.channels_last = str(getattr(self.trunk, "output_fmt", "NCHW")).endswith("NHWC")
        self.scale = scale

    def features(self, images: Tensor) -> Tensor:
        """Return (B, C, rows, columns), about 1/16 of the sides of the scaled images (B, 3, H, W)."""
        if self.scale != 1:
            sides = [max(STRIDE, round(self.scale * side)) for side in images.shape[2:]]
            images = F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False)
        features = self.trunk(images)[-1]
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).flatten(2).mT  # (B, P, C)


def create_trunk(name: str, options: dict, pretrained: bool, weights: str, prefix: str = "") -> nn.Module:
    """Return timm's feature extractor; raises InputError for a name, an option or weights that timm can't use.

    weights: a timm weight file or a model trained here; safetensors only, since loading a pickle executes its content.
    """
    import timm  # imported here: it takes seconds, and evaluation does without

    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    arguments["features_only"] = True
    try:
        strides = timm.create_model(name, **arguments).feature_info.reduction()
    except Exception as error:  # timm raises many types
        problem = f"model.{prefix}backbone_options {shown(options)} don't fit {name!r}"
        raise InputError(f"{problem}: {one_line(str(error))}") from None
    if STRIDE not in strides:
        raise InputError(f"model.{prefix}backbone {name!r} gives features of stride {strides}, none of {STRIDE}")
    arguments["out_indices"] = (strides.index(STRIDE),)
    try:
        if not weights:
            return timm.create_model(name, pretrained=pretrained, **arguments)
        file = str(data_path(weights))
        if trained_here := read_trained_backbone(file):
            trunk = timm.create_model(name, **arguments)
            trunk.load_state_dict(trained_here)
            return trunk
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
        trunk = timm.create_model(name, **arguments)
        # timm only warns about a file of another network, and its names differ from the trunk's. So the trunk is built
        # a second time under another seed: tensors that differ were not loaded.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            second = timm.create_model(name, **arguments).state_dict()
        random = [key for key, value in trunk.state_dict().items() if not torch.equal(value, second[key])]
        if random:
            raise ValueError(f"it has nothing for {len(random)} of the backbone's tensors, such as {random[0]}")
        return trunk
    except Exception as error:  # timm, its hub and safetensors raise many types
        source = weights or f"timm's hub for {name!r}"
        advice = f"check model.{prefix}weights" if weights else advise_download(name, prefix)
        reason = one_line(str(error) or type(error).__name__)[:300]
        raise InputError(f"no weights from {source} ({reason}); {advice}") from None


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
