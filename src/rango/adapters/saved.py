"""Modules that an adapter holds whole (PEFT's modules_to_save), such as a classifier's head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rango.adapters.bank import Bank
from rango.adapters.dense import DenseUpdate
from rango.adapters.layout import Key
from rango.adapters.switch import Switch
from rango.adapters.update import Part
from rango.base.classifier import drawn, is_new
from rango.errors import AdapterError


def dense_tensors(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a linear layer's full update."""
    return {name: tuple(tensor.shape) for name, tensor in layer.named_parameters(recurse=False)}


class SavedLinear(nn.Module):
    """Stands in for a linear layer that rows of the bank change whole: y = W·x + b + ΔW·x + Δb.

    weight ΔW (rows, out, in) and bias Δb (rows, out) are leaves of the bank. A row that does not
    save the layer leaves it as the base has it.
    """

    base_layer: nn.Module

    def __init__(self, name: str, base_layer: nn.Module, bank: Bank, switch: Switch) -> None:
        super().__init__()
        self.name, self.bank, self.switch = name, bank, switch
        self.base_layer = base_layer
        self.keys: tuple[Key, ...] = tuple((name, tensor) for tensor in dense_tensors(base_layer))
        for key in self.keys:
            self.register_parameter(f"delta_{key[1]}", bank.leaves[key])
        self.saves: list[bool] = [False] * bank.rows
        """Which rows hold this layer."""
        self.kept: list[nn.Module] = []
        """The base's own layer while a merged one is in its place; off the module tree."""
        self.new = is_new(base_layer)
        """The base has only zeros here."""
        self.train(base_layer.training)

    @property
    def own(self) -> nn.Module:
        """The base's layer, whether a merged one is in its place or not."""
        return self.kept[-1] if self.kept else self.base_layer

    def delta(self, row: int) -> dict[str, Tensor]:
        """ΔW (out, in) and, if the layer has a bias, Δb (out,) of a row, by "weight" and "bias";
        views."""
        return {key[1]: self.bank.leaves[key].detach()[row] for key in self.keys}

    @property
    def size(self) -> int:
        """Parameters of one row here."""
        return sum(self.bank.layout.slots[key].size for key in self.keys)

    @torch.no_grad()
    def start(self, row: int, seed: int, deviation: float) -> None:
        """Begin a row: over a layer of zeros ΔW is drawn from N(0, deviation²), as transformers
        does, and Δb is 0; over a layer that the base has, both are 0. The draw depends on the seed
        and the layer's name alone."""
        delta = self.delta(row)
        for tensor in delta.values():
            tensor.zero_()
        if not self.new or delta["weight"].is_meta:
            return
        delta["weight"].copy_(drawn(tuple(delta["weight"].shape), self.name, seed, deviation))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out): the base's output plus what the routed rows add."""
        y: Tensor = self.base_layer(x)
        if not self.switch.acts:
            return y
        parts = self._parts(x)
        if not parts:
            return y
        if y._is_view() or not y.is_contiguous() or (y.is_leaf and y.requires_grad):
            y = y.clone(memory_format=torch.contiguous_format)
        leaves = {key[1]: self.bank.leaves[key] for key in self.keys}
        changed: Tensor = DenseUpdate.apply(
            y, x, leaves["weight"], leaves.get("bias"), self.bank, self.keys, parts
        )
        return changed

    def _parts(self, x: Tensor) -> list[Part]:
        plan = self.switch.routing.plan(tuple(x.shape[:-1]), x.device)
        for segment in plan:
            if segment.row >= self.bank.rows:
                raise AdapterError(
                    f"routing names row {segment.row}; the bank has rows 0 to {self.bank.rows - 1}"
                )
        factors = self.switch.factors
        return [
            Part.of(segment, factors.get(segment.row, 1.0))
            for segment in plan
            if self.saves[segment.row]
        ]

    def __getattr__(self, name: str) -> Any:
        # what the model reads off the module it thinks it has: weight, in_features, …
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SavedLinear:
        # .to(), .half(), .cuda(): the bank moves whole, never a leaf alone
        for module in (self.base_layer, *self.kept):
            module._apply(fn, recurse)
        moved = fn(self.bank.parameters.new_empty(0))
        self.bank.move(moved.device, moved.dtype)
        return self

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"rows={self.bank.rows}, saved by {sum(self.saves)}"
