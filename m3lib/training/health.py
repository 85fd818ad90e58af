"""Is a trained network alive? Its saturated and dead units, and how far its losses are from those of a constant.

A network may train without an error and learn nothing in one of its parts: a tanh that is always 1, a ReLU that is
always 0, embeddings that are the same for all images, at which a triplet loss equals its margin.
"""

import sys
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from m3lib.config import Loss, Variant
from m3lib.data import batches
from m3lib.data.manifest import Prepared, hold_out
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Batch, find_anchors, known_attributes
from m3lib.systems.objective import total_loss
from m3lib.training.inference import predict
from m3lib.training.schedule import StageSchedule

BATCHES = 4  # of training images
SATURATED = 0.99  # of the range of a tanh or sigmoid
ACTIVATIONS = {torch.tanh: "tanh", torch.sigmoid: "sigmoid", torch.relu: "relu", F.relu: "relu"}


class Watch(TorchFunctionMode):
    """Record every tanh, sigmoid and ReLU that a network applies behind its backbone.

    `units` has one entry per place: the function, the shares of values that are saturated (tanh, sigmoid), and of units
    (entries of the last dimension) that are 0 for every input (ReLU).
    """

    def __init__(self, system: System):
        super().__init__()
        self.names = {id(module): name for name, module in system.named_modules()}
        self.units: dict[str, dict[str, Any]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in ACTIVATIONS and (place := self.place()):
            kind, x = ACTIVATIONS[function], result.detach().float()
            place = place if f"{place}, {kind}" not in self.units else f"{place}, again"
            extreme = x.abs() > SATURATED if kind == "tanh" else (x - 0.5).abs() > SATURATED / 2
            self.units[f"{place}, {kind}"] = (
                {"dead": float((x.flatten(0, -2) == 0).all(dim=0).float().mean())}
                if kind == "relu"
                else {"saturated": float(extreme.float().mean())}
            )
        return result

    def place(self) -> str:
        """The module and method of m3lib.systems that applied the function; empty within a backbone."""
        frame = sys._getframe(2)
        while frame and not frame.f_globals.get("__name__", "").startswith("m3lib.systems."):
            frame = frame.f_back
        if frame is None or frame.f_globals["__name__"] == "m3lib.systems.backbone":
            return ""
        module = self.names.get(id(frame.f_locals.get("self")), "")
        return f"{module}.{frame.f_code.co_name}".lstrip(".")


@torch.no_grad()
def examine(
    system: System, prepared: Prepared, variant: Variant, curves: pd.DataFrame, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two tables about a trained network, in evaluation mode, on a few batches of training images.

    system, curves: what `run.fit` returned, the network at its best epoch.

    Units: one row per activation function, with the shares "saturated" and "dead" in one batch, fractions. Losses: one
    row per loss of the stage of the best epoch, with its value, its "trivial" value, that of `constant` outputs, and
    their ratio.
    """
    prepared, generator = hold_out(prepared, variant.train.held_out), Generator().manual_seed(seed)
    best = int(curves["valid_map_all"].fillna(-1)[::-1].idxmax())  # of equal epochs the last, as the trainer keeps
    rows, device, loss = (
        prepared.rows("train"),
        system.attribute_of_class.device,
        StageSchedule(variant).stage(best).loss,
    )
    prior = class_prior(torch.from_numpy(prepared.labels[rows]).to(device), system.attribute_of_class)
    drawn = torch.randperm(len(rows), generator=generator)[: BATCHES * variant.train.batch].numpy()
    parts: dict[str, list[list[float]]] = {}
    for block in np.array_split(np.sort(rows[drawn]), BATCHES):
        labels = torch.from_numpy(prepared.labels[block]).to(device)
        batch = Batch(torch.from_numpy(block), labels, find_anchors(labels, system.attribute_of_class))
        with Watch(system) as watch:  # the units of the last batch are shown
            outputs = predict(system, batches.read(prepared.images, block), variant.train.precision)
        for of in (outputs, constant(outputs, system, loss, prior)):
            for name, value in total_loss(of, batch, system, loss, generator).items():
                parts.setdefault(name, []).append(float(value))
    means = {name: [np.mean(values[0::2]), np.mean(values[1::2])] for name, values in parts.items()}
    table = pd.DataFrame(means, index=["value", "trivial"]).T
    return pd.DataFrame(watch.units).T, table.assign(ratio=table["value"] / table["trivial"])


def class_prior(labels: Tensor, attribute_of_class: Tensor) -> Tensor:
    """(M,) the share of images with each class, among those known under its attribute; labels: (I, M) bool."""
    known = known_attributes(labels, attribute_of_class).sum(dim=0)[attribute_of_class]
    return (labels.sum(dim=0) / known.clamp(min=1)).clamp(1e-6, 1 - 1e-6)


def constant(outputs: Outputs, system: System, loss: Loss, prior: Tensor) -> Outputs:
    """The outputs of a network that ignores its images: one embedding for all, and the logits of the class shares.

    These logits are the constants that minimise the classification losses.
    """
    fields = {
        name: x[:1].expand_as(x)
        for name in ("attribute", "local", "classes")
        if (x := getattr(outputs, name)) is not None
    }
    if outputs.logits is not None:
        weighted = system.positive_weight.log() + prior.logit()
        usual = torch.where(system.multi[system.attribute_of_class], prior.logit(), prior.log())
        mixed = torch.where(system.multi[system.attribute_of_class], weighted, usual)
        best = weighted if loss.m3_classification else mixed if loss.duet_classification else usual
        fields["logits"] = best.expand_as(outputs.logits)
    return outputs._replace(**fields)
