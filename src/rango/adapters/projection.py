"""One linear layer with its adapters: forward and backward on plain tensors, as sums of products.

    y = x·Wᵀ + b + Σ s·(x·Aᵀ)·Bᵀ          over the segments of the batch, each with its own row
    g_h = s·g·B     dA = g_hᵀ·x     dB = gᵀ·(s·x·Aᵀ)     dx = g·W + g_h·A

(Hu et al. 2021, arXiv 2106.09685.) The base's product and the adapters' are one sum each way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rango.adapters.site import Site
from rango.adapters.update import Part
from rango.base.linear import QuantizedLinear
from rango.base.stored import StoredLinear
from rango.kernels import dispatch
from rango.kernels.products import FrozenWeight, Term, sum_products


@dataclass(frozen=True)
class Narrow:
    """What the forward pass keeps of one segment at one site: h = s·x·Aᵀ, (n, r)."""

    site: Site
    part: Part
    h: Tensor

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of the segment's row."""
        return self.site.A.detach()[self.part.row], self.site.B.detach()[self.part.row]


@dataclass(frozen=True)
class InputGradient:
    """A layer's share of dx: terms of a sum, and what does not come as a product."""

    terms: list[Term]
    rest: Tensor | None = None


@dataclass(frozen=True)
class Projection:
    """A linear layer (in) -> (out) of the base, with the site of its adapters if it has one."""

    weight: FrozenWeight
    bias: Tensor | None
    site: Site | None

    @staticmethod
    def over(module: Any, site: Site | None = None) -> Projection | None:
        """A linear module of the base as it is held; None if it is not known to be just that."""
        if isinstance(module, QuantizedLinear):
            return Projection(module.quantized, module.bias, site)
        if type(module) in (nn.Linear, StoredLinear):
            return Projection(module.weight, module.bias, site)
        return None

    @property
    def out_features(self) -> int:
        """Columns of y."""
        return int(self.weight.shape[0])

    @property
    def leaves(self) -> tuple[Tensor | None, Tensor | None]:
        """A and B as autograd knows them."""
        return (None, None) if self.site is None else (self.site.A, self.site.B)

    def parts(self, leading: torch.Size) -> list[Part]:
        """The segments that act on inputs (*leading, in)."""
        if self.site is None or not self.site.switch.acts:
            return []
        return self.site.parts(leading, self.site.A.device)

    def forward(
        self, x: Tensor, parts: Sequence[Part], out: Tensor, start: Tensor | None = None
    ) -> list[Narrow]:
        """out (T, out) = start + b + x·Wᵀ + the segments' updates; x (T, in)."""
        terms = [Term(x, self.weight, transposed=True)]
        kept = [self._narrow(part, x) for part in parts]
        for narrow in kept:
            _, B = narrow.factors()
            terms += [
                Term(narrow.h[own], B, transposed=True, rows=(rows.start, rows.stop))
                for rows, own in narrow.part.pieces()
            ]
        if start is None:
            start = self.bias
        elif self.bias is not None:
            start = start + self.bias
        sum_products(terms, out=out, start=start)
        return kept

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        kept: Sequence[Narrow],
        gradients: Gradients,
        wanted: Wanted,
        for_x: bool = True,
    ) -> InputGradient:
        """Add up the gradients of A and B that are wanted; return x's, empty if not `for_x`.

        grad (T, out) and x (T, in) as in the forward pass, neither changed.
        """
        terms = [Term(grad, self.weight)] if for_x else []
        rest: Tensor | None = None
        for narrow in kept:
            part, (A, B) = narrow.part, narrow.factors()
            for rows, own in part.pieces():
                h, g = narrow.h[own], grad[rows]
                if wanted[1]:
                    gradients.add(narrow.site, 1, part.row, Term(g.T, h))
                if not (wanted[0] or for_x):
                    continue
                g_h = sum_products([Term(g, B)], out=torch.empty_like(h))
                g_h *= part.scale if isinstance(part.scale, float) else part.scale[own]
                if wanted[0]:
                    inputs = part.dropped(x[rows], own)
                    gradients.add(narrow.site, 0, part.row, Term(g_h.T, inputs))
                if for_x and part.keep is None:
                    terms.append(Term(g_h, A, rows=(rows.start, rows.stop)))
                elif for_x:
                    rest = torch.zeros_like(x) if rest is None else rest
                    rest[rows] += part.dropped(g_h @ A, own)
        return InputGradient(terms, rest)

    def _narrow(self, part: Part, x: Tensor) -> Narrow:
        assert self.site is not None  # noqa: S101 - only a site has segments
        count = sum(last - first for first, last in part.runs)
        narrow = Narrow(self.site, part, x.new_empty(count, self.site.A.shape[1]))
        A, _ = narrow.factors()
        for rows, own in part.pieces():
            inputs = part.dropped(x[rows], own)
            sum_products([Term(inputs, A, transposed=True)], out=narrow.h[own])
        narrow.h.mul_(part.scale)
        return narrow


