"""PEFT's adapter directory, as values: tensors by name and the adapter_config.

Nothing here touches the disk; see files.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rango.adapters.attach import Adapted
from rango.adapters.config import LoraConfig
from rango.adapters.parts import ModuleTensors, join
from rango.adapters.saving import peft_names, saved_layers
from rango.adapters.targets import layer_of, parse_layers, pattern_value
from rango.base.classifier import is_classifier
from rango.base.roles import adaptable_modules
from rango.errors import AdapterError, TargetError

PREFIX = "base_model.model."

_TENSOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))"
)


def export_row(adapted: Adapted, row: int) -> list[ModuleTensors]:
    """One row as PEFT can hold it: an update a module."""
    rslora = adapted.config_of(row).use_rslora
    exported = []
    for stand_in in adapted.modules.values():
        sites = [site for site in stand_in.sites if site.ranks[row]]
        if sites:
            exported.append(join(stand_in, sites, row, rslora))
    return exported


def export_saved(adapted: Adapted, row: int) -> dict[str, Tensor]:
    """What a row holds whole, W + ΔW and b + Δb in fp32, by PEFT's names."""
    return {
        f"{PREFIX}{name}.{tensor}": layer.own.get_parameter(tensor).float() + delta
        for name, layer in adapted.saved.items()
        if layer.saves[row]
        for tensor, delta in layer.delta(row).items()
    }


def tensor_names(module: str, embedding: bool) -> tuple[str, str]:
    """PEFT's names of A and B."""
    ending = "lora_embedding_{}" if embedding else "lora_{}.weight"
    return tuple(f"{PREFIX}{module}.{ending.format(ab)}" for ab in "AB")  # type: ignore[return-value]


def adapter_config(
    adapted: Adapted, row: int, exported: list[ModuleTensors], base_name: str | None
) -> dict[str, Any]:
    """The adapter_config.json of one row."""
    config = adapted.config_of(row)
    names = {tensors.module for tensors in exported}
    saved = [name for name, layer in adapted.saved.items() if layer.saves[row]]
    transposed = any(isinstance(adapted.modules[name].base_layer, Conv1D) for name in names)
    return {
        "alpha_pattern": {
            _pattern_key(tensors.module, names): _plain(tensors.lora_alpha)
            for tensors in exported
            if tensors.lora_alpha != config.lora_alpha
        },
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": _plain(config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "modules_to_save": peft_names(adapted.model, saved) if saved else None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": {
            _pattern_key(tensors.module, names): tensors.r
            for tensors in exported
            if tensors.r != config.r
        },
        "revision": None,
        "target_modules": _target_names(adapted, names),
        "task_type": _task_type(adapted),
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": config.use_rslora,
    }


def read_config(raw: Any, where: str) -> LoraConfig:
    """adapter_config.json as a LoraConfig; refuses what would change the mathematics.

    Raises AdapterError naming each key that Rango does not support.
    """
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else type(raw).__name__
        raise AdapterError(f"{where}: expected peft_type LORA, found {kind!r}")
    if raw.get("task_type") in _OVER_TOKENS:
        raise AdapterError(
            f"{where}: task_type {raw['task_type']}: the adapter of a head that labels tokens; "
            "Rango reads those of models that write, encode, or classify whole texts"
        )
    refused = [
        f"{key} = {value!r}"
        for key, value in sorted(raw.items())
        if key not in _READ and value not in _NEUTRAL.get(key, _NOTHING)
    ]
    if refused:
        raise AdapterError(
            f"{where}: asks for what Rango does not read: {'; '.join(refused)}. "
            "Merge it with the tool that made it, or save it without these"
        )
    try:
        excluded = _as_list(raw.get("exclude_modules"))
        ranks, alphas = dict(raw.get("rank_pattern") or {}), dict(raw.get("alpha_pattern") or {})
        for pattern in (*ranks, *alphas, *excluded):
            re.compile(pattern)
        if isinstance(raw.get("target_modules"), str):
            re.compile(raw["target_modules"])
        return LoraConfig(
            r=_number(raw, "r", int, 8),
            lora_alpha=_number(raw, "lora_alpha", float, 8.0),
            lora_dropout=_number(raw, "lora_dropout", float, 0.0),
            use_rslora=bool(raw.get("use_rslora", False)),
            target_modules=raw.get("target_modules") or "all-linear",
            exclude_modules=excluded,
            rank_pattern={key: _number(ranks, key, int, None) for key in ranks},
            alpha_pattern={key: _number(alphas, key, float, None) for key in alphas},
            layers=_layers(raw.get("layers_to_transform")),
            modules_to_save=_names(raw, "modules_to_save"),
        )
    except (TypeError, ValueError, re.error) as error:
        raise AdapterError(f"{where}: {error}") from error


