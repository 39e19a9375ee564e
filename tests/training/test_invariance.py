"""alpha → alpha/(pq), init A → p·A, lr of A → p·lr, lr of B → q·lr: the same trajectory."""

from __future__ import annotations

import pytest
import torch
from models import build, inputs
from torch import Tensor

from rango.adapters.attach import attach
from rango.training.optimizer import AdamWSettings, BankAdamW


def trajectory(p: float, q: float) -> tuple[list[float], Tensor]:
    """Losses of ten steps, and the last logits."""
    adapted = attach(build("llama"), r=4, lora_alpha=8 / (p * q))
    for site in adapted.sites.values():
        site.A.data.mul_(p)
    # eps 0, so that it does not see a gradient's scale
    optimizer = BankAdamW(adapted.bank, AdamWSettings(eps=0.0, loraplus_lr_ratio=q / p))
    ids, losses = inputs(4, 16), []
    for _ in range(10):
        loss = adapted.model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step(2e-3 * p)
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, adapted.model(input_ids=ids).logits


@pytest.mark.parametrize(("p", "q"), [(4.0, 0.5), (0.25, 8.0), (1.0, 2.0)])
def test_rescaling_changes_nothing(p: float, q: float) -> None:
    losses, logits = trajectory(1.0, 1.0)
    rescaled_losses, rescaled_logits = trajectory(p, q)
    assert losses[-1] < losses[0]
    assert rescaled_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(rescaled_logits, logits, rtol=1e-4, atol=1e-4)
