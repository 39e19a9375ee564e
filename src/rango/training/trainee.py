"""What a run trains: one row of a bank over a frozen base, or every weight of the base itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rango.adapters.attach import Adapted
from rango.adapters.recompute import recomputing
from rango.adapters.routing import Routing
from rango.base.load import Base
from rango.data.samples import Batch
from rango.errors import ConfigError
from rango.training.config import TrainingConfig
from rango.training.optimizer import AdamWSettings, BankAdamW, ModelAdamW, Optimizer

MOST_POSITIONS = 2**32
"""So that (sample, position) is one number."""


class Trainee(Protocol):
    """What the loop asks of the thing it trains."""

    model: nn.Module
    optimizer: Optimizer
    config: TrainingConfig

    def weights(self) -> dict[str, Tensor]:
        """The tensors that are trained; not copies."""
        ...

    def trainable(self) -> int:
        """Number of parameters that are trained, padding left out."""
        ...

    def learning(self) -> Any:
        """Context in which the weights require gradients."""
        ...

    def untrained(self) -> Any:
        """Context, before the first step, in which the model is what training is compared with."""
        ...

    def prepare(self, batch: Batch, step: int) -> Any:
        """Context of the passes over a micro-batch in step `step`."""
        ...


class LoraTrainee:
    """Row `row` of a bank; the base and all other rows stay as they are."""

    def __init__(
        self,
        adapted: Adapted,
        config: TrainingConfig,
        row: int = 0,
        optimizer: BankAdamW | None = None,
    ) -> None:
        """optimizer: one that other rows share; by default the row gets its own."""
        self.adapted, self.row, self.config = adapted, row, config
        self.model = adapted.model
        self.optimizer: Optimizer = optimizer or BankAdamW(
            adapted.bank, adamw_settings(config), active=[row]
        )
        self._drops = any(site.dropouts[row] > 0 for site in adapted.sites.values())

    def weights(self) -> dict[str, Tensor]:
        """The row, (P,)."""
        return {"row": self.adapted.bank.row(self.row)}

    def trainable(self) -> int:
        """Number of parameters of the adapter."""
        return self.adapted.trainable_parameters(self.row)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Every token uses the row."""
        with (
            self.adapted.route(Routing.everywhere(self.row)),
            recomputing(self.model, self.config.gradient_checkpointing),
        ):
            yield

    def untrained(self) -> Any:
        """The base alone, where the row is new: a head that the base lacks is drawn in it, and
        answers by chance. A row that goes on learning is as it is."""
        moved = any(
            site.factors(self.row)[0 if site.embedding else 1].any()
            for site in self.adapted.sites.values()
        )
        return nullcontext() if moved else self.adapted.disabled()

    @contextmanager
    def prepare(self, batch: Batch, step: int) -> Iterator[None]:
        """Dropout acts; what it drops depends on seed, step, sample and position alone."""
        if not self._drops:
            yield
            return
        indices = torch.tensor(batch.indices)
        ids = indices[batch.samples] * MOST_POSITIONS + batch.position_ids
        self.adapted.dropout_key(step, job=self.config.seed, token_ids=ids)
        self.adapted.train(True)
        try:
            yield
        finally:
            self.adapted.train(False)


class FullTrainee:
    """Every floating-point weight of the base, tied ones once; dropout of the base stays off.

    The weights are trained in the type they are held in; Adam's moments have the same.
    """

    def __init__(self, base: Base, config: TrainingConfig) -> None:
        if base.quantize != "none":
            raise ConfigError(
                f"training.method full trains every weight, and {base.source} is held quantized "
                f"({base.quantize}); set base.quantize to none, or training.method to lora (QLoRA)"
            )
        self.model, self.config = base.model, config
        self._parameters = {
            name: parameter
            for name, parameter in base.model.named_parameters()
            if parameter.is_floating_point()
        }
        self.optimizer: Optimizer = ModelAdamW(self._parameters, adamw_settings(config))

    def weights(self) -> dict[str, Tensor]:
        """By parameter name."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def trainable(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The base requires gradients within the block, and is frozen again after it."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        try:
            with recomputing(self.model, self.config.gradient_checkpointing):
                yield
        finally:
            self.optimizer.zero_grad()
            for parameter in self._parameters.values():
                parameter.requires_grad_(False)

    def untrained(self) -> Any:
        """As it is: nothing keeps the weights from before a step."""
        return nullcontext()

    def prepare(self, batch: Batch, step: int) -> Any:
        """Nothing is needed."""
        return nullcontext()


def snapshot(trainee: Trainee) -> dict[str, Tensor]:
    """Copies of the weights, in main memory."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in trainee.weights().items()}


@torch.no_grad()
def restore(trainee: Trainee, kept: dict[str, Tensor]) -> None:
    """Put the weights back; ConfigError where names or shapes differ."""
    weights = trainee.weights()
    wrong = sorted(
        name
        for name in weights.keys() | kept.keys()
        if name not in weights or name not in kept or weights[name].shape != kept[name].shape
    )
    if wrong:
        raise ConfigError(f"the saved weights do not fit what is trained: {', '.join(wrong[:10])}")
    for name, tensor in weights.items():
        tensor.copy_(kept[name])


def adamw_settings(config: TrainingConfig) -> AdamWSettings:
    """What a config says of AdamW, the learning rate left out."""
    return AdamWSettings(
        config.adam_beta1,
        config.adam_beta2,
        config.adam_eps,
        config.weight_decay,
        config.loraplus_lr_ratio,
    )
