"""A kernel that writes into a given tensor is seen by autograd, as torch's own operations are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rango.kernels import adamw, attention, gated, int8, nf4, norm, products, rotary
from rango.numerics.products import Term

X = torch.ones(4, 8)
ROW = torch.ones(8)
HEADS, ANGLES = torch.ones(4, 2, 4), torch.ones(4, 4)
BOUNDS = torch.tensor([0, 4])
EPS = 1e-6

WRITERS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], object]]] = {
    "products": ((4, 4), lambda y: products.sum_products([Term(X, X, transposed=True)], out=y)),
    "rms_norm": ((4, 8), lambda y: norm.rms_norm(X, ROW, EPS, out=y)),
    "rms_norm_backward": ((4, 8), lambda y: norm.rms_norm_backward(X, X, ROW, EPS, out=y)),
    "added": ((4, 8), lambda y: norm.rms_norm_backward(X, X, ROW, EPS, add_to=y)),
    "layer_norm": ((4, 8), lambda y: norm.layer_norm(X, ROW, ROW, EPS, out=y)),
    "layer_norm_backward": ((4, 8), lambda y: norm.layer_norm_backward(X, X, ROW, EPS, out=y)),
    "rotate": ((4, 2, 4), lambda y: rotary.rotate(HEADS, ANGLES, ANGLES, out=y)),
    "activate": ((4, 8), lambda y: gated.activate(X, "silu", out=y)),
    "activate_backward": ((4, 8), lambda y: gated.activate_backward(X, X, "silu", out=y)),
    "gated": ((4, 8), lambda y: gated.gated(X, X, "silu", out=y)),
    "gated_backward": ((4, 8), lambda y: gated.gated_backward(X, X, X, "silu", out=(y, X.clone()))),
    "attention": (
        (4, 2, 4),
        lambda y: attention.attention(HEADS, HEADS, HEADS, BOUNDS, scale=1.0, out=y),
    ),
    "attention_backward": (
        (4, 2, 4),
        lambda y: attention.attention_backward(
            *(HEADS, HEADS, HEADS, HEADS, HEADS, torch.ones(2, 4), BOUNDS),
            scale=1.0,
            into=(y, HEADS.clone(), HEADS.clone()),
        ),
    ),
    "nf4": ((32,), lambda y: nf4.dequantize_nf4(nf4.quantize_nf4(X), into=y)),
    "int8": ((32,), lambda y: int8.dequantize_int8(int8.quantize_int8(X), into=y)),
    "adamw": (
        (4, 8),
        lambda y: adamw.adamw_(
            *(y, X, X.clone(), X.clone(), torch.ones(4), torch.tensor(0.1)),
            beta1=0.9,
            beta2=0.99,
            eps=1e-8,
            weight_decay=0.0,
        ),
    ),
}


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_saved_and_then_written_is_refused(name: str) -> None:
    shape, write = WRITERS[name]
    y, factor = torch.zeros(shape), torch.ones(shape, requires_grad=True)
    product = (y * factor).sum()  # keeps y for its backward pass
    with torch.no_grad():
        write(y)
    assert y._version > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.usefixtures("variant")
def test_within_inference_mode() -> None:
    with torch.inference_mode():
        assert gated.activate(X, "relu", out=torch.zeros(4, 8)).equal(X)
