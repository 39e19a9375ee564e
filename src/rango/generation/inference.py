"""A model in eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inference(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Within the block: eval mode, no gradients. After it each module has the mode it had.

    The modes are kept one by one, because while training adapters the base stays in eval mode.
    modules: the model's, for who comes here often: finding them takes as long as a small model.
    """
    modules = model.modules() if modules is None else modules
    training = [module for module in modules if module.training]
    if training:
        model.eval()
    try:
        # not inference_mode: what a routing caches here serves the next training step too
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