class Gradients:
    """Where the gradients of A and B go: in a bank of one row the ordinary way through autograd
    (hooks and torch.autograd.grad work), else straight into the bank's table."""

    def __init__(self) -> None:
        self._single: dict[tuple[Site, int], Tensor] = {}

    def add(self, site: Site, which: int, row: int, term: Term) -> None:
        """Add a product to the gradient of a row's A (`which` 0, (r, in)) or B (1, (out, r))."""
        if site.bank.rows > 1:
            table = site.bank.accumulated(site.keys[which])[row]
            sum_products([term], out=table, start=table)
            return
        before = self._single.get((site, which))
        into = torch.empty_like((site.A, site.B)[which][0]) if before is None else before
        self._single[site, which] = sum_products([term], out=into, start=before)

    def for_autograd(self, projections: Sequence[Projection]) -> list[Tensor | None]:
        """Of A and B of each projection, (1, …); None where they are in the table."""
        found: list[Tensor | None] = []
        for projection in projections:
            for which in (0, 1):
                site = projection.site
                gradient = None if site is None else self._single.get((site, which))
                found.append(None if gradient is None else gradient[None])
        return found


Wanted = tuple[bool, bool]
"""Whether the gradients of A and of B are asked for."""


def wanted_of(needs_input_grad: Sequence[bool], count: int) -> list[Wanted]:
    """For `count` projections whose leaves are the last inputs of an autograd function."""
    leaves = needs_input_grad[len(needs_input_grad) - 2 * count :]
    return [(leaves[2 * i], leaves[2 * i + 1]) for i in range(count)]


def sum_gradients(
    shares: Sequence[InputGradient], out: Tensor, start: Tensor | None = None
) -> Tensor:
    """dx of layers that read the same x: one sum over all of them, written to `out`."""
    sum_products([term for share in shares for term in share.terms], out=out, start=start)
    for share in shares:
        if share.rest is not None:
            out += share.rest
    return out


def project(projection: Projection, x: Tensor) -> Tensor | None:
    """y (..., out) for x (..., in), as one step of autograd; None where the kernels cannot."""
    weight = projection.weight
    if (
        x.shape[-1] != weight.shape[1]  # for the base's own error
        or dispatch.native() is None
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or (isinstance(weight, Tensor) and weight.requires_grad)
        or (projection.bias is not None and projection.bias.requires_grad)
    ):
        return None
    y: Tensor = _Project.apply(x, projection, *projection.leaves)
    return y


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Projection, *leaves: Tensor | None) -> Tensor:
        # y is no view, which a model could not change in place
        y = x.new_empty(*x.shape[:-1], projection.out_features)
        flat, rows = x.reshape(-1, x.shape[-1]), y.view(-1, projection.out_features)
        ctx.kept = projection.forward(flat, projection.parts(x.shape[:-1]), rows)
        ctx.projection = projection
        ctx.save_for_backward(x, *leaves)  # so that autograd sees it if A or B change meanwhile
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, *_ = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        grad = grad_y.reshape(len(flat), -1).contiguous()
        gradients = Gradients()
        needs_x = ctx.needs_input_grad[0]
        (wanted,) = wanted_of(ctx.needs_input_grad, 1)
        share = ctx.projection.backward(grad, flat, ctx.kept, gradients, wanted, needs_x)
        grad_x = sum_gradients([share], torch.empty_like(flat)).view_as(x) if needs_x else None
        return (grad_x, None, *gradients.for_autograd([ctx.projection]))
