"""Rows of a table, and leaves that share its storage."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, inputs
from torch import nn

import rango
from rango.adapters.bank import Bank
from rango.adapters.layout import RowLayout
from rango.errors import AdapterError

LAYOUT = RowLayout([(("up", "lora_A"), (3, 5)), (("up", "lora_B"), (7, 3))])


def test_every_adapter_tensor_shares_the_banks_storage() -> None:
    adapted = rango.attach(build("llama"), r=3, rows=4)
    bank = adapted.bank
    assert {site.A for site in adapted.sites.values()} <= set(bank.leaves.values())
    trainable = [p for p in adapted.model.parameters() if p.requires_grad]
    assert len(trainable) == len(bank.leaves) == 2 * len(adapted.sites)
    for leaf in trainable:
        assert leaf.untyped_storage().data_ptr() == bank.parameters.untyped_storage().data_ptr()
        assert leaf.grad is not None
        assert bank.gradients is not None
        assert leaf.grad.untyped_storage().data_ptr() == (
            bank.gradients.untyped_storage().data_ptr()
        )
    bank.check_sharing()
    # so writing the row writes the model
    bank.row(2).fill_(1.5)
    assert all(bool((leaf[2] == 1.5).all()) for leaf in trainable)
    assert sum(leaf[0].numel() for leaf in trainable) == bank.layout.size


@given(
    shapes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5),
    rows=st.integers(1, 4),
)
def test_layout_covers_a_row_exactly_once(shapes: list[list[int]], rows: int) -> None:
    layout = RowLayout(((f"m{i}", "t"), tuple(shape)) for i, shape in enumerate(shapes))
    table = torch.zeros(rows, layout.size)
    for key, slot in layout.slots.items():
        view = layout.view(table, key)
        assert view.shape == (rows, *slot.shape)
        view += 1
    assert bool((table == 1).all())


def test_default_zero_grad_is_noticed_and_repaired() -> None:
    bank = Bank(LAYOUT, 2)
    leaf = bank.leaves["up", "lora_A"]
    torch.optim.SGD(list(bank.leaves.values()), lr=0.1).zero_grad()
    assert leaf.grad is None
    with pytest.raises(AdapterError, match=r"up\.lora_A.*shares"):
        bank.check_sharing()
    bank.zero_grad()
    bank.check_sharing()


def test_accumulating_after_a_default_zero_grad_starts_from_zero() -> None:
    bank = Bank(LAYOUT, 2)
    key = ("up", "lora_A")
    bank.accumulated(key)[1] += torch.ones(3, 5)
    bank.leaves[key].grad = None
    bank.accumulated(key)[1] += torch.ones(3, 5)
    assert bank.gradient(key).sum() == 15
    bank.leaves[key].grad = bank.gradient(key)
    bank.check_sharing()


def test_without_training_there_is_no_gradient_table() -> None:
    bank = Bank(LAYOUT, 2, trainable=False)
    assert bank.gradients is None
    bank.check_sharing()
    with pytest.raises(AdapterError, match="trainable=False"):
        bank.gradient(("up", "lora_A"))


@pytest.mark.parametrize("move", [lambda m: m.to(torch.float64), lambda m: m.double()])
def test_moving_the_model_moves_the_table(move: object) -> None:
    model = build("llama")
    adapted = rango.attach(model, r=2)
    move(model)  # type: ignore[operator]
    assert adapted.bank.parameters.dtype == torch.float64
    adapted.bank.check_sharing()
    model(input_ids=inputs())[0].sum().backward()
    assert adapted.bank.gradients is not None
    assert adapted.bank.gradients.norm() > 0


def test_a_deep_copy_has_a_bank_of_its_own() -> None:
    model = build("llama")
    adapted = rango.attach(model, r=2)
    twin = copy.deepcopy(adapted)
    twin.bank.check_sharing()
    adapted.bank.check_sharing()
    twin.bank.parameters.add_(0.1)
    assert not torch.equal(twin.bank.parameters, adapted.bank.parameters)
    ids = inputs()
    assert not torch.equal(twin.model(input_ids=ids)[0], model(input_ids=ids)[0])
    copied = copy.deepcopy(nn.ModuleDict({"m": model}))
    assert torch.equal(copied["m"](input_ids=ids)[0], model(input_ids=ids)[0])
