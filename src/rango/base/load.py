"""Load the frozen base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from rango.base.architecture import Kind, architecture, kind_of
from rango.base.checkpoint import Checkpoint, open_checkpoint
from rango.base.config import BaseDtype, Quantize
from rango.base.fingerprint import combine, digest_tensor, resolve, tied_vocabulary
from rango.base.linear import NF4Linear
from rango.base.quantizer import LoadPlan
from rango.base.source import local_folder
from rango.base.state import state_on_disk
from rango.base.stream import nf4_groups, stream_model
from rango.errors import CheckpointError, ConfigError, nearest
from rango.progress import Progress, silent

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """A frozen model: in eval mode, no parameter requires a gradient."""

    model: PreTrainedModel
    config: Any
    """The model's transformers configuration."""
    fingerprint: str
    """``sha256:…`` of the source checkpoint's tensors; see rango.base.fingerprint."""
    source: str
    """As the user named it."""
    path: Path | None
    """The local folder of the checkpoint; None for a model made in memory."""
    kind: Kind
    dtype: torch.dtype
    """Of the weights that are not quantized, and so of the computation."""
    quantize: Quantize
    double_quant: bool
    """Whether NF4's block constants are quantized too; true says nothing where quantize is none."""


def load_base(
    source: str | Path,
    *,
    dtype: BaseDtype = "as stored",
    quantize: Quantize = "none",
    double_quant: bool = True,
    revision: str | None = None,
    progress: Progress = silent,
) -> Base:
    """Load a causal language model or an encoder from a checkpoint folder or the hub.

    The tensors are streamed: quantized or cast one at a time, so the unquantized model is never
    held. "as stored" means the type of most of the file's elements for all of the model (a few
    fp32 norms in a bf16 file become bf16, as transformers' own code expects), except what the
    architecture insists on holding in fp32. A checkpoint stored in bitsandbytes' NF4 keeps its
    NF4 layers bit for bit, whatever `quantize` and `double_quant` say.

    Raises CheckpointError for a checkpoint that is missing, damaged, incomplete or of a kind that
    is not supported, ConfigError for an unknown dtype or quantize.
    """
    _check_choice("dtype", dtype, BaseDtype)
    _check_choice("quantize", quantize, Quantize)
    checkpoint = open_checkpoint(local_folder(source, revision))
    check_quantization(checkpoint)
    target = _DTYPES.get(dtype) or checkpoint.dtype
    plan = LoadPlan(quantize == "nf4" and not is_nf4(checkpoint), double_quant)
    shape = architecture(checkpoint)
    streamed = stream_model(checkpoint, shape, plan, dtype=target, progress=progress)
    model = streamed.model
    model.config.name_or_path = str(source)
    own = combine(streamed.digests, tied_vocabulary(model.config))
    return Base(
        model=model,
        config=model.config,
        fingerprint=resolve(checkpoint.folder, own),
        source=str(source),
        path=checkpoint.folder,
        kind=shape.kind,
        dtype=target,
        **_quantization(model, double_quant),
    )


def base_from_model(model: PreTrainedModel, source: str = "in memory") -> Base:
    """Freeze a transformers model that is already in memory: it is set to eval mode and none of
    its parameters requires a gradient any more."""
    model.requires_grad_(False)
    model.eval()
    digests = (digest_tensor(name, tensor) for name, tensor in state_on_disk(model).items())
    return Base(
        model=model,
        config=model.config,
        fingerprint=combine(digests, tied_vocabulary(model.config)),
        source=source,
        path=None,
        kind=kind_of(model),
        dtype=model.dtype,
        **_quantization(model, True),
    )


def is_nf4(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's linear layers are stored in bitsandbytes' NF4."""
    return bool(nf4_groups(checkpoint))


def check_quantization(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if a checkpoint is quantized in any way but bitsandbytes' NF4."""
    found = checkpoint.config.get("quantization_config")
    if not found:
        return
    where = f"{checkpoint.folder / 'config.json'}: quantization_config"
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: expected an object, found {type(found).__name__}")
    method = found.get("quant_method", "bitsandbytes")
    kind = "int8" if found.get("load_in_8bit") else found.get("bnb_4bit_quant_type", "fp4")
    if method != "bitsandbytes" or kind != "nf4" or not found.get("load_in_4bit"):
        described = f"{method} {kind}" if method == "bitsandbytes" else str(method)
        raise CheckpointError(
            f"{where}: the checkpoint is quantized with {described}; expected bitsandbytes nf4 or "
            "an unquantized checkpoint: name the model it was made from"
        )


def _quantization(model: PreTrainedModel, double_quant: bool) -> dict[str, Any]:
    """What the model's layers are, whatever was asked for."""
    layers = [module for module in model.modules() if isinstance(module, NF4Linear)]
    if not layers:
        return {"quantize": "none", "double_quant": double_quant}
    return {"quantize": "nf4", "double_quant": all(layer.quantized.nested for layer in layers)}


def _check_choice(name: str, value: str, choices: Any) -> None:
    known = get_args(choices)
    if value not in known:
        raise ConfigError(
            f"{name}: expected one of {', '.join(map(repr, known))}; found {value!r}"
            f"{nearest(str(value), known)}"
        )
