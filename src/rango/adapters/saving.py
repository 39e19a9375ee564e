"""Which modules an adapter holds whole, from the names in modules_to_save."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rango.adapters.config import LoraConfig
from rango.base.classifier import head_modules, is_new
from rango.base.roles import adaptable_modules
from rango.errors import TargetError, nearest


def find_saved(model: nn.Module, config: LoraConfig) -> tuple[str, ...]:
    """The linear layers that `config` saves whole, in the model's order: those of modules_to_save
    and the new ones of a classifier's head; without modules_to_save all of the head.

    Raises TargetError where a name matches nothing, or something that is not a plain linear layer.
    """
    if not config.modules_to_save:
        return head_modules(model)
    for entry in config.modules_to_save:
        if not any(name.endswith(entry) for name, _ in model.named_modules() if name):
            endings = {name.rpartition(".")[2] for name, _ in model.named_modules() if name}
            raise TargetError(
                f"modules_to_save: {entry!r} matches no module{nearest(entry, endings)}"
            )
    saved = set(saved_layers(model, config.modules_to_save))
    saved.update(name for name in head_modules(model) if is_new(model.get_submodule(name)))
    return tuple(name for name in adaptable_modules(model) if name in saved)


def saved_layers(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The linear layers in the modules whose names end in one of `names`, which is PEFT's rule; a
    name that matches nothing is passed over.

    Raises TargetError where such a module holds weights that are not a plain linear layer's.
    """
    found = []
    for name, module in model.named_modules():
        if not name or not any(name.endswith(entry) for entry in names):
            continue
        for inner, part in module.named_modules():
            whole = f"{name}.{inner}" if inner else name
            if isinstance(part, nn.Linear):
                found.append(whole)
            elif any(True for _ in part.parameters(recurse=False)) or _is_packed(part):
                raise TargetError(
                    f"modules_to_save names {whole}, a {type(part).__name__}; only plain linear "
                    "layers, such as a classifier's head, can be saved whole"
                )
    known = adaptable_modules(model)
    uncalled = sorted(set(found) - known.keys())
    if uncalled:
        raise TargetError(
            f"modules_to_save names {', '.join(uncalled)}, whose weights the model reads without "
            "calling the layer; they cannot be saved whole"
        )
    return tuple(name for name in known if name in found)


def peft_names(model: nn.Module, saved: Sequence[str]) -> list[str]:
    """The shortest names for modules_to_save with which PEFT saves these layers: that of the
    outermost module that holds nothing else, not even a norm, for what is above the body."""
    holding = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    holding |= adaptable_modules(model).keys()
    holding = {name.removesuffix(".base_layer") for name in holding}
    names = []
    for name in saved:
        top = name.partition(".")[0]
        inside = {other for other in holding if other == top or other.startswith(f"{top}.")}
        names.append(top if inside <= set(saved) else name)
    return sorted(set(names))


def check_apart(targets: Sequence[str], saved: Sequence[str]) -> None:
    """Raise TargetError for a module that is to have a low-rank update and to be saved whole."""
    both = sorted(set(targets) & set(saved))
    if both:
        raise TargetError(
            f"{', '.join(both)}: in target_modules and in modules_to_save; name it in one of them "
            "(exclude_modules takes it out of the targets)"
        )


def _is_packed(module: nn.Module) -> bool:
    return bool(getattr(module, "quantized", None) is not None)
