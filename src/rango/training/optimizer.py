"""AdamW over the bank's tables, and over the parameters of a whole model, behind one face."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rango.adapters.bank import Bank
from rango.adapters.layout import RowLayout
from rango.errors import AdapterError
from rango.kernels.adamw import adamw_, row_norms

_CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


class Optimizer(Protocol):
    """What the loop asks of an optimizer."""

    def clip(self, max_norm: float) -> Tensor:
        """Scale gradients down to `max_norm` (0: leave them); return the norms before that, (n,),
        one for each part that is clipped by itself."""
        ...

    def step(self, learning_rate: float) -> None:
        """Update the weights from their gradients."""
        ...

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, besides weights and gradients."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        ...


@dataclass(frozen=True)
class AdamWSettings:
    """What AdamW takes besides a learning rate."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    loraplus_lr_ratio: float = 1.0
    """Of a bank: what the learning rate of lora_B is multiplied with."""


class BankAdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), elementwise over (rows, P).

        m ← β1·m + (1-β1)·g          v ← β2·v + (1-β2)·g²
        w ← w·(1 - lr·λ) - lr · m/(1-β1ᵗ) / (√(v/(1-β2ᵗ)) + ε)

    Each row has its own settings, its own step count t and its own gradient norm. A row that is not
    `active` is neither stepped nor decayed. With ε = 0 an element that never had a gradient stays
    as it is.

    With a loraplus_lr_ratio (LoRA+, Hayou et al. 2024, arXiv 2402.12354) lr is that many times as
    large for lora_B, and, as in PEFT, for the biases of layers that are held whole; embeddings'
    factors, and all else, learn at lr itself.

    settings: one for each row; may be changed between steps, as may
    active: (rows,) bool, which rows take part.
    """

    def __init__(
        self,
        bank: Bank,
        settings: AdamWSettings | None = None,
        *,
        active: Iterable[int] | None = None,
    ) -> None:
        self.bank = bank
        self.settings = [settings or AdamWSettings()] * bank.rows
        self.exp_avg = torch.zeros_like(bank.parameters)
        self.exp_avg_sq = torch.zeros_like(bank.parameters)
        self.steps = torch.zeros(bank.rows, dtype=torch.int64)
        self.active = torch.ones(bank.rows, dtype=torch.bool)
        self._parts = _parts(bank.layout)
        if active is not None:
            self.activate(active)

    @property
    def gradients(self) -> Tensor:
        """(rows, P), the bank's."""
        if self.bank.gradients is None:
            raise AdapterError("the bank holds no gradients; attach with trainable=True to train")
        return self.bank.gradients

    def activate(self, rows: Iterable[int]) -> None:
        """Let these rows take part in the next steps, and no others."""
        self.active[:] = False
        self.active[list(rows)] = True

    def renew(self, row: int, settings: AdamWSettings) -> None:
        """Start a row anew: no moments, no steps, these settings."""
        self.settings[row] = settings
        for table in (self.exp_avg, self.exp_avg_sq, self.steps):
            table[row] = 0

    @torch.no_grad()
    def clip(self, max_norm: float | Tensor) -> Tensor:
        """Scale each row's gradient down to `max_norm`, one for all or (rows,), 0 for none; (rows,)
        norms before that."""
        norms = row_norms(self.gradients)
        limits = torch.as_tensor(max_norm, dtype=norms.dtype, device=norms.device)
        if bool((limits > 0).any()):
            factors = torch.where(limits > 0, limits / (norms + _CLIP_EPS), 1.0)
            self.gradients.mul_(factors.clamp(max=1.0)[:, None])
        return norms

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> None:
        """Update the active rows.

        learning_rate: one for all, or (rows,) one a row.
        """
        self.steps[self.active] += 1
        rates = torch.as_tensor(learning_rate, dtype=torch.float64)
        rates = rates.to(self.bank.parameters.device).expand(self.bank.rows)[:, None]
        counts = self.steps.to(rates.device, torch.float64)
        tables = (self.bank.parameters, self.gradients, self.exp_avg, self.exp_avg_sq)
        for rows in self._alike():  # neighbours: views, nothing is copied
            settings = self.settings[rows.start]
            ratio = settings.loraplus_lr_ratio
            whole = [(slice(0, self.bank.layout.size), False)]
            for columns, faster in whole if ratio == 1 else self._parts:
                parameters, gradients, exp_avg, exp_avg_sq = (
                    table[rows, columns] for table in tables
                )
                adamw_(
                    parameters,
                    gradients,
                    exp_avg,
                    exp_avg_sq,
                    counts[rows],
                    rates[rows] * ratio if faster else rates[rows],
                    beta1=settings.beta1,
                    beta2=settings.beta2,
                    eps=settings.eps,
                    weight_decay=settings.weight_decay,
                )

    def _alike(self) -> Iterator[slice]:
        """Ranges of active rows that lie side by side and have the same settings."""
        active = [*self.active.tolist(), False]
        first: int | None = None
        for row, acts in enumerate(active):
            if first is not None and not (acts and self.settings[row] == self.settings[first]):
                yield slice(first, row)
                first = None
            if acts and first is None:
                first = row

    def zero_grad(self) -> None:
        """Zero the gradient table."""
        self.bank.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """exp_avg and exp_avg_sq (rows, P), steps (rows,)."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "steps": self.steps}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave; AdapterError if shapes differ."""
        _copy_all(self.state(), tensors)


def _parts(layout: RowLayout) -> list[tuple[slice, bool]]:
    """A row's elements in order, in stretches: whether LoRA+ has them learn faster."""
    parts: list[tuple[slice, bool]] = []
    for (_, tensor), slot in layout.slots.items():
        faster = tensor == "lora_B" or len(slot.shape) == 1
        first = slot.offset
        if parts and parts[-1][1] == faster:
            first = parts.pop()[0].start
        parts.append((slice(first, slot.offset + slot.size), faster))
    return parts


class ModelAdamW:
    """torch.optim.AdamW over a model's parameters (tied ones once), all clipped as one part."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        settings: AdamWSettings | None = None,
    ) -> None:
        settings = settings or AdamWSettings()
        self.parameters = parameters
        self._adamw = torch.optim.AdamW(
            parameters.values(),
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for parameter in parameters.values():  # there from the start, so that the state is too
            self._adamw.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def clip(self, max_norm: float) -> Tensor:
        """Scale the whole gradient down to `max_norm`; (1,) its norm before that."""
        limit = max_norm if max_norm > 0 else torch.inf
        return nn.utils.clip_grad_norm_(self.parameters.values(), limit)[None]

    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient."""
        self._adamw.param_groups[0]["lr"] = learning_rate
        self._adamw.step()

    def zero_grad(self) -> None:
        """Free every gradient."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Three tensors a parameter: ``<name>.step``, ``.exp_avg``, ``.exp_avg_sq``."""
        return {
            f"{name}.{part}": tensor
            for name, parameter in self.parameters.items()
            for part, tensor in self._adamw.state[parameter].items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave; AdapterError if shapes differ."""
        _copy_all(self.state(), tensors)


def _copy_all(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    wrong = [
        f"{name}: expected {_shape(own, name)}, found {_shape(given, name)}"
        for name in sorted(own.keys() | given.keys())
        if _shape(own, name) != _shape(given, name)
    ]
    if wrong:
        raise AdapterError("the optimizer's state does not fit: " + "; ".join(wrong))
    for name, tensor in own.items():
        tensor.copy_(given[name])


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "nothing"