def read_tensors(
    tensors: Mapping[str, Tensor], config: LoraConfig, model: nn.Module, where: str
) -> tuple[list[ModuleTensors], dict[str, dict[str, Tensor]]]:
    """Pair A with B and find each module in the model, in the model's order; and by name the layers
    that are held whole, with their "weight" and "bias" in fp32.

    Raises AdapterError listing every tensor that is missing, unexpected, mis-shaped or not finite.
    """
    modules = adaptable_modules(model)
    pairs, embeddings, others = pair_tensors(tensors)
    try:
        saved = saved_layers(model, config.modules_to_save) if config.modules_to_save else ()
    except TargetError as error:
        raise AdapterError(f"{where}: {error}") from error
    whole, whole_faults = _whole(saved, tensors, model)
    taken = {f"{PREFIX}{name}.{tensor}" for name, parts in whole.items() for tensor in parts}
    others = [name for name in others if name not in taken]
    faults = whole_faults
    for name in others:
        faults += _copy_of_base(name, tensors[name], model)
    for module, pair in pairs.items():
        faults += _pair_faults(module, pair, modules, module in embeddings, config)
    faults += [
        f"{module}: targeted by adapter_config.json, but the file has no tensors for it"
        for module in modules
        if _is_targeted(module, config) and module not in pairs and module not in saved
    ]
    if faults:
        raise AdapterError(f"{where}: does not fit this base:\n  " + "\n  ".join(sorted(faults)))
    found = [
        ModuleTensors(
            module,
            module in embeddings,
            pairs[module]["A"].float(),
            pairs[module]["B"].float(),
            float(pattern_value(config.alpha_pattern, module, config.lora_alpha)),
        )
        for module in modules
        if module in pairs
    ]
    return found, whole


def _whole(
    saved: Iterable[str], tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """By layer {"weight": …, "bias": …}, and what is missing or does not fit."""
    whole: dict[str, dict[str, Tensor]] = {}
    faults = []
    for layer in saved:
        for part, expected in model.get_submodule(layer).named_parameters(recurse=False):
            name = f"{PREFIX}{layer}.{part}"
            tensor = tensors.get(name)
            if tensor is None:
                faults.append(f"{name}: missing, expected shape {tuple(expected.shape)}")
                continue
            whole.setdefault(layer, {})[part] = tensor.float()
            if tensor.shape != expected.shape:
                faults.append(
                    f"{name}: expected shape {tuple(expected.shape)}, found {tuple(tensor.shape)}"
                )
            elif not torch.isfinite(tensor).all():
                faults.append(f"{name}: holds values that are not finite")
    return whole, faults


def pair_tensors(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], set[str], list[str]]:
    """By module {"A": …, "B": …}; which modules are embeddings; names that are neither."""
    pairs: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    others = []
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name.removeprefix(PREFIX))
        if match is None or not name.startswith(PREFIX):
            others.append(name)
            continue
        pairs.setdefault(match["module"], {})[match["linear"] or match["embedding"]] = tensor
        if match["embedding"]:
            embeddings.add(match["module"])
    return pairs, embeddings, others


_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    # no effect on what a saved adapter computes
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "modules_to_save",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
_OVER_TOKENS = ("TOKEN_CLS", "QUESTION_ANS")
"""PEFT's tasks whose heads have the names of a text classifier's, and are none."""
_NOTHING: tuple[Any, ...] = (None, False, "none", [], {}, 0)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # initialisations that leave the base as it is
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "mipa"),
    "bias": ("none", None),
}


