"""One layer computed again in the backward pass: its inputs are kept, its insides are not.

What its adapters read (routing, factors, dropout) is kept with them: by the time of the backward
pass it may say something else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rango.adapters.modules import AdaptedModule


class RecomputedLayer(nn.Module):
    """Mixed into the class of a layer that is to be computed again in the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own."""
        return recomputed(self, super().forward, args, kwargs)


def recomputed(
    layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """forward(*args, **kwargs), of which the backward pass finds only the inputs kept.

    With a cache, which a second forward would fill a second time, everything is kept.
    """
    cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
    if not torch.is_grad_enabled() or cache is not None:
        return forward(*args, **kwargs)
    state = _as_now([m for m in layer.modules() if isinstance(m, AdaptedModule)])

    def run(*args: Any) -> Any:
        with state():
            return forward(*args, **kwargs)

    # nothing else draws random numbers: the frozen base is in eval mode
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


def _as_now(modules: list[AdaptedModule]) -> Callable[[], Any]:
    """What puts back, for a while, the state that these modules read, as it is now."""
    if not modules:
        return _nothing
    switch = modules[0].switch  # shared by all
    now = copy.copy(switch)
    sites = [site for module in modules for site in module.sites]
    training = [site.training for site in sites]
    if any(training) and now.dropout is None:
        now.dropout = switch.dropout_key(sites[0].bank.rows)

    @contextmanager
    def reinstated() -> Iterator[None]:
        before, modes = copy.copy(switch), [site.training for site in sites]
        _set(switch, now, sites, training)
        try:
            yield
        finally:
            _set(switch, before, sites, modes)

    return reinstated


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _set(switch: Any, state: Any, sites: list[Any], training: list[bool]) -> None:
    vars(switch).update(vars(state))
    for site, mode in zip(sites, training, strict=True):
        site.training = mode
