"""The backbone of every system: a timm model up to its stride-16 features."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from m3lib.config import data_path
from m3lib.errors import InputError, shown
from m3lib.taxonomy import nearest

STRIDE = 16  # the trunk up to ResNet's layer3, as in all published systems
OWN = "backbone.trunk."  # how a model that this repository trained names its backbone


class Backbone(nn.Module):
    """A timm model up to its stride-16 features, as (B, P, C).

    scale: the side that it reads, as a share of the images' side. prefix: of its settings in errors, such as `local_`.
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
        """(B, C, rows, columns), about a sixteenth of the sides that it reads."""
        if self.scale != 1:
            images = shrink(images, self.scale)
        found = self.trunk(images)[-1]
        return found.permute(0, 3, 1, 2) if self.channels_last else found

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).flatten(2).mT  # (B, P, C)


def shrink(images: Tensor, scale: float) -> Tensor:
    """(B, 3, h, w) float32 from (B, 3, H, W), the sides times `scale`, filtered as a photo is when made smaller."""
    size = [max(STRIDE, round(scale * side)) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def create_trunk(name: str, given: dict, pretrained: bool, weights: str, prefix: str = "") -> nn.Module:
    """timm's feature extractor; raises InputError for a name, an option, or weights that it can't use.

    weights: a timm weight file, or a model that this repository trained (data/models/*.safetensors); safetensors only,
    since reading a pickle (.pt, .pth, .bin) runs what stands in it.
    """
    import timm  # imported here: it takes seconds, and evaluation does without

    nearest(name.split(".")[0], timm.list_models(), f"backbone (model.{prefix}backbone, any timm model)")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        reductions = timm.create_model(name, features_only=True, **options).feature_info.reduction()
    except Exception as error:  # timm raises whatever its parts do
        reason = " ".join(str(error).split())
        raise InputError(f"model.{prefix}backbone_options {shown(given)} don't fit {name!r}: {reason}") from None
    if STRIDE not in reductions:
        raise InputError(f"model.{prefix}backbone {name!r} gives features of stride {reductions}, none of {STRIDE}")
    file = str(data_path(weights)) if weights else ""
    level, own = reductions.index(STRIDE), own_weights(file, prefix)
    if file and not own:
        options["pretrained_cfg_overlay"] = {"file": file}
    wanted = not own and (pretrained or bool(weights))

    def make() -> nn.Module:
        return timm.create_model(name, pretrained=wanted, features_only=True, out_indices=(level,), **options)

    try:
        trunk = make()
        if own:
            trunk.load_state_dict(own)
        elif file:
            check_filled(trunk, make)
    except Exception as error:  # hub and file errors come in many types
        where = weights or f"timm's hub for {name!r}"
        advice = f"check model.{prefix}weights" if weights else by_hand(name, prefix)
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise InputError(f"no weights from {where} ({reason}); {advice}") from None
    return trunk


def check_filled(trunk: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Raise ValueError unless the file filled the whole trunk: what is drawn anew when it is made again was not in it.

    timm itself takes a file of another network with a warning, and its names are not those of the trunk.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        again = make().state_dict()
    empty = [name for name, value in trunk.state_dict().items() if not torch.equal(value, again[name])]
    if empty:
        raise ValueError(f"it has nothing for {len(empty)} of the backbone's tensors, such as {empty[0]}")


def by_hand(name: str, prefix: str) -> str:
    """What to do where the hub can't be reached: which file to fetch, where to put it, what to set."""
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return f"timm has none for this backbone: set model.{prefix}weights to a file of your own"
    path = f"data/weights/{name}.safetensors"
    file = f"model.safetensors of huggingface.co/{known.hf_hub_id}"
    return f"fetch {file} by hand, save it as {path}, and set model.{prefix}weights: {path}"


def own_weights(path: str, prefix: str = "") -> dict[str, Tensor]:
    """The backbone out of a model that this repository trained; empty for another safetensors file, or none."""
    if not path:
        return {}
    try:
        if not path.endswith(".safetensors"):  # timm goes by the name
            raise SafetensorError("its name does not end in .safetensors")
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(OWN)]  # noqa: SIM118, not a dict
            return {name.removeprefix(OWN): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"no weights from {path} ({' '.join(str(error).split())}); check model.{prefix}weights, which takes a "
            "safetensors file"
        ) from None


@torch.no_grad()
def copy_trunk(source: Backbone, target: Backbone) -> None:
    """Give `target` the weights of `source`; raises InputError when they are built differently."""
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError:
        raise InputError(
            "model.local_from_global copies the global backbone into the local one, but their architectures differ; "
            "give model.local_backbone and its options the same values, or set model.local_from_global to false"
        ) from None
