"""A base kept as its file stores it, in 16 bits, and computed in fp32.

A CPU without 16-bit units multiplies bf16 ten times slower than fp32. So the matrices stay in the
stored type and are widened a piece at a time, in the product; everything small (norms, biases,
positions, buffers) is held in fp32, which is exact, and activations are fp32 throughout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rango.base.product import FrozenProduct
from rango.base.roles import adaptable_modules

NARROW = (torch.bfloat16, torch.float16)


class StoredLinear(nn.Linear):
    """y = x · Wᵀ + b with W (out, in) in 16 bits: x (..., in) -> (..., out), computed in x's dtype.

    W is frozen, and no widened copy of it outlives the product. (Should W require a gradient, it
    gets one the ordinary way.) bias (out,) or None.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if _ordinary(self.weight, x):
            return nn.functional.linear(x, self.weight.to(x.dtype), bias)
        return FrozenProduct.apply(x, bias, self.weight, False)

    def extra_repr(self) -> str:
        """Sizes and the stored type."""
        return f"{super().extra_repr()}, stored={self.weight.dtype}"


class StoredConv1D(Conv1D):
    """GPT-2's linear layer, y = x · W + b with W (in, out) in 16 bits; else as StoredLinear."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        with torch.device("meta"):
            super().__init__(weight.shape[1], weight.shape[0])
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        bias = self.bias.to(x.dtype)
        if _ordinary(self.weight, x):
            return nn.functional.linear(x, self.weight.to(x.dtype).T, bias)
        return FrozenProduct.apply(x, bias, self.weight, True)


class StoredEmbedding(nn.Embedding):
    """Rows of a table (vocabulary, dim) in 16 bits, widened after the look-up: ids (...) ->
    (..., dim) in embed_scale's dtype, fp32.

    embed_scale multiplies them, as in Gemma; it is 1 in most models.
    """

    embed_scale: Tensor

    def __init__(
        self, weight: nn.Parameter, padding_idx: int | None = None, embed_scale: float = 1.0
    ) -> None:
        super().__init__(weight.shape[0], weight.shape[1], padding_idx, device="meta")
        self.weight = weight
        self.scaled = embed_scale != 1.0
        scale = torch.tensor(embed_scale, dtype=torch.float32, device=weight.device)
        self.register_buffer("embed_scale", scale, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(...) -> (..., dim)."""
        rows = nn.functional.embedding(input_ids, self.weight, self.padding_idx)
        rows = rows.to(self.embed_scale.dtype)
        return rows * self.embed_scale if self.scaled else rows

    def extra_repr(self) -> str:
        """Sizes and the stored type."""
        return f"{super().extra_repr()}, stored={self.weight.dtype}"


Stored = StoredLinear | StoredConv1D | StoredEmbedding


def stored_dtype(model: nn.Module) -> torch.dtype | None:
    """The type that matrices are kept in; None where none is kept narrower than it computes."""
    for module in model.modules():
        if isinstance(module, Stored):
            dtype = module.weight.dtype
            return dtype if dtype in NARROW else None
    return None


@torch.no_grad()
def widen_the_rest(model: nn.Module) -> None:
    """Before loading: give every parameter and buffer of 16 bits that no stored module will hold
    the type fp32, so that its values arrive in it."""
    kept = {id(module.weight) for module in _candidates(model).values()}
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype in NARROW and id(tensor) not in kept:
            tensor.data = tensor.data.float()


@torch.no_grad()
def keep_as_stored(model: nn.Module) -> None:
    """After loading: put a stored module in the place of every linear layer and embedding whose
    weight is in 16 bits. Tied weights stay one parameter; a table that a stored embedding cannot
    stand for is widened."""
    candidates = _candidates(model)
    # embeddings first: a head that is tied to one that is widened is an ordinary layer
    order = sorted(candidates, key=lambda name: not isinstance(candidates[name], nn.Embedding))
    for name in order:
        module = candidates[name]
        if module.weight.dtype not in NARROW:
            continue
        stored = _stored(module)
        if stored is None:
            module.weight.data = module.weight.data.float()
        else:
            model.set_submodule(name, stored.train(module.training))


def _ordinary(weight: Tensor, x: Tensor) -> bool:
    """Whether plain torch does it: there is nothing to widen, or the weight is being trained."""
    return weight.dtype == x.dtype or (weight.requires_grad and torch.is_grad_enabled())


def _candidates(model: nn.Module) -> dict[str, Any]:
    """By name, the modules whose weight may stay in 16 bits: those that are only ever called.

    Routers are small, and read by name in some models; a subclass of nn.Embedding does as it likes,
    but for those that scale.
    """
    found = {}
    for name, role in adaptable_modules(model).items():
        module = model.get_submodule(name)
        fits = isinstance(module, nn.Linear | Conv1D) and role.role != "router"
        if fits or type(module) is nn.Embedding or _is_scaled(module):
            found[name] = module
    return found


def _is_scaled(module: nn.Module) -> bool:
    """Whether it is one of transformers' classes that multiply what they look up."""
    return (
        isinstance(module, nn.Embedding)
        and type(module).__name__.endswith("ScaledWordEmbedding")
        and [*dict(module.named_parameters())] == ["weight"]
        and hasattr(module, "embed_scale")
    )


def _stored(module: Any) -> nn.Module | None:
    """A stored module that computes what `module` does, with its parameters; None if none can."""
    if isinstance(module, Conv1D):
        return StoredConv1D(module.weight, module.bias)
    if isinstance(module, nn.Embedding):
        return _stored_embedding(module)
    return StoredLinear(module.weight, module.bias)


def _stored_embedding(module: Any) -> StoredEmbedding | None:
    weight, padding_idx = module.weight, module.padding_idx
    if module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
        return None
    if not _is_scaled(module):
        return StoredEmbedding(weight, padding_idx)
    if weight.is_meta:
        return None
    # a probe, in the narrow type, of what the class does beyond looking up; some round the scale
    scale = float(torch.as_tensor(module.embed_scale))
    ids = torch.arange(min(8, module.num_embeddings), device=weight.device)
    found, rows = module(ids), weight[ids]
    if not any(torch.equal(found, rows * by) for by in (scale, torch.tensor(scale).to(rows))):
        return None
    return StoredEmbedding(weight, padding_idx, scale)
