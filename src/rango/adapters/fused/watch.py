"""Whether modules are still what they were when something was gathered from them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import output_capturing


def is_watched(module: nn.Module) -> bool:
    """Whether calling the module does more than the forward of its class: hooks, or a forward of
    its own. transformers leaves its hooks for hidden states in place; they count while they act."""
    if "forward" in vars(module):
        return True
    hooks = [hook for name in _HOOKS for hook in getattr(module, name).values()]
    return any(not _captures(hook) for hook in hooks) or (
        bool(hooks) and bool(output_capturing._active_collector.get())
    )


def _captures(hook: Any) -> bool:
    return getattr(hook, "__module__", "") == output_capturing.__name__


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TYPE = attrgetter("dtype")
_TRAINED = attrgetter("requires_grad")


class Watch:
    """Children, hooks and tensors of modules, as they are at first.

    It is asked for every layer and token, so each question is one pass inside the interpreter.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        watched = list({id(module): module for module in modules}.values())
        self._children = [module._modules for module in watched]
        self._hooks = [getattr(module, name) for module in watched for name in _HOOKS]
        self._tables = [t for module in watched for t in (module._parameters, module._buffers) if t]
        self._first = self._seen()

    def holds(self) -> bool:
        """The same children, no hooks, and every tensor in its place with the type it had."""
        return not any(self._hooks) and self._seen() == self._first

    def trained(self) -> bool:
        """Whether any of the tensors requires a gradient."""
        return any(map(_TRAINED, self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [t for table in self._tables for t in table.values() if t is not None]

    def _seen(self) -> tuple[Any, ...]:
        tensors = self._tensors()
        return (
            # compared by identity: modules define no equality
            list(chain.from_iterable(map(dict.values, self._children))),
            list(map(torch.Tensor.data_ptr, tensors)),
            list(map(_TYPE, tensors)),
        )
