"""Schedule: learning rates, the schedule of stages, and which parameters an optimiser moves how fast."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tqdm import tqdm

from m3lib import systems
from m3lib.config import Stage, Variant
from m3lib.training import schedule
from m3lib.training.schedule import StageSchedule
from m3lib.training.trainer import Trainer
from stripes import PREPARED, same, short
from tiny import SETTINGS

NETWORKS = list(systems.SYSTEMS)


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 100), (0, 10), (0.5, 7), (1, 10), (0.3, 1)])
def test_the_cosine_rises_to_its_peak_and_falls_to_zero(warmup, steps):
    train = replace(short("m3").train, schedule="cosine", warmup=warmup, lr=0.5)
    rates = [schedule.learning_rate(step, steps, train, 3) for step in range(steps + 1)]
    peak = max(1, round(warmup * steps)) - 1
    assert rates[: peak + 1] == pytest.approx([0.5 * (k + 1) / (peak + 1) for k in range(peak + 1)])
    assert max(rates) == rates[peak] == 0.5
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    if peak + 1 < steps:
        assert rates[steps] == pytest.approx(0)
        assert schedule.learning_rate((peak + 1 + steps) / 2, steps, train, 3) == pytest.approx(0.25)


@pytest.mark.parametrize(("step_epochs", "factor"), [(1, 0.985), (3, 0.9), (2, 1.0)])
def test_the_step_schedule_falls_after_every_few_epochs(step_epochs, factor):
    train = replace(short("m3").train, schedule="step", step_epochs=step_epochs, step_factor=factor, lr=0.5, warmup=1)
    rates = [schedule.learning_rate(step, 7 * 4, train, 4) for step in range(7 * 4)]
    expected = []
    rate = 0.5
    for epoch in range(7):
        if epoch and epoch % step_epochs == 0:
            rate *= factor
        expected += [rate] * 4
    assert rates == pytest.approx(expected)


STAGES = [  # (share, restart) of the stages, epochs; the stage of every epoch, and the schedules
    ([(1.0, False)], 4, [0] * 4, [(0, 4)]),
    ([(0.4, False), (0.3, False), (0.3, False)], 4, [0, 0, 1, 2], [(0, 4)]),
    ([(0.4, False), (0.3, False), (0.3, False)], 50, [0] * 20 + [1] * 15 + [2] * 15, [(0, 50)]),
    ([(0.5, False), (0.25, True)], 4, [0, 0, 1], [(0, 2), (2, 3)]),
    ([(1.0, False), (0.4, True)], 50, [0] * 50 + [1] * 20, [(0, 50), (50, 70)]),
    ([(0.5, False), (0.5, True), (0.5, False)], 4, [0, 0, 1, 1, 2, 2], [(0, 2), (2, 6)]),
    ([(0.5, False), (0.25, True), (0.25, True)], 4, [0, 0, 1, 2], [(0, 2), (2, 3), (3, 4)]),
    ([(0.01, False), (0.99, True)], 3, [0, 1, 1], [(0, 1), (1, 3)]),  # no stage is shorter than an epoch
    ([(1.0, False), (0.1, True)], 3, [0] * 3 + [1], [(0, 3), (3, 4)]),
    ([(0.75, False), (0.25, True)], 6, [0] * 4 + [1] * 2, [(0, 4), (4, 6)]),  # the last stage takes the rest
    ([(0.5, False), (0.25, True)], 6, [0] * 3 + [1] * 2, [(0, 3), (3, 5)]),
    ([(0.75, False), (0.25, True)], 2, [0, 1], [(0, 1), (1, 2)]),
    ([(0.1, False)] * 3, 10, [0, 1, 2], [(0, 3)]),  # their sum is 0.30000000000000004
    ([(0.7, False), (0.2, False), (0.1, False)], 10, [0] * 7 + [1] * 2 + [2], [(0, 10)]),
]


def staged(*stages: tuple[float, bool], epochs: int, **changes: object) -> Variant:
    base = short("m3", epochs, **changes)
    made = [Stage(share, restart, 1.0, replace(base.loss), base.train) for share, restart in stages]
    return replace(base, stages=tuple(made))


@pytest.mark.parametrize(("stages", "epochs", "numbers", "cycles"), STAGES)
def test_each_epoch_has_its_stage_and_its_learning_rate_cycle(stages, epochs, numbers, cycles):
    variant = staged(*stages, epochs=epochs)
    schedule = StageSchedule(variant)
    assert schedule.epochs == len(numbers)
    found = [schedule.stage(epoch) for epoch in range(schedule.epochs)]
    assert [next(k for k, stage in enumerate(variant.stages) if stage is own) for own in found] == numbers
    expected = [(first, last) for first, last in cycles for _ in range(first, last)]
    assert [schedule.cycle(epoch) for epoch in range(schedule.epochs)] == expected


@pytest.mark.parametrize("epochs", range(2, 12))
@pytest.mark.parametrize("name", SETTINGS.variants)
def test_the_rows_of_the_comparison_have_the_same_number_of_epochs(name, epochs):
    row = SETTINGS.variant(name)
    if epochs >= len(row.stages):
        assert StageSchedule(replace(row, train=replace(row.train, epochs=epochs))).epochs == epochs


def rates(trainer: Trainer) -> dict[bool, list[float]]:
    """The learning rates of all steps, of the global (True) and the local parameters."""
    found: dict[bool, list[float]] = {}
    for epoch, number in product(range(trainer.schedule.epochs), range(trainer.steps_per_epoch)):
        trainer.set_learning_rate(epoch, number)
        for group in trainer.optimizer.param_groups:
            found.setdefault(group["global"], []).append(group["lr"])
    return found


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_global_lr_scales_all_but_the_local_branch_and_restart_restarts_the_schedule(schedule):
    variant = short("asen_pp", 4, (1.0, 0.5), schedule=schedule, step_epochs=1, step_factor=0.5, warmup=0.25)
    found = rates(Trainer(PREPARED, variant, 0, 1))

    def expected(epochs: int) -> list[float]:
        if schedule == "step":
            return [0.01 * 0.5**epoch for epoch in range(epochs) for _ in range(3)]
        steps = 3 * epochs
        warm = round(0.25 * steps)
        fall = [0.01 * np.cos(np.pi / 2 * k / (steps - warm)) ** 2 for k in range(steps - warm)]
        return [0.01 * (k + 1) / warm for k in range(warm)] + fall

    assert found[False] == pytest.approx(expected(4) + expected(2))
    assert found[True] == pytest.approx(expected(4) + [0.1 * rate for rate in expected(2)])


@pytest.mark.parametrize("restart", [True, False])
def test_a_restarted_stage_is_a_new_training_from_the_weights_of_the_stage_before(restart):
    """With the same random numbers: the epoch is the same one. Without a restart, moments of the first stage count."""
    variant = short("asen_pp", 2, (0.5, 0.5))
    variant = replace(variant, stages=(variant.stages[0], replace(variant.stages[1], restart=restart)))
    first, second = (Trainer(PREPARED, variant, 0, 1) for _ in range(2))
    first.run_epoch(tqdm(disable=True))
    second.system.load_state_dict(first.system.state_dict())
    second.history = list(first.history)
    for trainer in (first, second):
        trainer.run_epoch(tqdm(disable=True))
    assert same(first.system, second.system) == restart


@pytest.mark.parametrize("network", NETWORKS)
def test_every_trained_parameter_is_in_one_group_and_local_ones_in_a_separate_one(network):
    trainer = Trainer(PREPARED, short(network), 0, 1)
    groups = {group["global"]: {id(p) for p in group["params"]} for group in trainer.optimizer.param_groups}
    trained = {name: parameter for name, parameter in trainer.system.named_parameters() if parameter.requires_grad}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(trained)
    for name, parameter in trained.items():
        assert (id(parameter) in groups[True]) != name.startswith("local_")
    assert (False in groups) == (network == "asen_pp")


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_the_optimizer_is_the_configured_one(name, kind):
    optimizer = Trainer(PREPARED, short("asen_pp", optimizer=name, weight_decay=0.25), 0, 1).optimizer
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25] * 2
