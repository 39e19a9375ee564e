"""The compiled rotary embedding has the bits of the plain one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rango.kernels import dispatch, rotary
from rango.numerics import rotary as reference

shared = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("variant")
@shared
@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 20), st.integers(0, 5), st.booleans())
def test_every_bit_is_the_same(
    tokens: int, heads: int, half: int, rest: int, inverse: bool
) -> None:
    dim = 2 * half + rest
    cos, sin = normal(tokens, 2 * half, seed=1), normal(tokens, 2 * half, seed=2)
    fused = normal(tokens, 3 + heads * dim + 5)
    before = fused.clone()
    x = fused[:, 3 : 3 + heads * dim].unflatten(1, (heads, dim))  # rows lie apart
    expected = reference.rotate(x, cos, sin, inverse=inverse)
    assert torch.equal(rotary.rotate(x, cos, sin, inverse=inverse), expected)
    assert torch.equal(rotary.rotate(x.contiguous(), cos, sin, inverse=inverse), expected)
    assert rotary.rotate(x, cos, sin, inverse=inverse, out=x) is x
    assert torch.equal(x, expected)
    assert torch.equal(fused[:, :3], before[:, :3])
    assert torch.equal(fused[:, 3 + heads * dim :], before[:, 3 + heads * dim :])


@pytest.mark.usefixtures("variant", "threads")
def test_many_tokens() -> None:
    x, cos, sin = normal(301, 7, 64), normal(301, 32, seed=1), normal(301, 32, seed=2)
    x[5, 3, 7], x[6, 2, 1] = torch.nan, torch.inf
    found, expected = rotary.rotate(x, cos, sin), reference.rotate(x, cos, sin)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("variant")
def test_the_compiled_kernel_serves_and_hands_back_what_it_cannot_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, cos, sin = normal(4, 3, 8), normal(4, 8, seed=1), normal(4, 8, seed=2)
    mixed = normal(3, 4, 8).transpose(0, 1)  # heads do not lie side by side
    for tensors in ((mixed, cos, sin), (x.double(), cos.double(), sin), (x, cos[:1], sin[:1])):
        assert torch.equal(rotary.rotate(*tensors), reference.rotate(*tensors))
    with dispatch.using("reference"):
        assert torch.equal(rotary.rotate(x, cos, sin), reference.rotate(x, cos, sin))
    same_rows = normal(1, 3, 8).expand(4, 3, 8)
    with pytest.raises(RuntimeError):
        rotary.rotate(x, cos, sin, out=same_rows)
    monkeypatch.setattr(rotary, "reference", None)
    rotary.rotate(x, cos, sin)
    rotary.rotate(normal(4, 60)[:, 7:31].unflatten(1, (3, 8)), cos, sin, out=x)
