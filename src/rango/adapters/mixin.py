"""Give one instance of a module another forward, and take it away again.

The instance gets a class of its own that inherits from the mixin and from what it was, as FSDP2
does it: its submodules, names, hooks and identity stay, other instances are not touched, and the
mixin falls back on `super().forward`.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

from torch import nn

_CLASSES: dict[tuple[type, type], type] = {}


def mix_in(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Put the mixin before the module's class."""
    plain = type(module)
    if (mixin, plain) not in _CLASSES:
        # named as the plain one, which some code goes by
        named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
        members = named | {"__reduce_ex__": _reduced}
        _CLASSES[mixin, plain] = type(plain.__name__, (mixin, plain), members)
    module.__class__ = _CLASSES[mixin, plain]


def take_out(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Make the module what it was before `mix_in`; nothing happens if the mixin is not first."""
    first, *others = type(module).__bases__
    if first is mixin:
        module.__class__ = others[0]


def plain_class(module: nn.Module) -> type[nn.Module]:
    """What a module was before `mix_in`."""
    plain: type[nn.Module] = type(module).__bases__[1]
    return plain


def _reduced(module: nn.Module, protocol: SupportsIndex) -> tuple[Any, ...]:
    """For pickle and copy, which find classes by their names."""
    mixin, plain = type(module).__bases__
    return _rebuilt, (mixin, plain), module.__dict__


def _rebuilt(mixin: type[nn.Module], plain: type[nn.Module]) -> nn.Module:
    module = plain.__new__(plain)
    mix_in(module, mixin)
    return module
