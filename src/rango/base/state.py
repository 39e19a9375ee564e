"""A model's tensors under the names, and in the layout, that its checkpoint has on disk."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rango.base.linear import QuantizedLinear
from rango.base.quantized_files import write_quantized
from rango.base.stored import stored_dtype


def state_on_disk(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors to write, sharing memory with the model where the layout is the same.

    Quantized layers appear in bitsandbytes' layout, tied weights once (under the name of the
    embedding), what is held in fp32 for the arithmetic in the type of the stored matrices again
    where that loses nothing, and what transformers fused or renamed on loading is put back.
    """
    state: dict[str, Tensor] = {}
    packed: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            state.update(write_quantized(f"{name}.weight", module.quantized))
            packed.update(f"{name}.{buffer}" for buffer, _ in module.named_buffers())
    tied = model.all_tied_weights_keys
    stored = stored_dtype(model)
    for name, tensor in model.state_dict().items():
        source = tied.get(name)
        shared = source is not None and _same(tensor, model.get_parameter(source))
        if name not in packed and not shared:
            state[name] = tensor if stored is None else _narrowed(tensor, stored)
    with torch.no_grad():
        return dict(revert_weight_conversion(model, state))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """An fp32 tensor in `dtype` if every value survives, else itself."""
    if tensor.dtype != torch.float32:
        return tensor
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.float(), tensor) else tensor
