"""A chunk of examples becomes a block of samples that are within the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rango.data.faults import Faults
from rango.data.samples import Example, Origin, Sample
from rango.data.tokens.encode import Encoder
from rango.data.tokens.store import Block
from rango.errors import DataError

TooLong = Literal["error", "skip", "truncate"]
LossOn = Literal["completion", "last", "all"]


@dataclass(frozen=True)
class TokenOptions:
    """How examples become samples."""

    max_length: int = 1024
    too_long: TooLong = "error"
    loss_on: LossOn = "completion"
    labels: tuple[str, ...] = ()
    """What texts may be labelled with, in the order of a classifier's logits."""


@dataclass(frozen=True)
class Encoded:
    """What became of a chunk of examples."""

    examples: int
    block: Block
    skipped: list[tuple[Origin, str]]
    """Those left out, with the reason."""
    refused: list[tuple[Origin, int]]
    """Those over the limit where that is an error, with their tokens."""
    truncated: int
    faults: list[str]


class ChunkEncoder:
    """Encodes chunks, each for itself. Raises what Encoder raises."""

    def __init__(self, tokenizer: Any, options: TokenOptions) -> None:
        self._encoder = Encoder(
            tokenizer, last_only=options.loss_on == "last", labels=options.labels
        )
        self._options = options

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """The samples of these examples, in their order."""
        faults: list[DataError] = []
        fitted = _Fitted(self._options)
        samples = self._encoder.encode(examples, Faults("", skip=faults.append))
        for example, sample in zip(examples, samples, strict=True):
            if sample is None:
                continue
            if sample.label is None:
                fitted.take(sample, is_text=example.kind == "text")
            else:
                fitted.take_labelled(sample, example, self._encoder)
        return Encoded(
            examples=len(examples),
            block=Block.of(fitted.samples),
            skipped=fitted.skipped,
            refused=fitted.refused,
            truncated=fitted.truncated,
            faults=[str(error) for error in faults],
        )


class _Fitted:
    """Samples brought within the limit, in the way that the user chose."""

    def __init__(self, options: TokenOptions) -> None:
        self.samples: list[Sample] = []
        self.skipped: list[tuple[Origin, str]] = []
        self.refused: list[tuple[Origin, int]] = []
        self.truncated = 0
        self._options = options

    def take_labelled(self, sample: Sample, example: Example, encoder: Encoder) -> None:
        """Add a labelled sample, whole or encoded again with less of its text, or note why not."""
        length, limit = len(sample), self._options.max_length
        if length <= limit:
            self.samples.append(sample)
        elif self._options.too_long == "error":
            self.refused.append((sample.origin, length))
        elif self._options.too_long == "skip":
            self.skipped.append((sample.origin, f"{length} tokens, over the limit of {limit}"))
        else:
            self.samples.append(encoder.shortened(example, limit))
            self.truncated += 1

    def take(self, sample: Sample, *, is_text: bool) -> None:
        """Add a sample, or note why not."""
        length, limit = len(sample), self._options.max_length
        if self._options.loss_on == "all":
            sample = replace(sample, supervised=(False, *[True] * (length - 1)))
        if not any(sample.supervised):
            self.skipped.append((sample.origin, "nothing to learn but its first token"))
        elif length <= limit:
            self.samples.append(sample)
        elif is_text:
            self.samples.extend(_windows(sample, limit))
        elif self._options.too_long == "error":
            self.refused.append((sample.origin, length))
        elif self._options.too_long == "skip":
            self.skipped.append((sample.origin, f"{length} tokens, over the limit of {limit}"))
        elif any(sample.supervised[:limit]):
            self.samples.append(_cut(sample, 0, limit))
            self.truncated += 1
        else:
            reason = f"nothing to learn within the limit of {limit} tokens ({length} in all)"
            self.skipped.append((sample.origin, reason))


def _windows(sample: Sample, length: int) -> list[Sample]:
    """Windows that share one token, so that each token is predicted once; none is a lone token."""
    return [_cut(sample, begin, begin + length) for begin in range(0, len(sample) - 1, length - 1)]


def _cut(sample: Sample, begin: int, end: int) -> Sample:
    supervised, content = sample.supervised[begin:end], sample.content[begin:end]
    return Sample(
        sample.input_ids[begin:end],
        (False, *supervised[1:]),
        (False, *content[1:]),
        sample.origin,
    )
