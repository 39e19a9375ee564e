"""Everything that decides a training run. The same classes serve YAML, flags and Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rango.adapters.config import LoraConfig
from rango.base.config import BaseConfig
from rango.data.config import DataConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How to train."""

    method: Literal["lora", "full"] = "lora"
    """lora trains an adapter over the frozen base (QLoRA where base.quantize is nf4 or
    int8); full trains every weight of the base, as a baseline, in fp32 unless base.dtype says
    otherwise."""
    epochs: float = 3.0
    """Passes over the training samples."""
    max_steps: int | None = None
    """At most this many optimizer steps; epochs may end the run sooner."""
    batch_size: int = 16
    """Samples per optimizer step."""
    micro_tokens: int = 2048
    """Most tokens computed at once; a step is split into as many pieces as that takes, which
    changes memory and speed but not the result."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer, and compute the rest again in the backward pass: less
    memory, about a quarter more time. The result is the same."""
    learning_rate: float | None = None
    """Peak learning rate; by default 2e-4 for lora, 2e-5 for full."""
    loraplus_lr_ratio: float = 1.0
    """LoRA+ (Hayou et al. 2024): lora_B learns at this many times the learning rate; the paper has
    16, with a lower rate than without."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up."""
    warmup_share: float = 0.03
    """Share of the steps over which the learning rate rises to its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: float = 0.999
    """Decay of AdamW's second moment."""
    adam_eps: float = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: float = 1.0
    """Clip each adapter's gradient (with full, the whole model's) to this norm; 0 for none."""
    eval_every: int | None = None
    """Steps between evaluations on the held-out samples; by default a tenth of the run."""
    patience: int | None = None
    """Stop after this many evaluations without a better held-out loss. The weights with the best
    one are kept in any case."""
    max_forgetting: float | None = None
    """Stop when the KL divergence from the base on general text, in nats a token, exceeds this."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; by default a tenth of the run."""
    keep_checkpoints: int = 1
    """How many of the latest checkpoints to keep."""
    seed: int = 0
    """Seed of initialisation, order and dropout."""


@dataclass(frozen=True)
class RunConfig:
    """A training run."""

    base: BaseConfig
    """The frozen base."""
    data: DataConfig
    """The samples."""
    output: str
    """Folder of the run, which must not exist yet (or be an interrupted run, with --resume)."""
    adapter: LoraConfig = field(default_factory=LoraConfig)
    """The adapter."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How to train."""
