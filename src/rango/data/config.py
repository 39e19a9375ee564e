"""Which samples to learn from, and how they become tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DEFAULT_CACHE_GB = 10.0
"""Bound on the size of all tokenized data that are kept, in 10⁹ bytes."""


@dataclass(frozen=True)
class DataConfig:
    """Training data: chat messages, ShareGPT, Alpaca, prompt/completion, plain text, or text+label
    for a classifier, as JSON, JSONL, CSV, Parquet or Arrow."""

    train: str
    """Data to train on: a file, a folder, a glob, - for standard input, or a data set of the Hub
    (owner/name, owner/name:split)."""
    valid: str | None = None
    """Held-out data; without it, valid_share of the training data is held out."""
    valid_share: float = 0.05
    """Share of the training data held out, chosen by a hash of the prompt (with group_column, of
    the group); 0 for none."""
    general: str | None = None
    """General text on which forgetting is measured against the base; without it, the prompts
    of the held-out samples serve."""
    max_length: int = 1024
    """Longest sample in tokens."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """What to do with a longer sample."""
    loss_on: Literal["completion", "last", "all"] = "completion"
    """Which tokens are learnt: the assistant's (its ends of turn included), only those of its last
    answer, or every one."""
    chat_template: str | None = None
    """A built-in chat template (alpaca, chatml, gemma, llama3, mistral, phi, plain) or the path to
    a .jinja file; by default the tokenizer's own."""
    packing: Literal["auto", "off"] = "auto"
    """Put several samples in one row without padding, where the model is shown to keep them
    apart; off pads instead."""
    columns: dict[str, str] = field(default_factory=dict)
    """Where the data has other names: Rango's name, then the data's, such as
    {prompt: question, completion: answer} (as a flag prompt=question,completion=answer); a name
    with dots reaches into nested objects."""
    group_column: str | None = None
    """Column that says what belongs together (a customer, a document): a group is held out whole
    or not at all."""
    skip_bad: bool = False
    """Leave out entries that cannot be used, counted and logged, instead of stopping at them."""
    cache: bool | str = False
    """Keep tokenized data in $RANGO_CACHE/tokens (else ~/.cache/rango/tokens) or the folder given,
    so that the next run over the same files need not read and tokenize them again; rango train
    sets it. Standard input, the Hub's data, and data read with skip_bad are not kept."""
    cache_gb: float = DEFAULT_CACHE_GB
    """Bound on that folder's size in 10⁹ bytes; the least recently used data go first."""
