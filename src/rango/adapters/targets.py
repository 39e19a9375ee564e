"""From what a config asks for to the modules that are adapted, each with its rank and alpha."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from rango.adapters.config import LoraConfig
from rango.base.roles import Adaptable, adaptable_modules, fused_parts
from rango.errors import ConfigError, TargetError, nearest

T = TypeVar("T")

GROUPS = ("all-linear", "attention", "mlp")

_PART = re.compile(r"(?P<name>.+)\[(?P<parts>\w+(,\s*\w+)*)\]")


@dataclass(frozen=True)
class Target:
    """A module, or one part of a fused projection, and the low-rank update it gets."""

    name: str
    """Module name, with the part: ``h.0.attn.c_attn[q]``."""
    module: str
    part: str | None
    columns: slice | Tensor | None
    in_features: int
    out_features: int
    embedding: bool
    r: int
    lora_alpha: float


def find_targets(model: nn.Module, config: LoraConfig) -> list[Target]:
    """The targets of `config` in the model's order.

    Raises ConfigError for values that make no sense, TargetError where an entry matches nothing.
    """
    check_adapter(config)
    modules = adaptable_modules(model)
    chosen = _select(model, modules, config)
    if config.layers is not None:
        layers = parse_layers(config.layers)
        chosen = {key: None for key in chosen if layer_of(key[0]) in layers}
    if config.exclude_modules:
        excluded = {
            name
            for entry in config.exclude_modules
            for name in _matches(modules, entry) or _nothing(modules, "exclude_modules", entry)
        }
        chosen = {key: None for key in chosen if key[0] not in excluded}
    if not chosen:
        raise TargetError(
            f"target_modules {config.target_modules!r} with layers {config.layers!r} and "
            f"exclude_modules {config.exclude_modules!r} leaves no module to adapt"
        )
    _check_used(config, [module for module, _ in chosen], modules)
    order = {name: number for number, name in enumerate(modules)}
    return [
        _target(model, module, part, modules[module], config)
        for module, part in sorted(chosen, key=lambda key: order[key[0]])
    ]


def pattern_value(patterns: dict[str, T], name: str, default: T) -> T:
    """PEFT's rule for rank_pattern and alpha_pattern: the first key that matches the end wins."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def _select(
    model: nn.Module, modules: dict[str, Adaptable], config: LoraConfig
) -> dict[tuple[str, str | None], None]:
    entries = config.target_modules
    entries = [entries] if isinstance(entries, str) else entries
    if not entries:
        raise TargetError("target_modules is empty: name at least one module or group")
    chosen: dict[tuple[str, str | None], None] = {}
    for entry in entries:
        fused = _PART.fullmatch(entry)
        # a character class of a regular expression looks like a part; a name before it decides
        if fused and _matches(modules, fused["name"]):
            parts = [part.strip() for part in fused["parts"].split(",")]
            for name in _matches(modules, fused["name"]):
                known = fused_parts(model, name)
                for part in parts:
                    if part not in known:
                        raise TargetError(
                            f"target_modules {entry!r}: {name} has no part {part!r}; "
                            f"it has {', '.join(known)}"
                        )
                    chosen[name, part] = None
            continue
        names = _matches(modules, entry) or _nothing(modules, "target_modules", entry)
        chosen |= {(name, None): None for name in names}
    split = {module for module, part in chosen if part is not None}
    for name in split:
        if (name, None) in chosen:
            raise TargetError(f"target_modules names both {name} and parts of it; name one")
    return chosen


def _matches(modules: dict[str, Adaptable], entry: str) -> list[str]:
    """Group, name (whole or its end), or regular expression on the whole name."""
    if entry == "all-linear":
        return [
            name
            for name, module in modules.items()
            if module.role not in ("head", "router", "embedding")
        ]
    if entry in GROUPS:
        return [name for name, module in modules.items() if module.role == entry]
    named = [name for name in modules if name == entry or name.endswith(f".{entry}")]
    if named:
        return named
    try:
        return [name for name in modules if re.fullmatch(entry, name)]
    except re.error:
        return []


def _nothing(modules: dict[str, Adaptable], option: str, entry: str) -> list[str]:
    endings = {name.rpartition(".")[2] for name in modules}
    raise TargetError(
        f"{option}: {entry!r} matches no module{nearest(entry, [*endings, *modules, *GROUPS])}. "
        f"Groups: {', '.join(GROUPS)}; module names here end in: {', '.join(sorted(endings))}"
    )


def _target(
    model: nn.Module, module: str, part: str | None, shape: Adaptable, config: LoraConfig
) -> Target:
    columns: slice | Tensor | None = None
    out_features = shape.out_features
    if part is not None:
        columns = fused_parts(model, module)[part]
        out_features = (
            columns.stop - columns.start if isinstance(columns, slice) else columns.numel()
        )
    name = module if part is None else f"{module}[{part}]"
    r = pattern_value(config.rank_pattern, module, config.r)
    return Target(
        name=name,
        module=module,
        part=part,
        columns=columns,
        in_features=shape.in_features,
        out_features=out_features,
        embedding=shape.role == "embedding",
        r=r,
        lora_alpha=pattern_value(config.alpha_pattern, module, config.lora_alpha),
    )


def parse_layers(text: str) -> set[int]:
    """Layer numbers from a text such as ``0-3,7``; raises ConfigError."""
    layers: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", piece)
        if match is None:
            raise ConfigError(f"layers: expected such as '0-3,7', found {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        layers.update(range(first, last + 1))
    return layers


def layer_of(name: str) -> int | None:
    """The first number in a module's name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _check_used(config: LoraConfig, chosen: list[str], modules: dict[str, Adaptable]) -> None:
    """A pattern or a layer that matches nothing is a typo."""
    for option, patterns in (
        ("rank_pattern", config.rank_pattern),
        ("alpha_pattern", config.alpha_pattern),
    ):
        for key in patterns:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in chosen):
                endings = {name.rpartition(".")[2] for name in chosen}
                raise TargetError(
                    f"{option}: {key!r} matches no adapted module{nearest(key, endings)}"
                )
    if config.layers is not None:
        missing = parse_layers(config.layers) - {layer_of(name) for name in modules}
        if missing:
            raise TargetError(f"layers {config.layers!r}: the model has no layer {min(missing)}")


def check_adapter(config: LoraConfig) -> None:
    """Raise ConfigError for a value outside its range, whatever the model."""
    for option, r in {"r": config.r, **config.rank_pattern}.items():
        if r < 1:
            raise ConfigError(f"rank {r} for {option!r}: expected at least 1")
    if not 0 <= config.lora_dropout < 1:
        raise ConfigError(f"lora_dropout {config.lora_dropout}: expected at least 0, below 1")
    for option, patterns in (
        ("rank_pattern", config.rank_pattern),
        ("alpha_pattern", config.alpha_pattern),
    ):
        for key in patterns:
            try:
                re.compile(key)
            except re.error as error:
                raise ConfigError(f"{option}: {key!r} is no regular expression: {error}") from error
