"""LoRALinear: an ordinary nn.Module for people with their own model and loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rango.adapters.attach import Adapted, attach_targets
from rango.adapters.config import LoraConfig
from rango.adapters.targets import find_targets


class LoRALinear(nn.Module):
    """A linear layer with a LoRA adapter over a one-row bank: h = W·x + (alpha/r)·B·A·x.

    The given layer is frozen in place. Only lora_A (1, r, in) and lora_B (1, out, r) require
    gradients; any optimizer over `parameters()` trains them.

    >>> layer = rango.LoRALinear(nn.Linear(d, k), r=8, lora_alpha=16)
    """

    def __init__(
        self,
        base_layer: nn.Module,
        r: int = 16,
        lora_alpha: float = 32.0,
        *,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config = LoraConfig(
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            use_rslora=use_rslora,
            target_modules=["linear"],
        )
        self.linear: nn.Module = base_layer
        targets = find_targets(self, config)
        adapted = attach_targets(self, targets)
        adapted.configure(0, config, targets)
        adapted.reset(0, seed)
        # kept off the module tree: it refers back to this module
        object.__setattr__(self, "adapted", adapted)

    adapted: Adapted

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = self.linear(x)
        return y

    @property
    def lora_A(self) -> nn.Parameter:  # noqa: N802
        """(1, r, in)."""
        return self.adapted.sites["linear"].A

    @property
    def lora_B(self) -> nn.Parameter:  # noqa: N802
        """(1, out, r)."""
        return self.adapted.sites["linear"].B

    def merge(self) -> None:
        """Add ΔW into the weight."""
        self.adapted.merge()

    def unmerge(self) -> None:
        """Put the weight back, bit for bit."""
        self.adapted.unmerge()

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The plain layer with ΔW in its weight, for use without Rango; this module is unused
        afterwards."""
        self.adapted.merge()
        return self.adapted.modules["linear"].base_layer
