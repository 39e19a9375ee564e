"""What travels from a file to the model: example, sample, batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Target of a position that is not supervised."""

Kind = Literal["chat", "completion", "text", "labelled"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an example was read."""

    file: str
    line: int
    """Line of a text file, row of a Parquet or Arrow file or of a data set of the Hub; from 1."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One entry of a data file. A chat has messages; a completion has the two messages user and
    assistant, rendered without a template if the file says prompt/completion; a text has one, the
    assistant's; a labelled text has one, the user's, and a label."""

    kind: Kind
    messages: tuple[Message, ...]
    origin: Origin
    label: str | None = None
    """Of a labelled text."""
    group: str | None = None
    """What it belongs to, where a group column was asked for."""
    format: str = ""
    """Name of the format it was read in: chat, sharegpt, alpaca, completion, labelled, text."""


@dataclass(frozen=True)
class Sample:
    """An example as tokens; the three tuples have one length.

    supervised: the loss counts this token (as a target).
    content: supervised, and part of the answer itself rather than its end-of-turn marker.
    label: of a labelled text, whose tokens are not supervised: the number of its label.
    """

    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    content: tuple[bool, ...]
    origin: Origin
    label: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """What one forward pass computes; B rows of S positions.

    Packed: B = 1, several samples one after the other, attention_mask None, position_ids restart
    at each sample. Padded: one sample a row, attention_mask given, padding on the right.
    """

    input_ids: torch.Tensor
    """(B, S) int64."""
    position_ids: torch.Tensor
    """(B, S) int64, from 0 within each sample."""
    attention_mask: torch.Tensor | None
    """(B, S) int64, 1 on tokens and 0 on padding; None when packed; or bool (1, 1, S, S), true
    where a token sees another, for models that need it to keep packed samples apart."""
    targets: torch.Tensor
    """(B, S) int64: the token to predict AT this position (already shifted), or IGNORED. Of
    labelled samples: the label at the last token."""
    content: torch.Tensor
    """(B, S) bool: the target is content rather than an end-of-turn marker."""
    samples: torch.Tensor
    """(B, S) int64: index of the sample within the batch; -1 on padding."""
    indices: tuple[int, ...]
    """For each sample of the batch, its index in the data set."""
    tokens: int
    """Tokens without padding."""
    supervised: int
    """Number of positions with a target."""
