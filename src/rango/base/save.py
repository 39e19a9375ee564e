"""Write a base as a Hugging Face checkpoint, in floating point or in bitsandbytes' NF4 layout."""

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
from rango.base.linear import NF4Linear
from rango.base.load import Base
from rango.base.state import state_on_disk
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

    An NF4 base is written so that bitsandbytes, through transformers, reads the same weights. The
    folder appears whole or not at all. The source's fingerprint rides along in rango.json.

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
    """The NF4 layers of `model` that bitsandbytes, through transformers, would not quantize.

    It replaces layers whose class is exactly nn.Linear, and transformers' Conv1D.
    """
    plain = _skeleton(model)
    protected = list(plain._keep_in_fp32_modules or [])
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, NF4Linear)
        and (not _convertible(plain.get_submodule(name)) or _matches(name, protected))
    ]


def _config_on_disk(base: Base) -> dict[str, Any]:
    config = copy.deepcopy(base.config)
    config.architectures = [type(base.model).__name__]
    config.dtype = base.dtype
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    if base.quantize == "nf4":
        fields["quantization_config"] = _quantization_config(base)
    return fields


def _quantization_config(base: Base) -> dict[str, Any]:
    """What BitsAndBytesConfig writes, with every layer that is not NF4 in the list to skip."""
    refused = unreadable_by_bitsandbytes(base.model)
    if refused:
        raise CheckpointError(
            f"{base.source}: {len(refused)} quantized layers are of classes that bitsandbytes does "
            f"not quantize, so it could not read them: {', '.join(refused)}; load the base with "
            "quantize='none' to save it"
        )
    skipped = _skipped_layers(base.model)
    clashing = [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, NF4Linear) and _matches(name, skipped)
    ]
    if clashing:
        raise CheckpointError(
            f"{base.source}: bitsandbytes' list of layers to skip cannot tell "
            f"{', '.join(clashing)} from {', '.join(skipped)}"
        )
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": base.double_quant,
        "bnb_4bit_compute_dtype": str(base.dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
    }


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The model as transformers builds it, without memory: the classes its layers had."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def _convertible(module: nn.Module) -> bool:
    return type(module) is nn.Linear or isinstance(module, Conv1D)


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
