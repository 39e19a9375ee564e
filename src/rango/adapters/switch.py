"""What the modules of one attachment share: the batch's routing, and whether they act at all."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rango.adapters.dropout import DropoutKey
from rango.adapters.routing import Routing


@dataclass
class Switch:
    """State of an attachment that a forward pass reads."""

    routing: Routing = field(default_factory=Routing.everywhere)
    enabled: bool = True
    merged: bool = False
    """The base's weights contain the adapter; its updates rest."""
    factors: dict[int, float] = field(default_factory=dict)
    """Run-time factor of a row, where it is not 1."""
    dropout: DropoutKey | None = None
    """None draws from torch's generator, as an ordinary module does."""

    @property
    def acts(self) -> bool:
        """Whether updates are added."""
        return self.enabled and not self.merged

    def dropout_key(self, rows: int) -> DropoutKey:
        """The key of this pass."""
        if self.dropout is not None:
            return self.dropout
        drawn = int(torch.randint(2**62, ()).item())
        return DropoutKey(jobs=(drawn,) * rows, steps=(0,) * rows)
