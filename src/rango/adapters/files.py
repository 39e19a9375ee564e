"""An adapter on disk: PEFT's directory, with Rango's own facts beside it in rango.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rango.adapters.attach import Adapted, attach_targets
from rango.adapters.config import LoraConfig
from rango.adapters.parts import part_ranks, split
from rango.adapters.peft_format import (
    adapter_config,
    export_row,
    export_saved,
    read_config,
    read_tensors,
    tensor_names,
)
from rango.base.checkpoint import read_tensor
from rango.base.classifier import is_classifier, labels_of, same_labels
from rango.errors import AdapterError
from rango.files.atomic import atomic_directory
from rango.files.tensors import TensorFile

if TYPE_CHECKING:
    from rango.base.load import Base

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
FACTS = "rango.json"
CARD = "README.md"

_MAX_JSON = 8 * 2**20
_LOGITS = (".classifier.weight", ".score.weight", ".classifier.out_proj.weight")
"""Ends of the names that transformers gives to what makes a classifier's logits."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter directory as read, not yet held against a base.

    tensors: as stored, by PEFT's names. facts: rango.json; empty where another tool wrote it.
    """

    folder: Path
    config: LoraConfig
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str | None:
        """Digest of the base it was made for, where it is known."""
        value = self.facts.get("base", {}).get("fingerprint")
        return value if isinstance(value, str) else None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a classifier's adapter, in the order of its logits; LABEL_0, … where another tool
        wrote it and does not say; empty for other adapters."""
        noted = self.facts.get("labels")
        if isinstance(noted, list) and all(isinstance(label, str) for label in noted):
            return tuple(noted)
        for ending in _LOGITS:
            for name, tensor in self.tensors.items():
                if name.endswith(ending) and tensor.ndim == 2 and ".lora_" not in name:
                    return tuple(f"LABEL_{index}" for index in range(len(tensor)))
        return ()


