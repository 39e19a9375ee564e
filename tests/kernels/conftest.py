"""What the kernels' tests share: the builds of the compiled module, and numbers of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from rango.kernels import dispatch


@pytest.fixture(params=["avx2", "portable"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each build of the compiled kernels, in use during the test; those that are not here, or not
    wanted (RANGO_KERNELS=reference), are reported as skipped."""
    name = str(request.param)
    if os.environ.get(dispatch.VARIABLE) == "reference":
        pytest.skip(f"{dispatch.VARIABLE}=reference: no compiled kernel is wanted")
    if name not in dispatch.available():
        pytest.skip(f"no {name} kernels here; there are: {', '.join(dispatch.available())}")
    with dispatch.using(name):
        yield name


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """PyTorch's number of threads during the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
