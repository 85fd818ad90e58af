"""How a training proceeds over time: its stages, its learning rate, and its optimiser."""

from itertools import accumulate

import numpy as np
import torch

from m3lib.config import Stage, Train, Variant
from m3lib.systems.base import System


def stage_ends(variant: Variant) -> list[int]:
    """Return the epoch before which each stage ends: cumulative epoch_share times epochs, at least one epoch each."""
    ends = [0]
    for share in accumulate(stage.epoch_share for stage in variant.stages):
        ends.append(max(round(share * variant.train.epochs), ends[-1] + 1))
    return ends[1:]


class StageSchedule:
    """Which stage an epoch belongs to, and which epochs share one learning-rate schedule."""

    def __init__(self, variant: Variant):
        self.stages, self.ends = variant.stages, stage_ends(variant)
        self.epochs = self.ends[-1]
        starts = zip([0, *self.ends[:-1]], self.stages, strict=True)
        self.restarts = [0, *[start for start, stage in starts if stage.restart and start], self.epochs]

    def stage(self, epoch: int) -> Stage:
        return self.stages[next(number for number, end in enumerate(self.ends) if epoch < end)]

    def cycle(self, epoch: int) -> tuple[int, int]:
        """Return the epochs [start, end) of the learning-rate schedule that contains this epoch."""
        number = next(number for number, restart in enumerate(self.restarts) if epoch < restart)
        return self.restarts[number - 1], self.restarts[number]


def learning_rate(step: int, steps: int, train: Train, steps_per_epoch: int) -> float:
    """Return the learning rate at one step of a schedule of `steps` steps.

    cosine: linear warm-up, then half a cosine down to zero. step: times step_factor after every step_epochs epochs.
    """
    if train.schedule == "step":
        return train.lr * train.step_factor ** (step // (steps_per_epoch * train.step_epochs))
    warmup = max(1, round(train.warmup * steps))
    if step < warmup:
        return train.lr * (step + 1) / warmup
    return train.lr * 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(system: System, train: Train) -> torch.optim.Optimizer:
    """Return an optimiser with two parameter groups: ASEN++'s local branch, and everything else ("global").

    A stage's global_lr scales the learning rate of the group "global".
    """
    local = {id(parameter) for parameter in system.local_parameters()}
    groups = [
        {"params": [p for p in system.parameters() if (id(p) not in local) == is_global], "global": is_global}
        for is_global in (True, False)
    ]
    optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer]
    groups = [group for group in groups if group["params"]]
    return optimizer(groups, lr=train.lr, weight_decay=train.weight_decay, fused=True)
