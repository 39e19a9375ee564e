"""The same bits every time: torch's deterministic kernels, while a run lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Within the block, sums whose order would depend on threads are made in a fixed order.

    A kernel that has no deterministic form warns and runs. The switch is torch's own, for the
    whole process; it is put back at the end.
    """
    # cuBLAS reads it when it starts; without it, its sums may differ between two runs
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    fill: Any = torch.utils.deterministic
    filled = fill.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill.fill_uninitialized_memory = False  # else every fresh tensor is filled with NaN first
    try:
        yield
    finally:
        fill.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=warned)
