"""What is trained, and its weights taken out and put back."""

from __future__ import annotations

import pytest
import torch
from models import build, inputs

from rango.adapters.attach import attach
from rango.base.load import base_from_model
from rango.errors import ConfigError
from rango.training.config import TrainingConfig
from rango.training.trainee import FullTrainee, LoraTrainee, Trainee, restore, snapshot

FULL = TrainingConfig(method="full")


def trainees() -> list[Trainee]:
    adapted = attach(base_from_model(build("llama")), r=3, rows=2)
    return [
        LoraTrainee(adapted, TrainingConfig(), row=1),
        FullTrainee(base_from_model(build("qwen2")), FULL),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_a_snapshot_restores_every_bit(which: int) -> None:
    trainee = trainees()[which]
    ids = inputs()
    with trainee.learning(), torch.no_grad():
        before = trainee.model(input_ids=ids).logits
        kept = snapshot(trainee)
        for tensor in trainee.weights().values():
            tensor.add_(0.1)
        assert not torch.equal(trainee.model(input_ids=ids).logits, before)
        restore(trainee, kept)
        assert torch.equal(trainee.model(input_ids=ids).logits, before)


def test_trainable_parameters_count_tied_weights_once() -> None:
    lora, full = trainees()
    assert lora.trainable() == lora.weights()["row"].numel()
    assert full.trainable() == sum(p.numel() for p in full.model.parameters())
    assert "lm_head.weight" not in full.weights()


def test_weights_that_do_not_fit_are_named() -> None:
    lora, full = trainees()
    with pytest.raises(ConfigError, match="do not fit what is trained: row"):
        restore(lora, {"row": torch.zeros(3)})
    kept = snapshot(full)
    kept.pop("model.norm.weight")
    with pytest.raises(ConfigError, match=r"model\.norm\.weight"):
        restore(full, kept)
