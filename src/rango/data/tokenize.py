"""Examples become token ids, each with what is supervised.

Chat and Alpaca entries go through the tokenizer's chat template; every assistant turn is learnt up
to its end-of-turn token. Prompt/completion entries are the tokens of the prompt, those of the
completion, and the end token. Plain text is learnt whole, with the end token; what is longer than
the limit goes on in further windows, each starting with the last token of the one before, so that
every token is learnt once. The first token of a sample is never supervised: nothing predicts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from rango.data.encode import Encoder, opening, token_ids
from rango.data.faults import LIMIT, Faults
from rango.data.render import Renderer
from rango.data.samples import Example, Message, Origin, Sample
from rango.errors import ConfigError, DataError
from rango.progress import Progress, silent

TooLong = Literal["error", "skip", "truncate"]
LossOn = Literal["completion", "all"]

_CHUNK = 256
"""Examples tokenized in one call."""


@dataclass(frozen=True)
class Tokenized:
    """Samples in the order of their examples, what was left out, and a digest of all of it."""

    samples: list[Sample]
    skipped: list[tuple[Origin, str]]
    """Examples that were left out, each with the reason."""
    truncated: int
    """Samples that were cut to the limit."""
    digest: str
    """sha256 of token ids and masks."""

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return sum(len(sample) for sample in self.samples)

    @property
    def supervised(self) -> int:
        """Tokens that the loss counts."""
        return sum(sum(sample.supervised) for sample in self.samples)


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    max_length: int = 1024,
    too_long: TooLong = "error",
    loss_on: LossOn = "completion",
    progress: Progress = silent,
) -> Tokenized:
    """The examples as samples of at most `max_length` tokens.

    Raises DataError: samples too long (file, line, tokens and limit named), answers that the chat
    template drops or changes, no end-of-turn token, nothing left; up to ten faults at once.
    TokenizerError: no offsets, no end token, or no chat template where one is needed. ConfigError:
    max_length below 2.
    """
    if max_length < 2:
        raise ConfigError(f"max_length should be at least 2 tokens, not {max_length}")
    if not examples:
        raise DataError("no samples to tokenize")
    encoder = Encoder(tokenizer)
    faults = Faults(examples[0].origin.file)
    fitted = _Fitted(max_length, too_long)
    for begin in range(0, len(examples), _CHUNK):
        chunk = examples[begin : begin + _CHUNK]
        for example, sample in zip(chunk, encoder.encode(chunk, faults), strict=True):
            if sample is not None:
                if loss_on == "all":
                    sample = replace(sample, supervised=_all_but_first(len(sample)))
                fitted.take(sample, is_text=example.kind == "text")
        progress("tokenize", begin + len(chunk), len(examples), "samples")
    fitted.refuse_long(faults)
    faults.raise_any()
    if not fitted.samples:
        reason = f"; the first was left out: {fitted.skipped[0][1]}" if fitted.skipped else ""
        raise DataError(f"no samples are left to use{reason}; raise max_length or check the data")
    return Tokenized(fitted.samples, fitted.skipped, fitted.truncated, digest(fitted.samples))


def render_prompt(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """Token ids after which the model is to answer: messages through the chat template with its
    generation prompt, a string as it is. They are the ones that training samples begin with.

    Raises TokenizerError without a chat template; DataError where the template refuses.
    """
    if isinstance(prompt, str):
        return [*opening(tokenizer), *token_ids(tokenizer, prompt)]
    return token_ids(tokenizer, Renderer(tokenizer).text(prompt, prompt=True))


def end_of_turn_ids(tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the tokenizer's end token, and the one that its chat template
    writes after the assistant's text."""
    ends = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if not tokenizer.chat_template:
        return ends
    messages = (Message("user", "?"), Message("assistant", "!"))
    encoder = Encoder(tokenizer)
    sample = encoder.encode([Example("chat", messages, Origin("", 1))], Faults(""))[0]
    return ends if sample is None else ends | {encoder.ends_turn(sample)}


def digest(samples: Iterable[Sample]) -> str:
    """Digest of what is learnt, ``sha256:<hex>``: per sample its length (int64), its token ids
    (int32) and the two masks (a byte a token), all little-endian."""
    state = hashlib.sha256()
    for sample in samples:
        state.update(np.asarray(len(sample), dtype="<i8").tobytes())
        state.update(np.asarray(sample.input_ids, dtype="<i4").tobytes())
        state.update(np.asarray([sample.supervised, sample.content], dtype="u1").tobytes())
    return f"sha256:{state.hexdigest()}"


class _Fitted:
    """Samples brought within the limit, in the way that the user chose."""

    def __init__(self, max_length: int, too_long: TooLong) -> None:
        self.samples: list[Sample] = []
        self.skipped: list[tuple[Origin, str]] = []
        self.truncated = 0
        self._max_length = max_length
        self._too_long = too_long
        self._refused: list[Sample] = []

    def take(self, sample: Sample, *, is_text: bool) -> None:
        """Add a sample, or note why not."""
        length, limit = len(sample), self._max_length
        if not any(sample.supervised):
            self.skipped.append((sample.origin, "nothing to learn but its first token"))
        elif length <= limit:
            self.samples.append(sample)
        elif is_text:
            self.samples.extend(_windows(sample, limit))
        elif self._too_long == "error":
            self._refused.append(sample)
        elif self._too_long == "skip":
            self.skipped.append((sample.origin, f"{length} tokens, over the limit of {limit}"))
        elif any(sample.supervised[:limit]):
            self.samples.append(_cut(sample, 0, limit))
            self.truncated += 1
        else:
            reason = f"nothing to learn within the limit of {limit} tokens ({length} in all)"
            self.skipped.append((sample.origin, reason))

    def refuse_long(self, faults: Faults) -> None:
        """Note the samples over the limit as one fault: the first ones, and the longest."""
        if not self._refused:
            return
        limit, longest = self._max_length, max(len(sample) for sample in self._refused)
        remedy = f"raise max_length to {longest}, or set too_long to skip or truncate"
        named = [f"{sample.origin}: {len(sample)} tokens" for sample in self._refused]
        if len(named) == 1:
            faults.add(DataError(f"{named[0]}, over the limit of {limit}; {remedy}"))
            return
        more = [f"and {len(named) - LIMIT} more"] if len(named) > LIMIT else []
        listed = "".join(f"\n  {line}" for line in (*named[:LIMIT], *more))
        head = f"{len(named)} samples are over the limit of {limit} tokens; {remedy}:"
        faults.add(DataError(head + listed))


def _all_but_first(length: int) -> tuple[bool, ...]:
    return (False, *[True] * (length - 1))


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
