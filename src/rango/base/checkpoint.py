"""A checkpoint on disk: its configuration and its tensors, whatever the sharding, checked."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rango.base import int8_files, nf4_files
from rango.errors import CheckpointError
from rango.files.tensors import Entry, TensorFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
_WEIGHT_DTYPES = ("F32", "F16", "BF16")
_MAX_JSON = 64 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: `config` is its config.json, `files` its mapped safetensors files."""

    folder: Path
    config: dict[str, Any]
    files: tuple[TensorFile, ...]

    @property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by name, in the files' order."""
        return {name: entry for file in self.files for name, entry in file.entries.items()}

    @property
    def homes(self) -> dict[str, TensorFile]:
        """The file that holds each tensor."""
        return {name: file for file in self.files for name in file.entries}

    @property
    def dtype(self) -> torch.dtype:
        """The type that most of the floating-point elements are stored in, quantized weights and
        their constants aside.

        Raises CheckpointError when the weights are of a type that Rango does not compute in.
        """
        stored: Counter[str] = Counter()
        for entry in self.entries.values():
            if entry.dtype in _WEIGHT_DTYPES:
                if nf4_files.owner(entry.name) or int8_files.owner(entry.name):
                    continue
                stored[entry.dtype] += entry.elements
            elif entry.dtype not in TORCH_DTYPES:
                raise CheckpointError(
                    f"{self.folder}: tensor {entry.name!r} is stored as {entry.dtype}; expected "
                    "F32, F16 or BF16: convert the checkpoint first"
                )
        if not stored:
            raise CheckpointError(
                f"{self.folder}: no tensor is stored as F32, F16 or BF16; these are not a model's "
                "weights"
            )
        return TORCH_DTYPES[stored.most_common(1)[0][0]]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in `folder`, checking every header and the list of shards.

    Raises CheckpointError, naming the file, when it is no checkpoint, is incomplete, truncated or
    malformed, holds pickle files only, or is an adapter.
    """
    config = read_config(folder)
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        files = _open_shards(folder)
    elif (folder / SINGLE).is_file():
        files = (TensorFile(folder / SINGLE),)
    else:
        raise CheckpointError(_nothing_to_read(folder))
    return Checkpoint(folder, config, files)


def read_tensor(file: TensorFile, name: str) -> torch.Tensor:
    """Tensor `name` as a view of the mapped file: do not write to it, copy it to keep it."""
    entry = file.entries[name]
    dtype = TORCH_DTYPES[entry.dtype]
    if entry.elements == 0:
        return torch.empty(entry.shape, dtype=dtype)
    view = file.view(name)
    if entry.start % dtype.itemsize:  # older writers did not align; torch reads aligned only
        return torch.frombuffer(bytearray(view), dtype=dtype).view(entry.shape)
    return torch.frombuffer(view, dtype=dtype).view(entry.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint; CheckpointError where the folder is none."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{folder}: this is an adapter, not a base; name the base it was trained on"
            )
        raise CheckpointError(
            f"{folder}: not a checkpoint: it has no config.json; name the folder of a Hugging Face "
            "checkpoint (config.json, *.safetensors, tokenizer files)"
        )
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def read_json(path: Path) -> Any:
    """The JSON value in `path`; CheckpointError, naming it, if it cannot be read."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{path}: larger than {_MAX_JSON} bytes; not a configuration")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error


def _open_shards(folder: Path) -> tuple[TensorFile, ...]:
    path = folder / INDEX
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: expected an object weight_map naming each tensor's shard")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"{path}: shards outside the folder are refused: {_listed(outside)}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing: {_listed(missing)}; "
            "fetch them again"
        )
    files = tuple(TensorFile(folder / name) for name in names)
    _check_index(path, weight_map, files)
    return files


def _check_index(path: Path, weight_map: dict[str, Any], files: tuple[TensorFile, ...]) -> None:
    """The list and the shards must name the same tensors in the same places."""
    listed = {(str(tensor), str(shard)) for tensor, shard in weight_map.items()}
    held = {(tensor, file.path.name) for file in files for tensor in file.entries}
    faults = [f"{tensor} is not in {shard}" for tensor, shard in sorted(listed - held)]
    faults += [
        f"{tensor} is in {shard} but not listed so" for tensor, shard in sorted(held - listed)
    ]
    if faults:
        raise CheckpointError(
            f"{path}: the list and the shards disagree: {_listed(faults)}; fetch the "
            "checkpoint again"
        )


def _nothing_to_read(folder: Path) -> str:
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return (
            f"{folder}: found {_listed(shards)}, but neither {SINGLE} nor {INDEX}, which says "
            "where each tensor is; fetch the checkpoint again"
        )
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(
        path.name for path in folder.glob("*.pt*")
    )
    if pickled:
        return (
            f"{folder}: its weights are pickle files ({_listed(pickled)}), which can run code when "
            "they are read and are refused; use a safetensors version of the model, or convert it "
            "where you trust it: model.save_pretrained(folder)"
        )
    return f"{folder}: no weights: expected {SINGLE}, or {INDEX} and its shards"


def _listed(items: list[str], limit: int = 8) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
