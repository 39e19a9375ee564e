"""Which weights of a model can be adapted, what each is for, and the parts of fused projections."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rango.base.linear import QuantizedLinear
from rango.errors import TargetError, nearest

Role = Literal["attention", "mlp", "head", "router", "embedding", "other"]

_ATTENTION = re.compile(r"attn|attention|^(wqkv|c_attn|query_key_value)$", re.IGNORECASE)
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|expert|^(fc_?\d|c_fc|intermediate|output|lin[12])$", re.IGNORECASE
)
_ROUTER = re.compile(r"^(gate|router|wg|shared_expert_gate)$|router", re.IGNORECASE)


@dataclass(frozen=True)
class Adaptable:
    """A module that can carry an adapter."""

    role: Role
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Uncovered:
    """A weight matrix that no adapter touches, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


def adaptable_modules(model: nn.Module) -> dict[str, Adaptable]:
    """Every linear layer (subclasses of nn.Linear, quantized, transformers' Conv1D) and embedding.

    A linear layer outside a transformers model's backbone is a task head, as is what
    get_output_embeddings() returns.
    """
    heads = _heads(model)
    # projections whose weight is read and that are never called: what stands in would not act
    uncalled = {
        f"{name}.{leaf}" if name else leaf
        for name, module in model.named_modules()
        if (leaf := _read_by(module))
    }
    found = {}
    for name, module in model.named_modules():
        shape = _linear_shape(module)
        if not name or name in uncalled:
            continue  # a model that is itself one layer has no place to put a stand-in
        if shape is not None:
            role: Role = "head" if name in heads else _role(name)
            found[name] = Adaptable(role, *shape)
        elif isinstance(module, nn.Embedding):
            found[name] = Adaptable("embedding", module.num_embeddings, module.embedding_dim)
    return found


def uncovered_weights(model: nn.Module, covered: set[str]) -> list[Uncovered]:
    """Every matrix outside the modules named in `covered`, with the reason (tied ones once)."""
    modules = adaptable_modules(model)
    found = []
    for name, parameter in model.named_parameters():
        module_name = name.rpartition(".")[0]
        if parameter.ndim < 2 or module_name in covered:
            continue
        known = modules.get(module_name)
        if known is not None:
            reason = {
                "head": "output or task head",
                "router": "router of a mixture of experts",
                "embedding": "embedding",
            }.get(known.role, "not targeted")
        elif parameter.ndim == 3:
            reason = "fused expert weights are not covered"
        elif _ROUTER.search(module_name.rpartition(".")[2]):
            reason = "router of a mixture of experts"
        else:
            reason = "not a module that can be adapted"
        found.append(Uncovered(name, tuple(parameter.shape), reason))
    return found


def fused_parts(model: nn.Module, name: str) -> dict[str, slice | Tensor]:
    """Output features of each part of the fused projection `name`: {"q": …, "k": …, "v": …}.

    Raises TargetError where the module is not a fused projection that Rango knows.
    """
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", ""))
    leaf = name.rpartition(".")[2]
    layout = _FUSED.get((model_type, leaf))
    if layout is None:
        known = sorted(f"{leaf} ({kind})" for kind, leaf in _FUSED)
        raise TargetError(
            f"{name} of a {model_type or type(model).__name__} model is not a fused projection "
            f"that Rango knows; known: {', '.join(known)}{nearest(leaf, [k[1] for k in _FUSED])}"
        )
    return layout(config)


