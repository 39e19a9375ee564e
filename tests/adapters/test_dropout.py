"""What is dropped depends on job, step, module and token, and on nothing else."""

from __future__ import annotations

import pytest
import torch
from models import build, inputs
from torch import nn

import rango
from rango.adapters.dropout import DropoutKey, keep_mask
from rango.adapters.routing import Routing


def test_the_share_kept_is_right_and_spread() -> None:
    key = DropoutKey(jobs=(5,), steps=(3,))
    kept = keep_mask(key, 0, "up", None, (400, 500), 0.3).float()
    assert abs(kept.mean() - 0.7) < 0.005
    assert (kept.mean(dim=0) - 0.7).abs().max() < 0.12  # five standard deviations
    assert (kept.mean(dim=1) - 0.7).abs().max() < 0.11
    neighbours = (kept[:, 1:] - 0.7) * (kept[:, :-1] - 0.7)
    assert neighbours.mean().abs() < 0.003


def test_every_part_of_the_key_counts() -> None:
    base = keep_mask(DropoutKey((5,), (3,)), 0, "up", None, (20, 30), 0.5)
    for key, module in (
        (DropoutKey((6,), (3,)), "up"),
        (DropoutKey((5,), (4,)), "up"),
        (DropoutKey((5,), (3,)), "down"),
    ):
        assert not torch.equal(base, keep_mask(key, 0, module, None, (20, 30), 0.5))
    assert torch.equal(base, keep_mask(DropoutKey((1, 5), (3, 3)), 1, "up", None, (20, 30), 0.5))


def test_a_token_keeps_its_mask_wherever_it_is_batched() -> None:
    ids = torch.tensor([7, 8, 9, 100, 101])
    alone = keep_mask(DropoutKey((5,), (3,), ids[3:]), 0, "up", None, (2, 30), 0.5)
    together = DropoutKey((1, 5), (3, 3), ids)
    assert torch.equal(alone, keep_mask(together, 1, "up", torch.tensor([3, 4]), (2, 30), 0.5))


def test_gradients_go_through_the_same_mask() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 4))
    adapted = rango.attach(model, r=3, lora_alpha=3, lora_dropout=0.4, target_modules=["0"])
    adapted.bank.parameters.normal_()
    adapted.dropout_key(step=2, job=9)
    x = torch.randn(6, 30, requires_grad=True)
    adapted.train()
    y = model(x)
    y.sum().backward()
    site = adapted.sites["0"]
    keep = keep_mask(DropoutKey((9,), (2,)), 0, "0", None, (6, 30), 0.4)
    dropped = (x * keep / 0.6).detach()
    lora_A, lora_B = site.factors(0)
    torch.testing.assert_close(y, model[0].base_layer(x) + dropped @ lora_A.T @ lora_B.T)
    ones = torch.ones(6, 4)
    torch.testing.assert_close(site.A.grad[0], (ones @ lora_B).T @ dropped)
    torch.testing.assert_close(
        x.grad, ones @ model[0].base_layer.weight + (ones @ lora_B @ lora_A) * keep / 0.6
    )
    adapted.train(False)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("fixed", [True, False])
def test_in_a_loop_of_ones_own_it_follows_the_module(fixed: bool) -> None:
    model = build("llama")
    adapted = rango.attach(model, r=2, lora_dropout=0.5, rows=2)
    adapted.bank.parameters.normal_()
    ids = inputs()
    still = model(input_ids=ids)[0]
    assert torch.equal(model(input_ids=ids)[0], still)
    adapted.train()
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        if fixed:
            adapted.dropout_key(step=1)
        with adapted.route(Routing.sequences([0, 1])):
            outputs.append(model(input_ids=ids)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], still)