def save_adapter(
    adapted: Adapted,
    folder: str | Path,
    *,
    row: int = 0,
    facts: Mapping[str, Any] | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one row as a PEFT adapter directory that PEFT loads with equal results.

    facts: JSON values for rango.json, beside the base's fingerprint, the parts of fused projections
    and a classifier's labels. card: the model card, README.md.
    Raises OutputExistsError, StorageError; nothing half-written is left.
    """
    folder = Path(folder)
    exported, saved = export_row(adapted, row), export_saved(adapted, row)
    if not exported and not saved:
        raise AdapterError(f"row {row} adapts nothing; there is nothing to save")
    low_rank = {
        name: tensor
        for module in exported
        for name, tensor in zip(
            tensor_names(module.module, module.embedding),
            (module.lora_A, module.lora_B),
            strict=True,
        )
    }
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in (low_rank | saved).items()
    }
    base = adapted.base
    own: dict[str, Any] = {
        "format": 1,
        "base": {
            "fingerprint": base.fingerprint if base else None,
            "source": base.source if base else None,
            "dtype": str(base.dtype).removeprefix("torch.") if base else None,
            "compute": str(base.compute).removeprefix("torch.") if base else None,
            "quantize": base.quantize if base else None,
            "double_quant": base.double_quant if base else None,
        },
        "config": dataclasses.asdict(adapted.config_of(row)),
        "parts": part_ranks(adapted.modules, row),
        **(facts or {}),
    }
    model: Any = adapted.model
    if is_classifier(model):
        own["labels"] = list(labels_of(model.config))
    config = adapter_config(adapted, row, exported, base.source if base else None)
    with atomic_directory(folder, overwrite) as working:
        save_file(tensors, working / TENSORS, metadata={"format": "pt"})
        for name, text in (
            (CONFIG, json.dumps(config, indent=2, sort_keys=True)),
            (FACTS, json.dumps(own, indent=2, ensure_ascii=False)),
        ):
            (working / name).write_text(f"{text}\n", encoding="utf-8")
        if card is not None:
            (working / CARD).write_text(card, encoding="utf-8")
    return folder


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read an adapter directory, PEFT's or Rango's. Raises AdapterError naming what is wrong."""
    folder = Path(folder)
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such adapter folder")
    config_path = folder / CONFIG
    if not config_path.is_file():
        raise AdapterError(f"{folder}: not an adapter: it has no {CONFIG}")
    if not (folder / TENSORS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = "only a pickle, which is not safe to read" if pickled else f"no {TENSORS}"
        raise AdapterError(f"{folder}: {reason}; save it as safetensors with the tool that made it")
    facts_path = folder / FACTS
    facts = _read_json(facts_path) if facts_path.is_file() else {}
    if not isinstance(facts, dict):
        raise AdapterError(f"{facts_path}: expected a JSON object")
    for key in ("base", "config", "parts"):
        if not isinstance(facts.get(key, {}), dict):
            raise AdapterError(f"{facts_path}: {key}: expected an object, found {facts[key]!r}")
    config = read_config(_read_json(config_path), str(config_path))
    file = TensorFile(folder / TENSORS, AdapterError)
    tensors = {name: read_tensor(file, name).clone() for name in file.entries}
    return AdapterFile(folder, config, tensors, facts)


def load_adapter(
    base: nn.Module | Base,
    folder: str | Path,
    *,
    rows: int = 1,
    row: int = 0,
    trainable: bool = False,
) -> Adapted:
    """Attach the adapter in `folder` to a base, in a bank of `rows` rows.

    Raises AdapterError where a tensor does not find its place (listing all), or where the adapter
    was made for another base.
    """
    file = read_adapter(folder)
    if not 0 <= row < rows:
        raise AdapterError(f"row {row}: the bank is to have rows 0 to {rows - 1}")
    model = base if isinstance(base, nn.Module) else base.model
    loaded = None if isinstance(base, nn.Module) else base
    check_labels(file, model)
    if loaded is not None:
        check_base(file, loaded)
    modules, whole = read_tensors(file.tensors, file.config, model, str(file.folder))
    if not modules and not whole:
        raise AdapterError(f"{file.folder}: holds no adapted module")
    updates = split(model, modules, file.facts.get("parts") or {}, file.config)
    config = _as_trained(file)
    adapted = attach_targets(
        model,
        [update.target for update in updates],
        saved=tuple(whole),
        rows=rows,
        trainable=trainable,
        base=loaded,
    )
    adapted.configure(row, config, [update.target for update in updates], tuple(whole))
    with torch.no_grad():
        for update in updates:
            lora_A, lora_B = adapted.sites[update.target.name].factors(row)
            lora_A.copy_(update.lora_A)
            lora_B.copy_(update.lora_B)
        for name, tensors in whole.items():
            layer = adapted.saved[name]
            for part, delta in layer.delta(row).items():
                delta.copy_(tensors[part] - layer.base_layer.get_parameter(part).float())
    return adapted


def check_labels(file: AdapterFile, model: nn.Module) -> None:
    """Raise AdapterError where a classifier's adapter is to go over another kind of model, or over
    one with other labels."""
    if not file.labels:
        return
    named = ", ".join(file.labels)
    if not is_classifier(model):
        raise AdapterError(
            f"{file.folder}: the adapter of a classifier with the labels {named}, and the base was "
            "loaded without them; load it with load_base_for(ADAPTER, BASE), or with "
            f"load_base(BASE, labels={list(file.labels)})"
        )
    config: Any = model.config
    found = labels_of(config)
    if not same_labels(file.labels, found):
        raise AdapterError(
            f"{file.folder}: its labels are {named}; the base was loaded with {', '.join(found)}"
        )


def check_base(file: AdapterFile, base: Base) -> None:
    """Raise AdapterError where the adapter names another base by its fingerprint."""
    if file.fingerprint is not None and file.fingerprint != base.fingerprint:
        raise AdapterError(
            f"{file.folder}: made for another base: expected {file.fingerprint} "
            f"({file.facts['base'].get('source')}), found {base.fingerprint} ({base.source}); "
            "load it over the base it was trained on"
        )


def _as_trained(file: AdapterFile) -> LoraConfig:
    """The config with the targets as they were asked for (parts of fused projections), where
    rango.json tells; PEFT's config has whole modules only."""
    targets = file.facts.get("config", {}).get("target_modules")
    if isinstance(targets, str) or (
        isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    ):
        return dataclasses.replace(file.config, target_modules=targets)
    return file.config


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise AdapterError(f"{path}: larger than {_MAX_JSON} bytes; not an adapter's")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON: {error}") from error
