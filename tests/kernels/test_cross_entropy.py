"""The compiled head and loss against its plain statement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rango.kernels import dispatch
from rango.kernels.cross_entropy import CrossEntropy, linear_cross_entropy
from rango.numerics import cross_entropy as reference
from rango.numerics.int8 import quantize_int8
from rango.numerics.nf4 import quantize_nf4
from rango.numerics.products import FrozenWeight, widen

BUILDS = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not BUILDS, reason="the compiled kernels are not installed")

KINDS = {
    "fp32": lambda w: w,
    "fp32 rows apart": lambda w: torch.cat([w, w], dim=1)[:, : w.shape[1]],
    "bf16": lambda w: w.bfloat16(),
    "fp16": lambda w: w.half(),
    "int8": quantize_int8,
    "nf4": lambda w: quantize_nf4(w, double_quant=False),
    "nf4 nested": quantize_nf4,
}


@contextmanager
def on(build: str, threads: int = 1) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with dispatch.using(build):
            yield
    finally:
        torch.set_num_threads(before)


def in_fp64(
    hidden: Tensor,
    held: FrozenWeight,
    targets: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, losses and gradient by autograd."""
    leaf = hidden.double().requires_grad_()
    logits = leaf @ widen(held).double().T
    if bias is not None:
        logits = logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    losses.sum().backward()
    assert leaf.grad is not None
    return logits.detach(), losses.detach(), leaf.grad


