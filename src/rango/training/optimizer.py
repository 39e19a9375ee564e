"""AdamW over the bank's tables, and over the parameters of a whole model, behind one face."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rango.adapters.bank import Bank
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


class BankAdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), elementwise over (rows, P).

        m ← β1·m + (1-β1)·g          v ← β2·v + (1-β2)·g²
        w ← w·(1 - lr·λ) - lr · m/(1-β1ᵗ) / (√(v/(1-β2ᵗ)) + ε)

    Each row has its own step count t and its own gradient norm. A row that is not `active` is
    neither stepped nor decayed. With ε = 0 an element that never had a gradient stays as it is.

    active: (rows,) bool, which rows take part; may be changed between steps.
    """

    def __init__(
        self,
        bank: Bank,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        active: Iterable[int] | None = None,
    ) -> None:
        self.bank = bank
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.exp_avg = torch.zeros_like(bank.parameters)
        self.exp_avg_sq = torch.zeros_like(bank.parameters)
        self.steps = torch.zeros(bank.rows, dtype=torch.int64)
        self.active = torch.ones(bank.rows, dtype=torch.bool)
        if active is not None:
            self.active[:] = False
            self.active[list(active)] = True

    @property
    def gradients(self) -> Tensor:
        """(rows, P), the bank's."""
        if self.bank.gradients is None:
            raise AdapterError("the bank holds no gradients; attach with trainable=True to train")
        return self.bank.gradients

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Scale each row's gradient down to `max_norm`; (rows,) norms before that."""
        norms = row_norms(self.gradients)
        if max_norm > 0:
            self.gradients.mul_((max_norm / (norms + _CLIP_EPS)).clamp(max=1.0)[:, None])
        return norms

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> None:
        """Update the active rows.

        learning_rate: one for all; (rows,) one a row; or two-dimensional and broadcast to
            (rows, P), one an element (LoRA+, arXiv 2402.12354, has a larger one for lora_B).
        """
        rows = self.active.nonzero()[:, 0]
        if not len(rows):
            return
        self.steps[rows] += 1
        device = self.bank.parameters.device
        rates = torch.as_tensor(learning_rate, dtype=torch.float64, device=device)
        if rates.ndim == 1:
            rates = rates[:, None]
        if rates.ndim == 2 and rates.shape[0] == self.bank.rows:
            rates = rates[rows.to(device)]
        counts = self.steps[rows].to(device, torch.float64)[:, None]  # (n, 1)
        tables = (self.bank.parameters, self.gradients, self.exp_avg, self.exp_avg_sq)
        first, count = int(rows[0]), len(rows)
        if int(rows[-1]) - first + 1 == count:  # neighbours: views, nothing is copied
            self._update([table[first : first + count] for table in tables], rates, counts)
            return
        index = rows.to(device)
        chosen = [table[index] for table in tables]
        self._update(chosen, rates, counts)
        for table, changed in zip(tables, chosen, strict=True):
            table[index] = changed

    def _update(self, tables: Sequence[Tensor], rates: Tensor, counts: Tensor) -> None:
        """In place; each table (n, P), rates broadcast to that, counts (n, 1)."""
        parameters, gradients, exp_avg, exp_avg_sq = tables
        adamw_(
            parameters,
            gradients,
            exp_avg,
            exp_avg_sq,
            counts[:, 0],
            rates,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )

    def zero_grad(self) -> None:
        """Zero the gradient table."""
        self.bank.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """exp_avg and exp_avg_sq (rows, P), steps (rows,)."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "steps": self.steps}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave; AdapterError if shapes differ."""
        _copy_all(self.state(), tensors)


class ModelAdamW:
    """torch.optim.AdamW over a model's parameters (tied ones once), all clipped as one part."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = parameters
        self._adamw = torch.optim.AdamW(
            parameters.values(),
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
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
