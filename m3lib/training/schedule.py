"""How a training proceeds over time: its stages, its learning rate, and its optimiser."""

import math
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import torch

from m3lib.config import Stage, Train, Variant
from m3lib.systems.base import System


class StageSchedule:
    """Which stage an epoch belongs to, and which epochs share one learning-rate schedule.

    A stage ends at its cumulative epoch_share times train.epochs, rounded; the last one is rounded up, so that no row
    loses an epoch. Every stage has at least one, at the cost of the stage before.
    """

    def __init__(self, variant: Variant):
        self.stages, self.borders = variant.stages, [0]  # stage n has the epochs [borders[n], borders[n + 1])
        *inner, last = accumulate(stage.epoch_share for stage in self.stages)
        count, epochs = len(self.stages), variant.train.epochs
        self.epochs = max(count, math.ceil(round(last * epochs, 6)))  # shares of 0.1 don't add up exactly
        for number, share in enumerate(inner, 1):
            end = max(round(share * epochs), self.borders[-1] + 1)
            self.borders.append(min(end, self.epochs - (count - number)))
        self.borders.append(self.epochs)
        starts = zip(self.borders[1:-1], self.stages[1:], strict=True)
        self.restarts = [0, *[start for start, stage in starts if stage.restart], self.epochs]

    def stage(self, epoch: int) -> Stage:
        return self.stages[bisect_right(self.borders, epoch) - 1]

    def cycle(self, epoch: int) -> tuple[int, int]:
        """Return the epochs [start, end) of the learning-rate schedule that contains this epoch."""
        number = bisect_right(self.restarts, epoch)
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

    A stage's global_lr scales the learning rate of the group "global". The local branch's parameters are named local_*.
    """
    groups = [{"params": [], "global": is_global} for is_global in (True, False)]
    for name, parameter in system.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("local_")]["params"].append(parameter)
    optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[train.optimizer]
    return optimizer(
        [group for group in groups if group["params"]], lr=train.lr, weight_decay=train.weight_decay, fused=True
    )