def _plain(number: float) -> float:
    """A whole number as an int, as PEFT writes it."""
    return int(number) if number == int(number) else number


def _number(raw: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key}: expected a number, found {value!r}")
    if kind is int and value != int(value):
        raise ValueError(f"{key}: expected a whole number, found {value!r}")
    return kind(value)


def _layers(value: Any) -> str | None:
    if value is None:
        return None
    return ",".join(str(int(layer)) for layer in (value if isinstance(value, list) else [value]))


def _names(raw: dict[str, Any], key: str) -> list[str]:
    found = _as_list(raw.get(key))
    if not all(isinstance(name, str) and name for name in found):
        raise ValueError(f"{key}: expected names, found {raw[key]!r}")
    return found


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _is_targeted(module: str, config: LoraConfig) -> bool:
    """PEFT's rule: a string is a regular expression on the whole name, a list names endings."""
    if config.layers is not None and layer_of(module) not in parse_layers(config.layers):
        return False
    return _peft_match(module, config.target_modules) and not any(
        _peft_match(module, [entry]) or _peft_match(module, entry)
        for entry in config.exclude_modules
    )


def _peft_match(module: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return targets != "all-linear" and re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _copy_of_base(name: str, tensor: Tensor, model: nn.Module) -> Iterable[str]:
    """PEFT also writes copies of the base's embeddings and head: fine where they are equal."""
    own = name.removeprefix(PREFIX).replace(".base_layer.", ".")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if own not in parameters:
        yield f"{name}: unexpected, shape {tuple(tensor.shape)}"
    elif tensor.shape != parameters[own].shape or not torch.equal(
        tensor.to(parameters[own].dtype), parameters[own].detach().cpu()
    ):
        yield (
            f"{name}: a trained or other copy of the base's {own}, shape {tuple(tensor.shape)} "
            f"(the base's: {tuple(parameters[own].shape)})"
        )


def _pair_faults(
    module: str,
    pair: dict[str, Tensor],
    modules: Mapping[str, Any],
    embedding: bool,
    config: LoraConfig,
) -> Iterable[str]:
    if module not in modules:
        yield f"{module}: no such module in the base"
        return
    if set(pair) != {"A", "B"}:
        missing = "B" if "A" in pair else "A"
        yield f"{module}: lora_{missing} is missing"
        return
    if (modules[module].role == "embedding") != embedding:
        yield f"{module}: tensors of {'an embedding' if embedding else 'a linear layer'}"
        return
    r = int(pattern_value(config.rank_pattern, module, config.r))
    expected = {"A": (r, modules[module].in_features), "B": (modules[module].out_features, r)}
    for letter, tensor in sorted(pair.items()):
        if tuple(tensor.shape) != expected[letter]:
            yield (
                f"{module}.lora_{letter}: expected shape {expected[letter]}, "
                f"found {tuple(tensor.shape)}"
            )
        elif not torch.isfinite(tensor).all():
            yield f"{module}.lora_{letter}: holds values that are not finite"


def _pattern_key(name: str, names: set[str]) -> str:
    """A module's key in rank_pattern and alpha_pattern. They match the end of a name, so one that
    another ends in is tied to the beginning."""
    return f"^{name}" if any(other.endswith(f".{name}") for other in names) else name


def _target_names(adapted: Adapted, names: set[str]) -> list[str]:
    """Endings (q_proj) where they name exactly what is adapted, else whole names."""
    every = {name.removesuffix(".base_layer") for name in adaptable_modules(adapted.model)}
    endings = {name.rpartition(".")[2] for name in names}
    if all(
        name in names
        for name in every
        if any(name == ending or name.endswith(f".{ending}") for ending in endings)
    ):
        return sorted(endings)
    return sorted(names)


def _task_type(adapted: Adapted) -> str | None:
    if is_classifier(adapted.model):
        return "SEQ_CLS"
    if adapted.base is not None:
        return "CAUSAL_LM" if adapted.base.kind == "causal" else "FEATURE_EXTRACTION"
    return (
        "CAUSAL_LM" if type(adapted.model).__name__.endswith(("CausalLM", "LMHeadModel")) else None
    )
