"""Write a base as a Hugging Face checkpoint, in floating point or in bitsandbytes' NF4 or int8."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rango.base.checkpoint import INDEX, SINGLE
from rango.base.fingerprint import FACTS, combine, digest_tensor, note, tied_vocabulary
from rango.base.linear import QuantizedLinear
from rango.base.model import Base
from rango.base.quantized_files import quantization_config
from rango.base.state import state_on_disk
from rango.base.stored import StoredLinear
from rango.base.tokenizer import TOKENIZER_FILES
from rango.errors import CheckpointError
from rango.files.atomic import atomic_directory
from rango.progress import Progress, silent

SHARD_BYTES = 2 * 10**9
"""A shard is at most this large, unless a single tensor is larger."""


def save_base(
    base: Base,
    folder: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write `base` to `folder`: weights, config.json, tokenizer files and rango.json; return it.

    A quantized base is written so that bitsandbytes, through transformers, reads the same weights,
    and what is kept in 16 bits is written in them. The folder appears whole or not at all. The
    source's fingerprint rides along in rango.json.

    Raises CheckpointError naming the layers that bitsandbytes would not quantize,
    OutputExistsError if the folder is taken, StorageError if the disk refuses.
    """
    target = Path(folder)
    config = _config_on_disk(base)
    state = state_on_disk(base.model)
    if any(".base_layer." in name for name in state):
        raise CheckpointError(
            f"{base.source}: adapters are attached; detach() them first, or merge them with "
            "rango.merge_checkpoint"
        )
    with atomic_directory(target, overwrite) as working:
        _write_json(working / "config.json", config)
        _write_weights(working, state, shard_bytes, progress)
        own = combine(
            (digest_tensor(name, tensor) for name, tensor in state.items()),
            tied_vocabulary(base.config),
        )
        _write_json(working / FACTS, note(base.fingerprint, own))
        _write_companions(base, working)
    return target


def unreadable_by_bitsandbytes(model: PreTrainedModel) -> list[str]:
    """The quantized layers of `model` that bitsandbytes, through transformers, would not quantize.

    It replaces layers whose class is exactly nn.Linear, and transformers' Conv1D.
    """
    plain = _skeleton(model)
    protected = list(plain._keep_in_fp32_modules or [])
    return [
        name
        for name in _quantized(model)
        if not _convertible(plain.get_submodule(name)) or _matches(name, protected)
    ]


def _quantized(model: PreTrainedModel) -> dict[str, QuantizedLinear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }


def _config_on_disk(base: Base) -> dict[str, Any]:
    config = copy.deepcopy(base.config)
    config.architectures = [type(base.model).__name__]
    config.dtype = base.dtype
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    if base.quantize != "none":
        fields["quantization_config"] = _quantization_config(base)
    return fields


def _quantization_config(base: Base) -> dict[str, Any]:
    """What BitsAndBytesConfig writes, with every unquantized linear layer in the list to skip."""
    refused = unreadable_by_bitsandbytes(base.model)
    if refused:
        raise CheckpointError(
            f"{base.source}: {len(refused)} quantized layers are of classes that bitsandbytes does "
            f"not quantize, so it could not read them: {', '.join(refused)}; load the base with "
            "quantize='none' to save it"
        )
    skipped = _skipped_layers(base.model)
    clashing = [name for name in _quantized(base.model) if _matches(name, skipped)]
    if clashing:
        raise CheckpointError(
            f"{base.source}: bitsandbytes' list of layers to skip cannot tell "
            f"{', '.join(clashing)} from {', '.join(skipped)}"
        )
    if len({type(module) for module in _quantized(base.model).values()}) > 1:
        raise CheckpointError(
            f"{base.source}: holds NF4 and int8 layers; bitsandbytes' layout has one kind"
        )
    return quantization_config(
        base.quantize,
        double_quant=base.double_quant,
        dtype=str(base.dtype).removeprefix("torch."),
        skip=skipped,
    )


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The model as transformers builds it, without memory: the classes its layers had."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def _convertible(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, StoredLinear) or isinstance(module, Conv1D)


def _skipped_layers(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if _convertible(module)]


def _matches(name: str, patterns: list[str]) -> bool:
    """Whether transformers leaves `name` out for one of `patterns` (its rule in 5.x)."""
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    return any(
        re.match(rf"(?:{pattern}){boundary}", name) or name.endswith(pattern)
        for pattern in patterns
    )


def _write_weights(
    folder: Path, state: dict[str, Tensor], shard_bytes: int, progress: Progress
) -> None:
    plan = split_torch_state_dict_into_shards(state, max_shard_size=shard_bytes)
    total, done = sum(tensor.nbytes for tensor in state.values()), 0
    for file, names in plan.filename_to_tensors.items():
        shard = {name: state[name].contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        done += sum(tensor.nbytes for tensor in shard.values())
        progress("saving", done, total, "B")
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(folder / INDEX, index)
    elif not (folder / SINGLE).is_file():
        raise CheckpointError(f"{folder}: huggingface_hub named the only shard otherwise")


def _write_companions(base: Base, folder: Path) -> None:
    """The tokenizer's files and the generation configuration."""
    if base.path is not None:
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (base.path / name).is_file():
                shutil.copyfile(base.path / name, folder / name)
    elif base.model.can_generate():
        _write_json(
            folder / "generation_config.json",
            json.loads(base.model.generation_config.to_json_string()),
        )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
