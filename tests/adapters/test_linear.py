"""LoRALinear in a loop of one's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rango


def test_it_is_an_ordinary_module() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    x = torch.randn(3, 5, 6)
    expected = linear(x)
    layer = rango.LoRALinear(linear, r=3, lora_alpha=6)
    torch.testing.assert_close(layer(x), expected)
    names = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert len(names) == 2
    assert layer.lora_A.shape == (1, 3, 6)
    assert layer.lora_B.shape == (1, 4, 3)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    target = torch.randn(3, 5, 4)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = layer(x)
    fresh = rango.LoRALinear(copy.deepcopy(linear), r=3, lora_alpha=6, seed=1)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), trained)
    twin = copy.deepcopy(layer)
    twin.lora_B.data.zero_()
    assert torch.equal(layer(x), trained)


def test_merging() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    kept = linear.weight.clone()
    layer = rango.LoRALinear(linear, r=2)
    layer.lora_B.data.normal_()
    x = torch.randn(5, 6)
    y = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), y)
    layer.unmerge()
    assert torch.equal(layer(x), y)
    assert torch.equal(linear.weight, kept)
    plain = layer.merged()
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), y)


def test_inside_a_bigger_model_it_moves_and_trains() -> None:
    model = nn.Sequential(nn.Linear(4, 4), rango.LoRALinear(nn.Linear(4, 2), r=1)).double()
    assert model[1].lora_A.dtype == torch.float64
    model(torch.randn(3, 4, dtype=torch.float64)).sum().backward()
    assert model[1].lora_B.grad is not None
    model[1].adapted.bank.check_sharing()


def test_only_linear_layers() -> None:
    with pytest.raises(rango.RangoError):
        rango.LoRALinear(nn.ReLU())
