"""A hundred steps over the kernels and over the reference: the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import build

import rango
from rango.data.samples import Origin, Sample
from rango.data.tokens.pack import collate
from rango.evaluation.loss import token_losses
from rango.kernels import dispatch
from rango.training.config import TrainingConfig
from rango.training.trainee import LoraTrainee

COMPILED = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not COMPILED, reason="the compiled kernels are not installed")

STEPS = 100
TOLERANCE = 2e-4
"""Relative, of every step's loss: sums in another order, carried on by a hundred updates."""

HELD = {
    "fp32": {},
    "bf16": {"dtype": "bf16"},
    "int8": {"quantize": "int8"},
    "nf4": {"quantize": "nf4"},
    "nf4 recomputed": {"quantize": "nf4"},
}


def _samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(12):
        length = int(torch.randint(6, 30, (), generator=generator))
        ids = torch.randint(3, 100, (length,), generator=generator).tolist()
        supervised = tuple(place >= length // 2 for place in range(length))
        samples.append(Sample(tuple(ids), supervised, supervised, Origin("random", number)))
    return samples


def _losses(folder: Path, mode: str, held: dict[str, Any], recompute: bool) -> list[float]:
    samples, losses = _samples(), []
    with dispatch.using(mode):
        base = rango.load_base(folder, **held)
        adapted = rango.attach(base, r=4, lora_alpha=8, lora_dropout=0.1)
        trainee = LoraTrainee(adapted, TrainingConfig(gradient_checkpointing=recompute))
        for step in range(STEPS):
            batch = collate(samples, [step % 12, (5 * step + 3) % 12], packed=True)
            with trainee.learning(), trainee.prepare(batch, step):
                found = token_losses(trainee.model, batch).losses.mean()
                found.backward()
            trainee.optimizer.clip(1.0)
            trainee.optimizer.step(5e-3)
            trainee.optimizer.zero_grad()
            losses.append(float(found.detach()))
    return losses


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_hundred_steps_agree_with_the_reference(name: str, held: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    expected = _losses(tmp_path, "reference", HELD[held], recompute=False)
    assert expected[-1] < 0.95 * expected[0]  # something was learnt
    for mode in COMPILED:
        found = _losses(tmp_path, mode, HELD[held], recompute="recomputed" in held)
        assert found == pytest.approx(expected, rel=TOLERANCE)
