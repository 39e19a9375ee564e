"""Steps, learning rates, and the values that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rango.errors import ConfigError
from rango.training.config import TrainingConfig
from rango.training.schedule import check_training, plan_steps

CONFIG = TrainingConfig(batch_size=4, epochs=2, learning_rate=1.0, warmup_share=0.0)


def test_steps_of_whole_and_fractional_epochs() -> None:
    assert plan_steps(CONFIG, 10).total == 6  # 3 steps an epoch: 4, 4 and 2 samples
    assert plan_steps(replace(CONFIG, epochs=0.5), 10).total == 2
    assert plan_steps(replace(CONFIG, epochs=1e-9), 10).total == 1
    assert plan_steps(replace(CONFIG, max_steps=5), 10).total == 5
    assert plan_steps(replace(CONFIG, max_steps=50), 10).total == 6


def test_the_position_starts_anew_each_epoch() -> None:
    plan = plan_steps(CONFIG, 10)
    assert [plan.position(step) for step in range(plan.total)] == [
        (0, 0),
        (0, 4),
        (0, 8),
        (1, 0),
        (1, 4),
        (1, 8),
    ]


def test_warm_up_rises_from_above_zero_to_the_peak() -> None:
    plan = plan_steps(replace(CONFIG, warmup_share=0.5), 10)
    assert [plan.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_linear_and_cosine_fall_after_the_warm_up_without_reaching_zero() -> None:
    linear = plan_steps(replace(CONFIG, schedule="linear", max_steps=4), 10)
    assert [linear.rate(step) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    cosine = plan_steps(replace(CONFIG, schedule="cosine", max_steps=4), 10)
    assert [cosine.rate(step) for step in range(4)] == pytest.approx(
        [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    )


def test_evaluations_and_checkpoints_by_default_are_a_tenth_of_the_run() -> None:
    plan = plan_steps(replace(CONFIG, epochs=20), 10)  # 60 steps
    assert (plan.eval_every, plan.checkpoint_every) == (6, 6)
    assert [done for done in range(61) if plan.evaluates_at(done)] == list(range(0, 61, 6))
    assert [done for done in range(61) if plan.checkpoints_at(done)] == list(range(6, 61, 6))
    odd = plan_steps(replace(CONFIG, eval_every=4, checkpoint_every=100), 10)
    assert [done for done in range(7) if odd.evaluates_at(done)] == [0, 4, 6]
    assert [done for done in range(7) if odd.checkpoints_at(done)] == [6]


def test_the_learning_rate_follows_the_method() -> None:
    assert plan_steps(TrainingConfig(), 1).learning_rate == 2e-4
    assert plan_steps(TrainingConfig(method="full"), 1).learning_rate == 2e-5


@pytest.mark.parametrize(
    "change",
    [
        {"method": "dora"},
        {"schedule": "step"},
        {"epochs": 0},
        {"epochs": math.inf},
        {"max_steps": 0},
        {"batch_size": 0},
        {"micro_tokens": 0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"loraplus_lr_ratio": 0.0},
        {"loraplus_lr_ratio": math.inf},
        {"warmup_share": 1.5},
        {"weight_decay": -0.1},
        {"adam_beta1": 1.0},
        {"adam_beta2": -0.1},
        {"adam_eps": -1e-8},
        {"max_grad_norm": -1.0},
        {"eval_every": 0},
        {"patience": 0},
        {"max_forgetting": 0.0},
        {"checkpoint_every": 0},
        {"keep_checkpoints": 0},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ConfigError, match=rf"training\.{name}: expected .*, found "):
        check_training(replace(TrainingConfig(), **change))


def test_full_fine_tuning_has_no_factor_to_learn_faster() -> None:
    check_training(TrainingConfig(method="full"))
    with pytest.raises(ConfigError, match="expected 1 with method full, which has no lora_B"):
        check_training(TrainingConfig(method="full", loraplus_lr_ratio=16.0))


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs: .*training\.batch_size: "):
        check_training(TrainingConfig(epochs=-1, batch_size=0))
