"""Sums of products, against the formula written out."""

from __future__ import annotations

import torch

from rango.numerics.int8 import dequantize_int8, quantize_int8
from rango.numerics.nf4 import dequantize_nf4, quantize_nf4
from rango.numerics.products import Term, sum_products, widen


def test_a_linear_layer_with_an_adapter_and_a_bias() -> None:
    torch.manual_seed(0)
    x, W, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    A, B = torch.randn(2, 7), torch.randn(3, 2)
    terms = [Term(x, W, transposed=True), Term(x @ A.T, B, transposed=True)]
    found = sum_products(terms, out=torch.empty(5, 3), start=bias)
    torch.testing.assert_close(found, x @ (W + B @ A).T + bias)


def test_rows_of_a_term_and_adding_to_what_is_there() -> None:
    out = torch.ones(4, 2)
    term = Term(torch.full((2, 3), 2.0), torch.ones(3, 2), rows=(1, 3))
    assert sum_products([term], out=out, start=out) is out
    assert torch.equal(out[:, 0], torch.tensor([1.0, 7.0, 7.0, 1.0]))


def test_widen_reads_every_kind() -> None:
    weight = torch.randn(4, 64)
    assert torch.equal(widen(weight), weight)
    assert torch.equal(widen(weight.bfloat16()), weight.bfloat16().float())
    nf4, int8 = quantize_nf4(weight), quantize_int8(weight)
    assert torch.equal(widen(nf4), dequantize_nf4(nf4, torch.float32))
    assert torch.equal(widen(int8), dequantize_int8(int8, torch.float32))
