"""The backbone of every network: a timm model up to its stride-16 features."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from m3lib.config import data_path
from m3lib.errors import InputError, shown
from m3lib.taxonomy import nearest

STRIDE = 16  # features after ResNet's layer3, as in all published systems
BACKBONE_PREFIX = "backbone.trunk."  # of the backbone's tensors in a model trained here (data/models/*.safetensors)


class Backbone(nn.Module):
    """A timm model up to its stride-16 features, as (B, P, C).

    scale: side of the images that it reads, relative to the stored side. prefix: of its settings in error messages.
    """

    def __init__(
        self,
        name: str,
        options: dict,
        pretrained: bool = False,
        weights: str = "",
        scale: float = 1.0,
        prefix: str = "",
    ):
        super().__init__()
        self.trunk = create_trunk(name, options, pretrained, weights, prefix)
        self.channels = self.trunk.feature_info.channels()[-1]
        self.channels_last = str(getattr(self.trunk, "output_fmt", "NCHW")).endswith("NHWC")
        self.scale = scale

    def features(self, images: Tensor) -> Tensor:
        """Return (B, C, rows, columns), about 1/16 of the sides of the scaled images (B, 3, H, W)."""
        if self.scale != 1:
            images = shrink(images, self.scale)
        features = self.trunk(images)[-1]
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).flatten(2).mT  # (B, P, C)


def shrink(images: Tensor, scale: float) -> Tensor:
    """Resize (B, 3, H, W) to sides times `scale`, at least one stride, with an antialiasing filter."""
    size = [max(STRIDE, round(scale * side)) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def create_trunk(name: str, options: dict, pretrained: bool, weights: str, prefix: str = "") -> nn.Module:
    """Return timm's feature extractor; raises InputError for a name, an option or weights that timm can't use.

    weights: a timm weight file or a model trained here; safetensors only, since loading a pickle executes its content.
    """
    import timm  # imported here: it takes seconds, and evaluation does without

    nearest(name.split(".")[0], timm.list_models(), f"backbone (model.{prefix}backbone, any timm model)")
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        reductions = timm.create_model(name, features_only=True, **arguments).feature_info.reduction()
    except Exception as error:  # timm raises many types
        reason = " ".join(str(error).split())
        raise InputError(f"model.{prefix}backbone_options {shown(options)} don't fit {name!r}: {reason}") from None
    if STRIDE not in reductions:
        raise InputError(f"model.{prefix}backbone {name!r} gives features of stride {reductions}, none of {STRIDE}")
    file = str(data_path(weights)) if weights else ""
    trained_here = read_trained_backbone(file, prefix) if file else {}
    if file and not trained_here:
        arguments["pretrained_cfg_overlay"] = {"file": file}
    arguments |= {"features_only": True, "out_indices": (reductions.index(STRIDE),)}
    arguments["pretrained"] = not trained_here and (pretrained or bool(weights))
    try:
        trunk = timm.create_model(name, **arguments)
        if trained_here:
            trunk.load_state_dict(trained_here)
        elif file:
            check_all_loaded(trunk, lambda: timm.create_model(name, **arguments))
    except Exception as error:  # timm, its hub and safetensors raise many types
        source = weights or f"timm's hub for {name!r}"
        advice = f"check model.{prefix}weights" if weights else advise_download(name, prefix)
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise InputError(f"no weights from {source} ({reason}); {advice}") from None
    return trunk


def check_all_loaded(trunk: nn.Module, create: Callable[[], nn.Module]) -> None:
    """Raise ValueError if the weight file left any tensor of the trunk at its random initialisation.

    timm only warns about a file of another network, and its names differ from the trunk's. So the network is built a
    second time under another seed: tensors that differ were not loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        second = create().state_dict()
    random = [name for name, value in trunk.state_dict().items() if not torch.equal(value, second[name])]
    if random:
        raise ValueError(f"it has nothing for {len(random)} of the backbone's tensors, such as {random[0]}")


def advise_download(name: str, prefix: str) -> str:
    """Return what to do if the hub can't be reached: the file to download, where to save it, the setting."""
    from timm.models import get_pretrained_cfg

    source = get_pretrained_cfg(name)
    if source is None or not source.hf_hub_id:
        return f"timm has none for this backbone: set model.{prefix}weights to a file of yours"
    path = f"data/weights/{name}.safetensors"
    file = f"model.safetensors of huggingface.co/{source.hf_hub_id}"
    return f"fetch {file} by hand, save it as {path}, and set model.{prefix}weights: {path}"


def read_trained_backbone(path: str, prefix: str) -> dict[str, Tensor]:
    """Return the backbone's tensors from a model trained here; empty for any other safetensors file."""
    try:
        if not path.endswith(".safetensors"):  # timm chooses the format by the name
            raise SafetensorError("its name does not end in .safetensors")
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(BACKBONE_PREFIX)]  # noqa: SIM118, not a dict
            return {name.removeprefix(BACKBONE_PREFIX): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        advice = f"check model.{prefix}weights, which takes a safetensors file"
        raise InputError(f"no weights from {path} ({reason}); {advice}") from None


@torch.no_grad()
def copy_trunk(source: Backbone, target: Backbone) -> None:
    """Copy the weights of `source` into `target`; raises InputError if their architectures differ."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError:
        raise InputError(
            "model.local_from_global copies the global backbone into the local one, but their architectures differ; "
            "give model.local_backbone and its options the same values, or set model.local_from_global to false"
        ) from None
