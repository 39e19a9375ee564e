"""Which samples to learn from, and how they become tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Training data: chat messages, prompt/completion, Alpaca or plain text, as JSON or JSONL."""

    train: str
    """File to train on."""
    valid: str | None = None
    """Held-out file; without one, valid_share of the training file is held out."""
    valid_share: float = 0.05
    """Share of the training file held out, chosen by a hash of the prompt; 0 for none."""
    general: str | None = None
    """General text on which forgetting is measured against the base; without it, the prompts
    of the held-out samples serve."""
    max_length: int = 1024
    """Longest sample in tokens."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """What to do with a longer sample."""
    loss_on: Literal["completion", "all"] = "completion"
    """Which tokens are learnt: the assistant's (its end of turn included), or every one."""
    packing: Literal["auto", "off"] = "auto"
    """Put several samples in one row without padding, where the model is shown to keep them
    apart; off pads instead."""
