"""The bank: a table with one adapter a row, and a table of gradients of the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rango.adapters.layout import Key, RowLayout
from rango.base.heap import zero
from rango.errors import AdapterError


class Bank:
    """Adapters as rows.

    parameters: (rows, P) fp32. gradients: the same, or None where nothing is trained.
    leaves: for each tensor of the layout a Parameter (rows, *shape) that shares the table's
        storage, its `.grad` preset to the matching view of the gradient table, so that autograd
        accumulates straight into the table. Leaves are never slices inside the graph: a slice's
        backward would make a zero-filled table for each of them.
    """

    def __init__(
        self,
        layout: RowLayout,
        rows: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        trainable: bool = True,
    ) -> None:
        self.layout = layout
        self.parameters = torch.zeros(rows, layout.size, device=device, dtype=dtype)
        self.gradients = torch.zeros_like(self.parameters) if trainable else None
        self.leaves: dict[Key, nn.Parameter] = {
            key: nn.Parameter(layout.view(self.parameters, key), requires_grad=trainable)
            for key in layout.slots
        }
        self._bind()

    @property
    def rows(self) -> int:
        """How many adapters the bank can hold."""
        return self.parameters.shape[0]

    def row(self, index: int) -> Tensor:
        """(P,) parameters of one adapter, a view."""
        return self.parameters[index]

    def gradient(self, key: Key) -> Tensor:
        """(rows, *shape) of the gradient table, a view."""
        if self.gradients is None:
            raise AdapterError("this bank holds no gradients: it was attached with trainable=False")
        return self.layout.view(self.gradients, key)

    def accumulated(self, key: Key) -> Tensor:
        """(rows, *shape), where a backward pass adds to a tensor's gradient: the table's view."""
        leaf = self.leaves[key]
        if leaf.grad is None:  # a default zero_grad() dropped the view
            leaf.grad = self.gradient(key).zero_()
        return leaf.grad

    def zero_grad(self) -> None:
        """Zero the gradient table, and restore the sharing if a default zero_grad() broke it."""
        if self.gradients is not None:
            zero(self.gradients)
        self._bind()

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast the tables; the leaves follow. The bank owns this: casting a leaf alone
        would take it out of the table."""
        if self.parameters.device == device and self.parameters.dtype == dtype:
            return
        self.parameters = self.parameters.to(device, dtype)
        if self.gradients is not None:
            self.gradients = self.gradients.to(device, dtype)
        self._bind()

    def check_sharing(self) -> None:
        """Raise AdapterError if a leaf no longer lies in the table, naming it."""
        tables = [(self.parameters, lambda leaf: leaf)]
        if self.gradients is not None:
            tables.append((self.gradients, lambda leaf: leaf.grad))
        for key, leaf in self.leaves.items():
            for table, part in tables:
                tensor, expected = part(leaf), self.layout.view(table, key)
                if (
                    tensor is None
                    or tensor.data_ptr() != expected.data_ptr()
                    or tensor.stride() != expected.stride()
                ):
                    raise AdapterError(
                        f"{'.'.join(key)}: no longer shares the bank's storage (after .to(), "
                        "zero_grad(set_to_none=True) or an assignment); call bank.zero_grad()"
                    )

    def _bind(self) -> None:
        for key, leaf in self.leaves.items():
            leaf.grad = None  # a gradient of another shape or place would be refused below
            leaf.data = self.layout.view(self.parameters, key)
            if self.gradients is not None:
                leaf.grad = self.layout.view(self.gradients, key)

    def __deepcopy__(self, memo: dict[int, Any]) -> Bank:
        copy = Bank(
            self.layout,
            self.rows,
            device=self.parameters.device,
            dtype=self.parameters.dtype,
            trainable=self.gradients is not None,
        )
        copy.parameters.copy_(self.parameters)
        # deepcopy may have met a leaf before the bank: that copy is then the one in use
        for key, leaf in self.leaves.items():
            copy.leaves[key] = memo.setdefault(id(leaf), copy.leaves[key])
        copy._bind()
        memo[id(self)] = copy
        return copy