def alike(
    found: CrossEntropy,
    logits: Tensor,
    losses: Tensor,
    gradient: Tensor,
    row: float,
    largest: float = 1.0,
) -> None:
    """What fp32 logits of this size allow: an error of 1e-6 of the largest in a loss, and as much
    of a weight of magnitude `row` in its gradient. largest: of those that a softcap made smaller;
    what rounding did to them it leaves."""
    size = 1e-6 * max(largest, float(logits.abs().max()))
    torch.testing.assert_close(found.losses.double(), losses, rtol=1e-6, atol=size)
    assert found.gradient is not None
    torch.testing.assert_close(found.gradient.double(), gradient, rtol=1e-5, atol=size * row)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    count=st.one_of(st.integers(1, 20), st.sampled_from([65, 130, 515])),
    vocabulary=st.one_of(st.integers(1, 300), st.sampled_from([128, 256, 1025])),
    width=st.one_of(st.integers(1, 70), st.sampled_from([448, 449])),
    scale=st.sampled_from([1.0, 0.0625, -1.5]),
    softcap=st.sampled_from([None, 30.0, 2.0]),
    biased=st.booleans(),
    threads=st.sampled_from([1, 2, 3, 11, 20]),
    seed=st.integers(0, 2**16),
)
def test_every_kind_in_every_shape(
    build: str,
    kind: str,
    count: int,
    vocabulary: int,
    width: int,
    scale: float,
    softcap: float | None,
    biased: bool,
    threads: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=generator)
    held = KINDS[kind](torch.randn(vocabulary, width, generator=generator) * 4 / width**0.5)
    bias = torch.randn(vocabulary, generator=generator) if biased else None
    targets = torch.randint(0, vocabulary, (count,), generator=generator)

    options = {"bias": bias, "scale": scale, "softcap": softcap}
    with on(build, threads):
        found = linear_cross_entropy(hidden, held, targets, **options)
        again = linear_cross_entropy(hidden, held, targets, **options)
        lean = linear_cross_entropy(hidden, held, targets, **options, need_gradient=False)
    logits, losses, gradient = in_fp64(hidden, held, targets, **options)
    before, _, _ = in_fp64(hidden, held, targets, bias, scale)  # the softcap
    largest = max(1.0, float(before.abs().max()))
    alike(found, logits, losses, gradient, abs(scale) * float(widen(held).abs().max()), largest)
    assert torch.equal(found.losses, again.losses)
    assert torch.equal(found.gradient, again.gradient)
    assert lean.gradient is None
    assert torch.equal(found.losses, lean.losses)
    assert torch.equal(found.correct, lean.correct)
    # the likeliest, unless two are as likely as rounding can tell
    top = logits.topk(min(2, vocabulary), dim=1).values
    clear = (top[:, 0] - top[:, -1] > 1e-4) | (vocabulary == 1)
    assert torch.equal(found.correct[clear], (logits.argmax(dim=1) == targets)[clear])


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_tokens_in_several_chunks(build: str, threads: int) -> None:
    """So wide that 8 MB hold the tables of 64 tokens, or of 127 for a thread alone."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(150, 8200, generator=generator)
    weight = torch.randn(300, 8200, generator=generator) / 8200**0.5
    targets = torch.randint(0, 300, (150,), generator=generator)
    with on(build, threads):
        found = linear_cross_entropy(hidden, weight, targets)
        lean = linear_cross_entropy(hidden, weight, targets, need_gradient=False)
    alike(found, *in_fp64(hidden, weight, targets), float(weight.abs().max()))
    assert torch.equal(found.losses, lean.losses)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_vocabulary_is_summed_exactly(build: str, threads: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 12), torch.randn(262_144, 12)
    targets = torch.randint(0, len(weight), (8,))
    with on(build, threads):
        found = linear_cross_entropy(hidden, weight, targets)
    _, losses, gradient = in_fp64(hidden, weight, targets)
    torch.testing.assert_close(found.losses.double(), losses, rtol=1e-6, atol=0.0)
    error = (found.gradient - gradient).norm() / gradient.norm()
    assert float(error) < 1e-6


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("falling", [False, True])
def test_logits_that_rise_or_fall_through_the_vocabulary(
    build: str, threads: int, falling: bool
) -> None:
    # every block raises the shift, or none does; exponentials span 1e±170
    rows = torch.linspace(-400, 400, 1000).unsqueeze(1)
    weight = torch.cat([rows.flip(0) if falling else rows, torch.randn(1000, 4)], dim=1)
    hidden = torch.cat([torch.ones(3, 1), 0.1 * torch.randn(3, 4)], dim=1)
    targets = torch.tensor([0, 500, 999])
    with on(build, threads):
        found = linear_cross_entropy(hidden, weight, targets)
    alike(found, *in_fp64(hidden, weight, targets), 400.0)
    assert found.correct.tolist() == [falling, False, not falling]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_of_equal_logits_the_first_is_the_likeliest(build: str, threads: int) -> None:
    weight = torch.zeros(700, 3)
    weight[[130, 131, 650]] = 1.0
    targets = torch.tensor([130, 131, 650, 0])
    with on(build, threads):
        found = linear_cross_entropy(torch.ones(4, 3), weight, targets)
        equal = linear_cross_entropy(torch.zeros(4, 3), weight, targets)
    assert found.correct.tolist() == [True, False, False, False]
    assert equal.correct.tolist() == [False, False, False, True]
    assert equal.losses.tolist() == pytest.approx([math.log(700)] * 4, rel=1e-6)


@pytest.mark.parametrize("build", BUILDS)
def test_a_loss_near_zero_keeps_its_digits(build: str) -> None:
    weight = torch.tensor([[20.0], [0.0], [0.0]])
    with on(build):
        found = linear_cross_entropy(torch.ones(1, 1), weight, torch.tensor([0]))
    # fp32 holds 1 + 4e-9 as 1: what is asked is that nothing worse than that happens to it
    assert float(found.losses) == pytest.approx(math.log1p(2 * math.exp(-20)), abs=1e-8)


@pytest.mark.parametrize("build", BUILDS)
def test_a_bias_of_minus_infinity_takes_a_token_out(build: str) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(3, 8), torch.randn(400, 8), torch.tensor([5, 300, 399])
    bias = torch.zeros(400)
    bias[torch.arange(400) % 2 == 0] = -math.inf
    bias[:256] = -math.inf  # whole blocks, the first among them
    bias[targets] = 0.0
    with on(build):
        found = linear_cross_entropy(hidden, weight, targets, bias=bias)
    kept = bias == 0
    places = kept.cumsum(0) - 1
    alike(found, *in_fp64(hidden, weight[kept], places[targets]), 4.0)


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_no_number_stays_none(build: str) -> None:
    hidden = torch.ones(3, 4)
    hidden[1, 2] = math.nan
    with on(build):
        found = linear_cross_entropy(hidden, torch.randn(300, 4), torch.tensor([0, 1, 2]))
    assert found.losses.isnan().tolist() == [False, True, False]
    assert found.gradient.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("build", BUILDS)
def test_no_tokens_and_wrong_targets(build: str) -> None:
    weight = torch.randn(7, 3)
    with on(build):
        none = linear_cross_entropy(torch.empty(0, 3), weight, torch.empty(0, dtype=torch.int64))
        assert none.losses.shape == none.correct.shape == (0,)
        for wrong in (7, -100):
            with pytest.raises(IndexError, match="from 0 to 6"):
                linear_cross_entropy(torch.zeros(1, 3), weight, torch.tensor([wrong]))
        with pytest.raises(ValueError, match="expected hidden"):
            linear_cross_entropy(torch.zeros(1, 4), weight, torch.tensor([1]))


@pytest.mark.parametrize("build", BUILDS)
def test_what_the_kernel_cannot_read_takes_the_reference(build: str) -> None:
    torch.manual_seed(0)
    weight, targets = torch.randn(20, 6), torch.tensor([3, 4])
    hidden = torch.randn(2, 6)
    odd: list[tuple[Tensor, Tensor]] = [
        (hidden.bfloat16(), weight),
        (hidden, torch.randn(6, 20).T),
    ]
    with on(build):
        turned = linear_cross_entropy(hidden.T.contiguous().T, weight, targets)
        assert torch.equal(turned.losses, linear_cross_entropy(hidden, weight, targets).losses)
        for h, w in odd:
            found = linear_cross_entropy(h, w, targets)
            expected = reference.linear_cross_entropy(h, w, targets)
            assert torch.equal(found.losses, expected.losses)
            assert torch.equal(found.gradient, expected.gradient)


@pytest.mark.parametrize("build", BUILDS)
def test_a_softcap_of_zero_is_none(build: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 12, generator=generator) for n in (6, 40))
    targets = torch.arange(6)
    for run in (linear_cross_entropy, reference.linear_cross_entropy):
        with on(build):
            none, zero = (run(hidden, weight, targets, softcap=cap) for cap in (None, 0.0))
        assert torch.equal(none.losses, zero.losses)
        assert none.gradient is not None
        assert zero.gradient is not None
        assert torch.equal(none.gradient, zero.gradient)


@pytest.mark.parametrize("build", BUILDS)
def test_targets_elsewhere_are_not_read(build: str) -> None:
    with on(build), pytest.raises((RuntimeError, NotImplementedError)):
        linear_cross_entropy(
            torch.ones(3, 4), torch.ones(5, 4), torch.zeros(3, dtype=torch.int64, device="meta")
        )
