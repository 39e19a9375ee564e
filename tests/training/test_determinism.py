"""Deterministic kernels are on for a run, and the process is as it was afterwards."""

from __future__ import annotations

import pytest
import torch

from rango.training.determinism import deterministic_kernels


@pytest.mark.parametrize("before", [False, True])
def test_the_switch_is_put_back(before: bool) -> None:
    torch.use_deterministic_algorithms(before)
    try:
        with deterministic_kernels():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.are_deterministic_algorithms_enabled() is before
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
