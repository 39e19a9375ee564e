"""Single kernels against those of torch and bitsandbytes: GB/s or GFLOP/s.

    python benchmarks/kernels.py --only nf4

All in one process, each kernel and its peer in turn. Peers allocate their results, as they do in
use; ours write into reused memory, as they do in use.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from contest import hide_folder, say, summary
from foreign import Moment, foreign_load
from result import Findings, Row, program, seconds_of

SAMPLE_SECONDS = 0.03
"""At least; short kernels are repeated until a sample takes that long."""
FULL, QUICK = (5632, 2048, 512), (1536, 512, 256)
"""Out, in and tokens: TinyLlama's mlp.up_proj, and that of the 25M shape."""
VOCABULARY = 32_000


@dataclass(frozen=True)
class Case:
    """A kernel, its peer, and what a call of either amounts to (bytes or operations)."""

    name: str
    unit: str
    amount: float
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    against: str
    goals: tuple[float, float] | None = None
    tolerance: float | None = None
    """Of ours against the peer, relative to the largest value; None where they aren't tensors."""


@dataclass(frozen=True)
class Sizes:
    """Of the weight (out, in), and the tokens multiplied with it."""

    out: int
    inner: int
    tokens: int


def nf4(sizes: Sizes) -> Iterator[Case]:
    """Quantizing and dequantizing; GB/s of the fp32 weight."""
    import torch
    from bitsandbytes import functional

    from rango.kernels.nf4 import dequantize_nf4, quantize_nf4

    weight = torch.randn(sizes.out, sizes.inner) * 0.02
    room = torch.empty(weight.numel())
    for nested in (True, False):
        kind = "double quantization" if nested else "plain constants"
        ours = quantize_nf4(weight, double_quant=nested)
        quantize = partial(
            functional.quantize_4bit, weight, quant_type="nf4", compress_statistics=nested
        )
        theirs, state = quantize()
        yield Case(
            f"NF4 dequantize, {kind}",
            "GB/s",
            weight.nbytes,
            partial(dequantize_nf4, ours, torch.float32, into=room),
            partial(functional.dequantize_4bit, theirs, state),
            "bitsandbytes",
            (1.5, 5.0),
            # a few double-quantized constants fall to a neighbouring code
            1e-2 if nested else 0.0,
        )
        yield Case(
            f"NF4 quantize, {kind}",
            "GB/s",
            weight.nbytes,
            partial(quantize_nf4, weight, double_quant=nested),
            quantize,
            "bitsandbytes",
            (10.0, 20.0),
        )


def products(sizes: Sizes) -> Iterator[Case]:
    """y = x·Wᵀ and dx = dy·W over frozen weights, against torch's on fp32 weights."""
    import torch
    from torch.nn.functional import linear

    from rango.kernels.products import Term, sum_products

    held = _held(sizes)
    x, dy = torch.randn(sizes.tokens, sizes.inner), torch.randn(sizes.tokens, sizes.out)
    y, dx = torch.empty_like(dy), torch.empty_like(x)
    for kind, (weight, wide) in held.items():
        flops = 2.0 * sizes.tokens * wide.numel()
        for name, term, out, peer in (
            ("y = x·Wᵀ", Term(x, weight, transposed=True), y, partial(linear, x, wide)),
            ("dx = dy·W", Term(dy, weight), dx, partial(torch.mm, dy, wide)),
        ):
            ours = partial(sum_products, [term], out=out)
            yield Case(
                f"{name}, {kind}", "GFLOP/s", flops, ours, peer, "torch fp32", tolerance=1e-5
            )


def narrow(sizes: Sizes) -> Iterator[Case]:
    """y = x·Wᵀ for a few rows, as in decoding; GB/s of the weight as it would be in fp32."""
    import bitsandbytes
    import torch
    from bitsandbytes import functional
    from torch.nn.functional import linear

    from rango.kernels.products import Term, sum_products

    held = _held(sizes)
    wide = held["fp32"][1]
    wide_bf16 = wide.bfloat16()
    packed, state = functional.quantize_4bit(wide, quant_type="nf4", compress_statistics=True)
    for rows in (1, 8):
        x = torch.randn(rows, sizes.inner)
        y = torch.empty(rows, sizes.out)
        peers: dict[str, Callable[[], Any]] = {
            "torch fp32": partial(linear, x, wide),
            "torch bf16": partial(linear, x.bfloat16(), wide_bf16),
            "bitsandbytes matmul_4bit": partial(bitsandbytes.matmul_4bit, x, packed.t(), state),
        }
        pairs = [(kind, "torch fp32") for kind in held] + [
            ("bf16", "torch bf16"),
            ("NF4", "torch bf16"),
            ("NF4", "bitsandbytes matmul_4bit"),
        ]
        for kind, peer in pairs:
            term = Term(x, held[kind][0], transposed=True)
            yield Case(
                f"y = x·Wᵀ, {rows} row{'s' * (rows > 1)}, {kind}",
                "GB/s",
                wide.nbytes,
                partial(sum_products, [term], out=y),
                peers[peer],
                peer,
            )