def base_weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, without touching its weight; TargetError for other modules."""
    shape = _linear_shape(module)
    if shape is None:
        raise TargetError(f"{type(module).__name__} is not a linear layer")
    return shape[1], shape[0]


def _read_by(module: nn.Module) -> str | None:
    """The child whose weight torch's attention, or transformers' Mamba, reads instead of calling
    it."""
    if isinstance(module, nn.MultiheadAttention):
        return "out_proj"
    return "dt_proj" if type(module).__name__.endswith("MambaMixer") else None


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, whatever its kind."""
    if isinstance(module, nn.Linear | QuantizedLinear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def _heads(model: nn.Module) -> set[str]:
    """Linear layers that are the output embeddings, or outside the backbone, of a transformers
    model; `model` may be one or hold one."""
    heads = set()
    for root, whole in model.named_modules():
        if not isinstance(whole, PreTrainedModel):
            continue
        prefix = whole.base_model_prefix
        backbone = f"{prefix}." if prefix and hasattr(whole, prefix) else ""
        output = whole.get_output_embeddings()
        for name, module in whole.named_modules():
            if module is output or not name.startswith(backbone):
                heads.add(f"{root}.{name}" if root else name)
    return heads


def _role(name: str) -> Role:
    *parents, leaf = name.split(".")
    if _ROUTER.search(leaf):
        return "router"
    # from the innermost name outwards: BERT's attention.output.dense is attention,
    # its output.dense is MLP
    for group, pattern in (("attention", _ATTENTION), ("mlp", _MLP)):
        if any(pattern.search(part) for part in (*parents, leaf)):
            return group  # type: ignore[return-value]
    return "other"


def _thirds(hidden: int) -> dict[str, slice | Tensor]:
    return _consecutive({"q": hidden, "k": hidden, "v": hidden})


def _consecutive(sizes: dict[str, int]) -> dict[str, slice | Tensor]:
    parts: dict[str, slice | Tensor] = {}
    start = 0
    for part, size in sizes.items():
        parts[part] = slice(start, start + size)
        start += size
    return parts


def _interleaved(groups: int, heads: dict[str, int], head_dim: int) -> dict[str, slice | Tensor]:
    """Outputs laid out as (groups, heads of q then k then v, head_dim)."""
    index = torch.arange(groups * sum(heads.values()) * head_dim)
    index = index.view(groups, sum(heads.values()), head_dim)
    parts: dict[str, slice | Tensor] = {}
    start = 0
    for part, count in heads.items():
        parts[part] = index[:, start : start + count].flatten()
        start += count
    return parts


def _falcon(config: Any) -> dict[str, slice | Tensor]:
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if config.new_decoder_architecture:
        groups = config.num_kv_heads
        return _interleaved(groups, {"q": heads // groups, "k": 1, "v": 1}, head_dim)
    if config.multi_query:
        return _consecutive({"q": heads * head_dim, "k": head_dim, "v": head_dim})
    return _interleaved(heads, {"q": 1, "k": 1, "v": 1}, head_dim)


def _per_head(config: Any) -> dict[str, slice | Tensor]:
    heads = config.num_attention_heads
    return _interleaved(heads, {"q": 1, "k": 1, "v": 1}, config.hidden_size // heads)


def _phi3_qkv(config: Any) -> dict[str, slice | Tensor]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared = config.num_key_value_heads * head_dim
    return _consecutive({"q": config.num_attention_heads * head_dim, "k": shared, "v": shared})


def _gate_up(config: Any) -> dict[str, slice | Tensor]:
    return _consecutive({"gate": config.intermediate_size, "up": config.intermediate_size})


def _bigcode(config: Any) -> dict[str, slice | Tensor]:
    if not config.multi_query:
        return _per_head(config)
    head_dim = config.hidden_size // config.num_attention_heads
    return _consecutive({"q": config.hidden_size, "k": head_dim, "v": head_dim})


_FUSED: dict[tuple[str, str], Callable[[Any], dict[str, slice | Tensor]]] = {
    ("gpt2", "c_attn"): lambda config: _thirds(config.hidden_size),
    ("mpt", "Wqkv"): lambda config: _thirds(config.d_model),
    ("gpt_bigcode", "c_attn"): _bigcode,
    ("gpt_neox", "query_key_value"): _per_head,
    ("bloom", "query_key_value"): _per_head,
    ("falcon", "query_key_value"): _falcon,
    ("phi3", "qkv_proj"): _phi3_qkv,
    ("phi3", "gate_up_proj"): _gate_up,
}
"""By model type and module name, as transformers' own code splits the output."""
