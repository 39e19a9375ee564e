"""The full-rank update of a layer against plain autograd, for one row, several, and none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rango.adapters.attach import Adapted, attach_targets
from rango.adapters.config import LoraConfig
from rango.adapters.routing import NO_ROW, Routing
from rango.adapters.targets import find_targets

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


class Net(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def attached(rows: int, bias: bool = True, saving: tuple[int, ...] = ()) -> Adapted:
    """Rows with random numbers everywhere; those of `saving` (all) hold the head."""
    net = Net(bias)
    config = LoraConfig(r=2, target_modules=["body"])
    targets = find_targets(net, config)
    adapted = attach_targets(net, targets, saved=["head"], rows=rows)
    for row in range(rows):
        adapted.configure(row, config, targets, ["head"] if row in (saving or range(rows)) else [])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for row in range(rows):
            for site in adapted.sites.values():
                for factor in site.factors(row):
                    factor.copy_(torch.randn(factor.shape, generator=generator))
            if adapted.saved["head"].saves[row]:
                for delta in adapted.saved["head"].delta(row).values():
                    delta.copy_(torch.randn(delta.shape, generator=generator))
    return adapted


def expected(adapted: Adapted, x: Tensor, row: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The output of one row written out, and the table row as a leaf that it was computed from."""
    layout = adapted.bank.layout
    leaf = adapted.bank.parameters[row].clone().requires_grad_()
    part = {key: layout.view(leaf[None], key)[0] for key in layout.slots}
    site = adapted.sites["body"]
    net = adapted.model
    plain, head = net.body.base_layer, adapted.saved["head"]
    low = x @ part["body", "lora_A"].T @ part["body", "lora_B"].T
    h = torch.tanh(plain(x) + scale * site.scalings[row] * low)
    y = head.base_layer(h)
    if head.saves[row]:
        change = h @ part["head", "weight"].T
        if ("head", "bias") in part:
            change = change + part["head", "bias"]
        y = y + scale * change
    return y, leaf


@pytest.mark.parametrize("bias", [True, False])
def test_one_row_gives_autograds_gradients(bias: bool) -> None:
    adapted = attached(1, bias)
    x = torch.randn(4, 5, requires_grad=True)
    y = adapted.model(x)
    want, leaf = expected(adapted, x.detach().clone().requires_grad_(), 0)
    torch.testing.assert_close(y, want, **TOLERANCE)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    other = x.detach().clone().requires_grad_()
    (expected(adapted, other, 0)[0] * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(adapted.bank.gradients[0], leaf.grad, **TOLERANCE)
    torch.testing.assert_close(x.grad, other.grad, **TOLERANCE)
    adapted.bank.check_sharing()


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5)])
def test_rows_by_sequence_meet_only_their_own(shape: tuple[int, ...]) -> None:
    adapted = attached(3, saving=(0, 2))  # row 1 holds no head
    x = torch.randn(shape)
    rows = [2, 1, NO_ROW, 0]
    with adapted.route(Routing.sequences(rows, [1.0, 1.0, 1.0, 0.5])):
        y = adapted.model(x)
        weights = torch.randn_like(y)
        (y * weights).sum().backward()
    for place, (row, scale) in enumerate(zip(rows, [1.0, 1.0, 1.0, 0.5], strict=True)):
        if row == NO_ROW:
            with adapted.disabled():
                torch.testing.assert_close(y[place], adapted.model(x[place]), **TOLERANCE)
            continue
        want, leaf = expected(adapted, x[place], row, scale)
        torch.testing.assert_close(y[place], want, **TOLERANCE)
        (want * weights[place]).sum().backward()
        torch.testing.assert_close(adapted.bank.gradients[row], leaf.grad, **TOLERANCE)


def test_a_blend_adds_both_rows() -> None:
    adapted = attached(2)
    h = torch.randn(4, 6)
    layer = adapted.saved["head"]
    blend = Routing.blend(Routing.everywhere(0, 0.25), Routing.everywhere(1, 0.75))
    with adapted.route(blend), torch.no_grad():
        found = layer(h)
    weight = sum(s * layer.delta(r)["weight"] for r, s in ((0, 0.25), (1, 0.75)))
    bias = sum(s * layer.delta(r)["bias"] for r, s in ((0, 0.25), (1, 0.75)))
    want = layer.base_layer(h) + h @ weight.T + bias
    torch.testing.assert_close(found, want, **TOLERANCE)


def test_a_factor_scales_what_a_row_adds() -> None:
    adapted = attached(1)
    h = torch.randn(4, 6)
    layer = adapted.saved["head"]
    with torch.no_grad():
        base, whole = layer.base_layer(h), layer(h)
        adapted.scale(0, 0.5)
        torch.testing.assert_close(layer(h), base + 0.5 * (whole - base), **TOLERANCE)
