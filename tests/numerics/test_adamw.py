"""AdamW over tables against torch.optim's, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rango.numerics.adamw import adamw_, row_norms


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_twenty_steps_equal_torchs(decay: float) -> None:
    table = normal(2, 50).double()
    leaves = [nn.Parameter(row.clone()) for row in table]
    rates = [1e-2, 3e-3]
    optimizers = [
        torch.optim.AdamW([leaf], lr=rate, betas=(0.8, 0.99), weight_decay=decay)
        for leaf, rate in zip(leaves, rates, strict=True)
    ]
    m, v, steps = torch.zeros_like(table), torch.zeros_like(table), torch.zeros(2)
    for step in range(20):
        gradients = normal(2, 50, seed=step).double()
        steps += 1
        adamw_(
            table,
            gradients,
            m,
            v,
            steps,
            torch.tensor(rates, dtype=torch.float64)[:, None],
            beta1=0.8,
            beta2=0.99,
            eps=1e-8,
            weight_decay=decay,
        )
        for leaf, optimizer, gradient in zip(leaves, optimizers, gradients, strict=True):
            leaf.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(table, torch.stack([leaf.detach() for leaf in leaves]))


def test_without_epsilon_the_first_step_is_the_sign_and_untouched_elements_stay() -> None:
    table, gradients = normal(1, 40), normal(1, 40, seed=1)
    gradients[:, ::3] = 0
    before, m, v = table.clone(), torch.zeros(1, 40), torch.zeros(1, 40)
    options = {"beta1": 0.9, "beta2": 0.999, "eps": 0.0, "weight_decay": 0.0}
    adamw_(table, gradients, m, v, torch.ones(1), torch.tensor(0.5), **options)
    assert torch.equal(table[:, ::3], before[:, ::3])
    torch.testing.assert_close(table, before - 0.5 * gradients.sign())


def test_row_norms_are_euclidean() -> None:
    assert torch.equal(row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), torch.tensor([5.0, 0.0]))
