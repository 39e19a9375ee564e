"""Memory for what lives no longer than one call: weights unpacked, activations on their way.

Touching fresh memory costs a CPU several times the unpacking, as much as the product itself.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class Workspace(threading.local):
    """One thread's memory, of one block a type."""

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}

    def room(self, count: int, dtype: torch.dtype) -> Tensor:
        """At least `count` elements, flat, on the CPU; the largest request so far is kept. The next
        call in this thread hands out the same memory."""
        memory = self._memory.get(dtype)
        if memory is None or len(memory) < count:
            self._memory.pop(dtype, None)
            memory = None  # freed before its successor is taken
            with torch.inference_mode(False):  # else it could not be written outside that mode
                memory = self._memory[dtype] = torch.empty(count, dtype=dtype)
        return memory

    def like(self, x: Tensor, columns: int) -> Tensor:
        """(rows of x, columns) in x's dtype, in this memory."""
        return self.room(len(x) * columns, x.dtype)[: len(x) * columns].view(len(x), columns)


workspace = Workspace()
