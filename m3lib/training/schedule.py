"""How a training runs over time: its stages, its learning rate, and the optimiser that obeys them."""

from itertools import accumulate

import numpy as np
import torch

from m3lib.config import Stage, Train, Variant
from m3lib.systems.base import System


def learning_rate(step: int, steps: int, train: Train, steps_per_epoch: int) -> float:
    """At a step of a schedule that is `steps` long.

    cosine: linear warm-up, then half a cosine down to zero. step: times step_factor after every step_epochs epochs.
    """
    if train.schedule == "step":
        return train.lr * train.step_factor ** (step // (steps_per_epoch * train.step_epochs))
    warmup = max(1, round(train.warmup * steps))
    if step < warmup:
        return train.lr * (step + 1) / warmup
    return train.lr * 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


class Plan:
    """Which stage an epoch belongs to, and which epochs share one learning-rate schedule."""

    def __init__(self, variant: Variant):
        self.stages = variant.stages
        self.ends = stage_ends(variant)
        self.epochs = self.ends[-1]
        begins = [0, *self.ends[:-1]]
        anew = [begin for begin, stage in zip(begins, self.stages, strict=True) if stage.restart and begin]
        self.borders = [0, *anew, self.epochs]

    def stage(self, epoch: int) -> Stage:
        return self.stages[next(number for number, end in enumerate(self.ends) if epoch < end)]

    def schedule(self, epoch: int) -> tuple[int, int]:
        """First epoch, and the epoch after the last one, of the schedule that this epoch is in."""
        later = next(number for number, border in enumerate(self.borders) if epoch < border)
        return self.borders[later - 1], self.borders[later]


def make_optimizer(system: System, train: Train) -> torch.optim.Optimizer:
    """Two groups of parameters: those that a stage's global_lr scales, and a local branch's, which it spares."""
    local = {id(parameter) for parameter in system.local_parameters()}
    groups = [
        {"params": [p for p in system.parameters() if (id(p) not in local) == is_global], "global": is_global}
        for is_global in (True, False)
    ]
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer]
    groups = [group for group in groups if group["params"]]
    return kind(groups, lr=train.lr, weight_decay=train.weight_decay, fused=True)


def stage_ends(variant: Variant) -> list[int]:
    """The epoch before which each stage ends; shares add up before rounding, and a stage has at least one epoch."""
    ends = [0]
    for share in accumulate(stage.epoch_share for stage in variant.stages):
        ends.append(max(round(share * variant.train.epochs), ends[-1] + 1))
    return ends[1:]
