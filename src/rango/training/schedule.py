"""When each thing of a run happens: steps, epochs, learning rate, evaluations, checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rango.errors import ConfigError
from rango.training.config import TrainingConfig

DEFAULT_LEARNING_RATE = {"lora": 2e-4, "full": 2e-5}
"""LoRA's best rate is about ten times that of full fine-tuning (Thinking Machines, "LoRA Without
Regret", 2025) and hardly depends on the rank."""

_PARTS = 10  # a run is evaluated and checkpointed this many times unless told otherwise


@dataclass(frozen=True)
class StepPlan:
    """The steps of a run over `samples` training samples.

    An epoch is ⌈samples / batch_size⌉ steps; its last step may have fewer samples. Steps are
    counted by how many are done: step s (from 0) takes the run from s to s + 1.
    """

    samples: int
    batch_size: int
    total: int
    warmup: int
    learning_rate: float
    schedule: str
    eval_every: int
    checkpoint_every: int

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.samples / self.batch_size)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, index into its order) where step `step` begins."""
        epoch, within = divmod(step, self.per_epoch)
        return epoch, within * self.batch_size

    def rate(self, step: int) -> float:
        """Learning rate of step `step`: rises over the warm-up from above 0, then follows the
        schedule, whose last step is still above 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.total - self.warmup)  # [0, 1)
        if self.schedule == "linear":
            return self.learning_rate * (1 - done)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate

    def evaluates_at(self, done: int) -> bool:
        """Whether to evaluate when `done` steps are done (the start is the base)."""
        return done % self.eval_every == 0 or done == self.total

    def checkpoints_at(self, done: int) -> bool:
        """Whether to checkpoint when `done` steps are done."""
        return done > 0 and (done % self.checkpoint_every == 0 or done == self.total)


def plan_steps(config: TrainingConfig, samples: int) -> StepPlan:
    """The plan of a run; ConfigError for values that make no sense."""
    check_training(config)
    per_epoch = math.ceil(samples / config.batch_size)
    total = math.ceil(config.epochs * per_epoch)
    if config.max_steps is not None:
        total = min(total, config.max_steps)
    part = math.ceil(total / _PARTS)
    return StepPlan(
        samples=samples,
        batch_size=config.batch_size,
        total=total,
        warmup=round(config.warmup_share * total),
        learning_rate=peak_learning_rate(config),
        schedule=config.schedule,
        eval_every=part if config.eval_every is None else config.eval_every,
        checkpoint_every=part if config.checkpoint_every is None else config.checkpoint_every,
    )


def peak_learning_rate(config: TrainingConfig) -> float:
    """The learning rate asked for, or the method's default."""
    if config.learning_rate is None:
        return DEFAULT_LEARNING_RATE[config.method]
    return config.learning_rate


def check_training(config: TrainingConfig) -> None:
    """Raise ConfigError naming every value outside its range, with what was found."""
    wrong = [
        f"training.{name}: expected {expected}, found {getattr(config, name)!r}"
        for name, expected, fits in _ranges(config)
        if not fits
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))


def _ranges(c: TrainingConfig) -> list[tuple[str, str, bool]]:
    positive, count = "a finite number above 0", "a whole number of at least 1"
    return [
        ("method", "lora or full", c.method in DEFAULT_LEARNING_RATE),
        ("schedule", "constant, linear or cosine", c.schedule in ("constant", "linear", "cosine")),
        ("epochs", positive, _positive(c.epochs)),
        ("max_steps", count, _count(c.max_steps)),
        ("batch_size", count, _count(c.batch_size)),
        ("micro_tokens", count, _count(c.micro_tokens)),
        ("learning_rate", positive, c.learning_rate is None or _positive(c.learning_rate)),
        ("loraplus_lr_ratio", positive, _positive(c.loraplus_lr_ratio)),
        (
            "loraplus_lr_ratio",
            "1 with method full, which has no lora_B",
            c.method != "full" or c.loraplus_lr_ratio == 1,
        ),
        ("warmup_share", "a share from 0 to 1", 0 <= c.warmup_share <= 1),
        ("weight_decay", "a finite number of at least 0", _positive(c.weight_decay, or_zero=True)),
        ("adam_beta1", "at least 0 and below 1", 0 <= c.adam_beta1 < 1),
        ("adam_beta2", "at least 0 and below 1", 0 <= c.adam_beta2 < 1),
        ("adam_eps", "a finite number of at least 0", _positive(c.adam_eps, or_zero=True)),
        ("max_grad_norm", "a number of at least 0", _positive(c.max_grad_norm, or_zero=True)),
        ("eval_every", count, _count(c.eval_every)),
        ("patience", count, _count(c.patience)),
        ("max_forgetting", positive, c.max_forgetting is None or _positive(c.max_forgetting)),
        ("checkpoint_every", count, _count(c.checkpoint_every)),
        ("keep_checkpoints", count, _count(c.keep_checkpoints)),
        ("seed", "a whole number of at least 0", c.seed >= 0),
    ]


def _positive(value: float, or_zero: bool = False) -> bool:
    return math.isfinite(value) and (value > 0 or (or_zero and value == 0))


def _count(value: int | None) -> bool:
    return value is None or value >= 1