def elementwise(sizes: Sizes) -> Iterator[Case]:
    """Norm, gated activation, rotary embedding; GB/s of what must be read and written once."""
    import torch
    from torch.nn import functional

    from rango.kernels.gated import gated, gated_backward
    from rango.kernels.norm import rms_norm, rms_norm_backward
    from rango.kernels.rotary import rotate

    def case(name: str, size: int, ours: Callable[[], Any], peer: Callable[[], Any]) -> Case:
        return Case(name, "GB/s", size, ours, peer, "torch", tolerance=1e-5)

    x, weight = torch.randn(sizes.tokens, sizes.inner), torch.rand(sizes.inner)
    dy, room, eps, shape = torch.randn(x.shape), torch.empty(x.shape), 1e-6, (sizes.inner,)
    yield case(
        "RMSNorm",
        2 * x.nbytes,
        lambda: rms_norm(x, weight, eps, out=room),
        lambda: functional.rms_norm(x, shape, weight, eps),
    )
    yield case(
        "RMSNorm backward",
        3 * x.nbytes,
        lambda: rms_norm_backward(dy, x, weight, eps, out=room),
        _backward(lambda leaf: functional.rms_norm(leaf, shape, weight, eps), dy, x),
    )
    gate, up, dz = (torch.randn(sizes.tokens, sizes.out) for _ in range(3))
    rooms = torch.empty(gate.shape), torch.empty(gate.shape)
    yield case(
        "SwiGLU",
        3 * gate.nbytes,
        lambda: gated(gate, up, "silu", out=rooms[0]),
        lambda: functional.silu(gate) * up,
    )
    yield case(
        "SwiGLU backward",
        5 * gate.nbytes,
        lambda: gated_backward(dz, gate, up, "silu", out=rooms),
        _backward(lambda a, b: functional.silu(a) * b, dz, gate, up),
    )
    heads = torch.randn(sizes.tokens, max(1, sizes.inner // 64), 64)
    angles = torch.outer(torch.arange(sizes.tokens), 1e4 ** -(torch.arange(32) / 32)).repeat(1, 2)
    cos, sin, turned = angles.cos(), angles.sin(), torch.empty_like(heads)

    def as_transformers() -> Any:
        halves = torch.cat([-heads[..., 32:], heads[..., :32]], dim=-1)
        return heads * cos[:, None] + halves * sin[:, None]

    yield case(
        "rotary embedding",
        2 * heads.nbytes,
        lambda: rotate(heads, cos, sin, out=turned),
        as_transformers,
    )


def attention(sizes: Sizes) -> Iterator[Case]:
    """One causal text, and four packed in a row; GFLOP/s of what is visible."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from rango.kernels.attention import attention, attention_backward

    heads, tokens = max(1, sizes.inner // 64), sizes.tokens
    q, k, v, grad = (torch.randn(1, heads, tokens, 64) for _ in range(4))
    for count in (1, 4):
        length = tokens // count
        bounds = torch.arange(0, tokens + 1, length, dtype=torch.int32)
        text = torch.arange(tokens) // length
        mask = (text[:, None] == text).tril() if count > 1 else None
        options: dict[str, Any] = {"is_causal": True} if mask is None else {"attn_mask": mask}
        out, lse = attention(q, k, v, bounds, scale=1 / 8)
        into = tuple(torch.empty_like(q) for _ in range(3))
        visible = count * length * (length + 1) // 2 * 64 * heads
        name = "attention" if count == 1 else f"attention, {count} texts packed"
        yield Case(
            name,
            "GFLOP/s",
            4.0 * visible,
            partial(attention, q, k, v, bounds, scale=1 / 8, out=out),
            partial(sdpa, q, k, v, **options),
            "torch sdpa",
            tolerance=1e-5,
        )
        yield Case(
            f"{name}, backward",
            "GFLOP/s",
            10.0 * visible,
            partial(attention_backward, grad, q, k, v, out, lse, bounds, scale=1 / 8, into=into),
            _backward(partial(sdpa, **options), grad, q, k, v),
            "torch sdpa",
            tolerance=1e-4,
        )


def head(sizes: Sizes) -> Iterator[Case]:
    """The head's product, the loss, and the gradient of the hidden states; GFLOP/s."""
    import torch
    from torch.nn import functional

    from rango.kernels.cross_entropy import linear_cross_entropy

    vocabulary = VOCABULARY if sizes == Sizes(*FULL) else sizes.out
    weight = torch.randn(vocabulary, sizes.inner) * 0.02
    hidden = torch.randn(sizes.tokens, sizes.inner)
    targets = torch.randint(vocabulary, (sizes.tokens,))

    def peer() -> Any:
        leaf = hidden.detach().requires_grad_()
        with torch.enable_grad():
            losses = functional.cross_entropy(leaf @ weight.T, targets, reduction="none")
            losses.sum().backward()
        return losses.detach()

    yield Case(
        "linear + cross-entropy with its gradient",
        "GFLOP/s",
        4.0 * sizes.tokens * weight.numel(),
        lambda: linear_cross_entropy(hidden, weight, targets).losses,
        peer,
        "torch fp32",
        tolerance=1e-5,
    )


def _backward(forward: Callable[..., Any], grad: Any, *inputs: Any) -> Callable[[], Any]:
    """torch's own backward pass of forward(*inputs), again and again."""
    import torch

    leaves = [each.clone().requires_grad_() for each in inputs]
    with torch.enable_grad():
        y = forward(*leaves)
    return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)


def _held(sizes: Sizes) -> dict[str, tuple[Any, Any]]:
    """A weight as it can be held, and in fp32."""
    import torch

    from rango.numerics.int8 import quantize_int8
    from rango.numerics.nf4 import quantize_nf4
    from rango.numerics.products import widen

    weight = torch.randn(sizes.out, sizes.inner) * 0.02
    held = {
        "fp32": weight,
        "bf16": weight.bfloat16(),
        "int8": quantize_int8(weight),
        "NF4": quantize_nf4(weight),
    }
    return {kind: (each, widen(each).clone()) for kind, each in held.items()}


CASES: dict[str, Callable[[Sizes], Iterator[Case]]] = {
    "nf4": nf4,
    "products": products,
    "narrow": narrow,
    "elementwise": elementwise,
    "attention": attention,
    "head": head,
}


def measure(options: argparse.Namespace, speed: dict[str, Any], findings: Findings) -> None:
    import torch

    hide_folder()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes = Sizes(*(options.sizes or (QUICK if options.quick else FULL)))
    rounds = options.rounds or (3 if options.quick else 11)
    foreign: dict[str, list[float]] = {}
    with torch.no_grad():
        for family in options.only or CASES:
            try:
                for case in CASES[family](sizes):
                    foreign[f"{case.name}, {case.against}"] = _measure(
                        case, rounds, sizes, speed, findings
                    )
            except ImportError as error:  # a kernel that this build does not have
                findings.failures.append(f"{family}: {error}")
    cores = [each for case in foreign.values() for each in case] or [0.0]
    findings.measured["kernels"] = {"all": {"foreign_cores": summary(cores), "by_case": foreign}}


def _measure(
    case: Case, rounds: int, sizes: Sizes, speed: dict[str, Any], findings: Findings
) -> list[float]:
    """Add the case's row; returns the foreign load while each round was taken."""
    if case.tolerance is not None:
        ours, peer = (
            found[0] if isinstance(found, tuple) else found for found in (case.ours(), case.peer())
        )
        error = float((ours.view(peer.shape) - peer).abs().max() / peer.abs().max())
        findings.checks.append(
            {"what": f"{case.name} and {case.against}", "error": error}
            | {"ok": error <= case.tolerance}
        )
    works = (case.ours, case.peer)
    repeats = [max(1, round(SAMPLE_SECONDS / max(_twice(work), 1e-7))) for work in works]
    samples: tuple[list[float], list[float]] = ([], [])
    foreign = []
    for number in range(rounds):
        own, before = time.process_time(), Moment.now()
        for side in (0, 1) if number % 2 else (1, 0):
            seconds = seconds_of(lambda s=side: [works[s]() for _ in range(repeats[s])])
            samples[side].append(case.amount * repeats[side] / seconds / 1e9)
        busy = time.process_time() - own
        foreign.append(foreign_load(before, Moment.now(), busy)["foreign_cores"])
    row = Row.of(
        case.name,
        case.unit,
        *samples,
        case.against,
        case.goals if sizes == Sizes(*FULL) else None,
        weight=[sizes.out, sizes.inner],
        tokens=sizes.tokens,
    )
    peak = "gemm_fp32_gflops" if case.unit == "GFLOP/s" else "copy_gb_per_second"
    row.settings[f"share_of_{peak}"] = row.ours / speed[peak]
    findings.rows.append(row)
    say(f"  {case.name}: {row.ours:.1f} {case.unit}, {case.against} {row.peer:.1f}")
    return foreign


def _twice(work: Callable[[], Any]) -> float:
    """Seconds of the second call."""
    return [seconds_of(work) for _ in range(2)][1]


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=CASES)
    parser.add_argument("--sizes", nargs=3, type=int, help="out, in, tokens")


def main(arguments: Sequence[str] | None = None) -> int:
    return program("kernels", __doc__, measure, arguments, _add)


if __name__ == "__main__":
    sys.exit(main())
