"""The autograd functions against plain autograd over the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build, inputs
from torch import Tensor, nn

import rango
from rango.adapters.routing import Routing
from rango.numerics.lowrank import low_rank_update


def _expected(layer: nn.Linear, x: Tensor, A: Tensor, B: Tensor, scales: list[float]) -> Tensor:
    return torch.stack(
        [
            layer(x[i])
            + low_rank_update(x[i].flatten(0, -2), A[i], B[i], s).view(*x.shape[1:-1], -1)
            for i, s in enumerate(scales)
        ]
    )


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("r", [1, 3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_of_a_linear(rows: int, r: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 13)).to(dtype)
    adapted = rango.attach(model, r=r, lora_alpha=2 * r, rows=rows, target_modules=["0"])
    site = adapted.sites["0"]
    adapted.bank.move(torch.device("cpu"), dtype)
    adapted.bank.parameters.normal_()
    x = torch.randn(rows, 4, 9, dtype=dtype, requires_grad=True)
    weights = torch.randn(rows, 4, 13, dtype=dtype)

    factors = torch.rand(rows).tolist()
    with adapted.route(Routing.sequences(range(rows), factors)):
        y = model(x)
    y.backward(weights)

    A, B = (leaf.detach().clone().requires_grad_() for leaf in (site.A, site.B))
    twin = x.detach().clone().requires_grad_()
    expected = _expected(model[0].base_layer, twin, A, B, [2.0 * f for f in factors])
    expected.backward(weights)
    for ours, theirs in (
        (y, expected),
        (x.grad, twin.grad),
        (site.A.grad, A.grad),
        (site.B.grad, B.grad),
    ):
        torch.testing.assert_close(ours, theirs)
    adapted.bank.check_sharing()


def test_gradients_accumulate_over_passes() -> None:
    adapted = rango.attach(build("llama"), r=2, rows=2)
    adapted.bank.parameters.normal_(std=0.1)
    assert adapted.bank.gradients is not None
    ids = inputs()
    for row in (0, 1):
        with adapted.route(Routing.everywhere(row)):
            adapted.model(input_ids=ids)[0].square().mean().backward()
    once = adapted.bank.gradients.clone()
    assert bool((once.norm(dim=1) > 0).all())
    with adapted.route(Routing.everywhere(1)):
        adapted.model(input_ids=ids)[0].square().mean().backward()
    torch.testing.assert_close(adapted.bank.gradients[1], 2 * once[1])
    assert torch.equal(adapted.bank.gradients[0], once[0])


def test_one_row_behaves_as_ordinary_parameters_do() -> None:
    model = build("llama")
    adapted = rango.attach(model, r=2)
    adapted.bank.parameters.normal_(std=0.1)
    leaves = adapted.parameters()
    grads = torch.autograd.grad(model(input_ids=inputs())[0].square().mean(), leaves)
    model(input_ids=inputs())[0].square().mean().backward()
    for leaf, grad in zip(leaves, grads, strict=True):
        torch.testing.assert_close(leaf.grad, grad)
    adapted.bank.check_sharing()


@pytest.mark.parametrize("rows", [1, 2])
def test_outputs_and_gradients_of_an_embedding(rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6))
    adapted = rango.attach(model, r=3, lora_alpha=6, rows=rows, target_modules=["0"])
    site = adapted.sites["0"]
    assert not site.A.any()  # an embedding starts the other way round
    assert site.B.any()
    adapted.bank.parameters.normal_()
    ids = torch.randint(11, (rows, 8))
    weights = torch.randn(rows, 8, 6)
    with adapted.route(Routing.sequences(range(rows))):
        y = model(ids)
    y.backward(weights)
    A, B = (leaf.detach().clone().requires_grad_() for leaf in (site.A, site.B))
    table = model[0].base_layer.weight
    expected = torch.stack([table[ids[i]] + 2.0 * A[i][:, ids[i]].T @ B[i].T for i in range(rows)])
    expected.backward(weights)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(site.A.grad, A.grad)
    torch.testing.assert_close(site.B.grad, B.grad)


def test_one_part_of_a_fused_projection_leaves_the_others_alone() -> None:
    torch.manual_seed(0)
    adapted = rango.attach(build("falcon_grouped"), r=3, target_modules=["query_key_value[k]"])
    adapted.bank.parameters.normal_()
    (site, *_) = adapted.sites.values()
    stand_in = adapted.modules[site.module_name]
    x = torch.randn(5, 32)
    delta = stand_in(x) - stand_in.base_layer(x)
    touched = torch.zeros(delta.shape[1], dtype=torch.bool)
    touched[site.columns] = True
    assert bool((delta[:, ~touched] == 0).all())
    assert bool((delta[:, touched] != 0).all())
    assert int(touched.sum()) == 2 * 8  # two groups, one k head of 8 each


def test_bf16_activations_meet_fp32_adapters_with_one_rounding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    adapted = rango.attach(model, r=2, lora_alpha=2, target_modules=["0"])
    adapted.bank.parameters.normal_()
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    site = adapted.sites["0"]
    exact = model[0].base_layer(x).float() + low_rank_update(x.float(), site.A[0], site.B[0], 1.0)
    assert adapted.bank.parameters.dtype == torch.float32
    assert torch.equal(model(x), exact.to(torch.bfloat16))


def test_autocast_leaves_the_adapters_in_their_own_type() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    adapted = rango.attach(model, r=2, target_modules=["0"])
    adapted.bank.parameters.normal_(std=0.1)
    x = torch.randn(3, 8)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=2e-2)
    assert adapted.sites["0"].A.grad.abs().sum() > 0


def test_smaller_ranks_stay_zero_in_their_padding() -> None:
    adapted = rango.attach(build("llama"), r=5, rows=2)
    small = rango.LoraConfig(r=2)
    targets = rango.adapters.targets.find_targets(build("llama"), small)
    adapted.configure(1, small, targets)
    adapted.reset(1, seed=3)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.05, weight_decay=0.1)
    losses: list[Any] = []
    for _ in range(5):
        with adapted.route(Routing.sequences([0, 1])):
            loss = adapted.model(input_ids=inputs())[0].square().mean()
        loss.backward()
        optimizer.step()
        adapted.bank.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for site in adapted.sites.values():
        assert site.ranks == [5, 2]
        assert not site.A[1, 2:].any()
        assert not site.B[1, :, 2:].any()
        assert site.B[1, :, :2].any()
