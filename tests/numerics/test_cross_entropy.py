"""Head and loss in one against torch's logits, cross-entropy and autograd, in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy as torch_cross_entropy

from rango.numerics import cross_entropy
from rango.numerics.cross_entropy import linear_cross_entropy
from rango.numerics.int8 import quantize_int8
from rango.numerics.nf4 import quantize_nf4
from rango.numerics.products import widen


@given(
    count=st.integers(1, 9),
    vocabulary=st.integers(1, 40),
    width=st.integers(1, 20),
    scale=st.sampled_from([1.0, 0.0625, -2.0]),
    softcap=st.sampled_from([None, 30.0, 1.0]),
    biased=st.booleans(),
    piece=st.sampled_from([1, 100, 1 << 25]),
    seed=st.integers(0, 2**16),
)
def test_losses_and_gradients_are_those_of_autograd(
    count: int,
    vocabulary: int,
    width: int,
    scale: float,
    softcap: float | None,
    biased: bool,
    piece: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator)
    bias = torch.randn(vocabulary, generator=generator) if biased else None
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_PIECE", piece)
        found = linear_cross_entropy(
            hidden, weight, targets, bias=bias, scale=scale, softcap=softcap
        )

    leaf = hidden.double().requires_grad_()
    logits = leaf @ weight.double().T
    if bias is not None:
        logits = logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = torch_cross_entropy(logits, targets, reduction="none")
    losses.sum().backward()
    assert found.losses.dtype == torch.float32
    torch.testing.assert_close(found.losses.double(), losses.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.gradient.double(), leaf.grad, rtol=1e-5, atol=1e-5)


def test_closed_forms() -> None:
    # equal logits: ln V, and the gradient is the rows' mean less the target's row
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [3.0, 3.0]])
    found = linear_cross_entropy(torch.zeros(2, 2), weight, torch.tensor([0, 3]))
    assert found.losses.tolist() == pytest.approx([math.log(4)] * 2)
    torch.testing.assert_close(found.gradient, torch.tensor([[0.0, 1.0], [-2.0, -2.0]]))
    # of equal logits the first is the likeliest
    assert found.correct.tolist() == [True, False]
    # two classes: log(1 + exp(-x))
    pair = linear_cross_entropy(
        torch.tensor([[2.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([0])
    )
    assert float(pair.losses) == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-6)
    assert float(pair.gradient) == pytest.approx(-1 / (1 + math.exp(2.0)), rel=1e-6)


def test_a_target_beyond_doubt_costs_nothing() -> None:
    weight = torch.tensor([[300.0], [0.0]])
    found = linear_cross_entropy(torch.ones(2, 1), weight, torch.tensor([0, 1]))
    assert found.losses.tolist() == [0.0, 300.0]
    assert found.gradient.tolist() == [[0.0], [300.0]]


@pytest.mark.parametrize("quantize", [quantize_nf4, quantize_int8, torch.Tensor.bfloat16])
def test_a_narrow_weight_counts_as_its_values_in_fp32(quantize: object) -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(5, 16), torch.randint(0, 24, (5,))
    held = quantize(torch.randn(24, 16))  # type: ignore[operator]
    found = linear_cross_entropy(hidden, held, targets)
    expected = linear_cross_entropy(hidden, widen(held), targets)
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.gradient, expected.gradient)


def test_without_a_gradient_and_without_tokens() -> None:
    weight = torch.randn(7, 3)
    found = linear_cross_entropy(
        torch.randn(2, 3), weight, torch.tensor([1, 2]), need_gradient=False
    )
    assert found.gradient is None
    none = linear_cross_entropy(torch.empty(0, 3), weight, torch.empty(0, dtype=torch.int64))
    assert none.losses.shape == none.correct.shape == (0,)
    assert none.gradient.shape == (0, 3)


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, targets = torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"\[2, 3\], \[5, 4\], \[2\]"):
        linear_cross_entropy(hidden, torch.zeros(5, 4), targets)
    with pytest.raises(ValueError, match=r"targets \(K,\), found .* \[1\]"):
        linear_cross_entropy(hidden, weight, targets[:1])
    with pytest.raises(ValueError, match=r"bias \[5\], found \[4\]"):
        linear_cross_entropy(hidden, weight, targets, bias=torch.zeros(4))
    for wrong in (5, -100):
        with pytest.raises(IndexError, match=f"from 0 to 4, found .*{wrong}"):
            linear_cross_entropy(hidden, weight, torch.tensor([2, wrong]))
