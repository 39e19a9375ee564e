"""A model's tensors under the names, and in the layout, that its checkpoint has on disk."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rango.base.linear import NF4Linear
from rango.base.nf4_files import to_tensors


def state_on_disk(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors to write, sharing memory with the model where the layout is the same.

    NF4 layers appear in bitsandbytes' layout, tied weights once (under the name of the embedding),
    and what transformers fused or renamed on loading is put back.
    """
    state: dict[str, Tensor] = {}
    inside_nf4: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, NF4Linear):
            state.update(to_tensors(f"{name}.weight", module.quantized))
            inside_nf4.update(f"{name}.{buffer}" for buffer, _ in module.named_buffers())
    tied = model.all_tied_weights_keys
    for name, tensor in model.state_dict().items():
        source = tied.get(name)
        shared = source is not None and _same(tensor, model.get_parameter(source))
        if name not in inside_nf4 and not shared:
            state[name] = tensor
    with torch.no_grad():
        return dict(revert_weight_conversion(model, state))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
