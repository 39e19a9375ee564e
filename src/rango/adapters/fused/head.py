"""The output head for a few tokens: a product that reads each weight once.

Only while a context says so, and only at heads that are plain linear layers in fp32: those that are
held otherwise come to the same kernels by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rango.adapters.fused.infer import MOST_TOKENS
from rango.adapters.mixin import mix_in, take_out
from rango.kernels import dispatch
from rango.kernels.products import Term, sum_products


class NarrowHead(nn.Module):
    """Mixed into nn.Linear within `narrow_head`."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        flat = x.reshape(-1, x.shape[-1])
        if (
            len(flat) > MOST_TOKENS
            or torch.is_autocast_enabled("cpu")
            or dispatch.native(flat, self.weight, self.bias) is None
        ):
            y: Tensor = super().forward(x)
            return y
        y = x.new_empty(*x.shape[:-1], len(self.weight))
        term = Term(flat, self.weight, transposed=True)
        sum_products([term], out=y.view(len(flat), -1), start=self.bias)
        return y


@contextmanager
def narrow_head(model: Any) -> Iterator[None]:
    """Within the block, the head of a model of transformers works so if it can."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if type(head) is not nn.Linear:
        yield
        return
    mix_in(head, NarrowHead)
    try:
        yield
    finally:
        take_out(head, NarrowHead)
