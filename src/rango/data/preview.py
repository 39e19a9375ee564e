"""Supervision seen: lengths in tokens, what is wrong on the way, and samples to look at."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from rango.data.faults import Faults
from rango.data.samples import Example, Origin, Sample
from rango.data.tokens.chunk import LossOn
from rango.data.tokens.encode import Encoder
from rango.errors import DataError

FITS = 4096
"""Longest sample to show, in tokens, where no limit was given."""
_DRAWN = 64
"""Samples kept, chosen evenly over the data, from which those of middle length are taken."""

SpanKind = Literal["context", "answer", "marker"]
"""context: not learnt; answer: learnt, the assistant's own text; marker: learnt too, but no text
of the answer (its end of turn, empty reasoning)."""


@dataclass(frozen=True)
class Span:
    """A stretch of tokens of one kind, decoded."""

    kind: SpanKind
    text: str


@dataclass(frozen=True)
class Preview:
    """A sample as the model sees it."""

    origin: Origin
    tokens: int
    supervised: int
    """Tokens that the loss counts."""
    spans: tuple[Span, ...]
    """One after the other, the whole sample."""


def preview(tokenizer: Any, sample: Sample) -> Preview:
    """The sample's text, in stretches of what is learnt and what is not."""
    kinds: list[SpanKind] = [
        "context" if not learnt else "answer" if content else "marker"
        for learnt, content in zip(sample.supervised, sample.content, strict=True)
    ]
    changes = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
    edges = [0, *changes, len(kinds)]
    texts = _decoded(tokenizer, sample.input_ids, edges)
    spans = tuple(Span(kinds[begin], text) for begin, text in zip(edges, texts, strict=False))
    return Preview(sample.origin, len(sample), sum(sample.supervised), spans)


class Supervision:
    """Encodes the examples that it measures, and remembers what it saw.

    faults: (origin, reason) of each example that can't be learnt as it should: the supervised
    tokens don't give the answer back, nothing ends the turn, the template refuses or changes the
    conversation, nothing is supervised. past_limit: (origin, reason) of those whose every
    supervised token lies beyond `max_length`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        loss_on: LossOn = "completion",
    ) -> None:
        self.faults: list[tuple[Origin, str]] = []
        self.past_limit: list[tuple[Origin, str]] = []
        self._tokenizer = tokenizer
        self._encoder: Encoder | None = None
        self._last_only = loss_on == "last"
        self._all = loss_on == "all"
        self._max_length = max_length
        self._candidates = _Candidates(max_length or FITS)

    def measure(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example; of a labelled text, or of what can't be encoded, those of the
        bare text.

        Raises TokenizerError where the tokenizer has no offsets or no end token, and for
        conversations where it has no chat template; labelled texts need none of these.
        """
        noted = _Noted()
        learnt = [example for example in examples if example.kind != "labelled"]
        if learnt and self._encoder is None:
            self._encoder = Encoder(self._tokenizer, last_only=self._last_only)
        samples = iter(self._encoder.encode(learnt, noted) if self._encoder else [])
        lengths = []
        for example in examples:
            sample = None if example.kind == "labelled" else next(samples)
            if sample is None:
                lengths.append(self._bare(example, noted))
            else:
                lengths.append(self._seen(example, sample))
        return lengths

    def previews(self, count: int) -> list[Preview]:
        """Of the samples that fit the limit: the shortest, the longest, and evenly between them.

        The same data gives the same samples.
        """
        chosen = self._candidates.spread(count)
        return [preview(self._tokenizer, sample) for sample in chosen]

    def _seen(self, example: Example, sample: Sample) -> int:
        length, limit = len(sample), self._max_length
        if self._all:
            sample = replace(sample, supervised=(False, *[True] * (length - 1)))
        if not any(sample.supervised):
            self.faults.append((example.origin, "no token of it is supervised"))
            return length
        if limit is not None and length > limit and example.kind != "text":
            first = sample.supervised.index(True)
            if first >= limit:
                reason = f"its first supervised token is number {first + 1} of {length}"
                self.past_limit.append((example.origin, reason))
        self._candidates.offer(sample)
        return length

    def _bare(self, example: Example, noted: _Noted) -> int:
        reason = noted.take(example.origin)
        if reason is not None:
            self.faults.append((example.origin, reason))
        text = "\n".join(message.content for message in example.messages)
        return len(self._tokenizer(text, verbose=False)["input_ids"])


class _Noted(Faults):
    """Faults by where they are; any number of them."""

    def __init__(self) -> None:
        super().__init__("")
        self._reasons: list[str] = []

    def add(self, error: DataError) -> None:
        self._reasons.append(str(error))

    def take(self, origin: Origin) -> str | None:
        """The reason noted for this place, once."""
        head = f"{origin}: "
        for place, reason in enumerate(self._reasons):
            if reason.startswith(head):
                return self._reasons.pop(place).removeprefix(head)
        return None


class _Candidates:
    """Samples to show, from a stream of any length: the shortest, the longest, some between."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._offered = 0
        self._shortest: tuple[int, int, Sample] | None = None
        self._longest: tuple[int, int, Sample] | None = None
        self._drawn: list[tuple[int, int, Sample]] = []

    def offer(self, sample: Sample) -> None:
        """Take note of a sample, unless it is over the limit."""
        length = len(sample)
        if length > self._limit:
            return
        place = self._offered
        self._offered += 1
        if self._shortest is None or length < self._shortest[0]:
            self._shortest = (length, place, sample)
        if self._longest is None or length > self._longest[0]:
            self._longest = (length, place, sample)
        # the samples whose places have the smallest digests: an even draw, the same each time
        rank = -int.from_bytes(hashlib.blake2b(place.to_bytes(8), digest_size=8).digest())
        if len(self._drawn) < _DRAWN:
            heapq.heappush(self._drawn, (rank, place, sample))
        elif rank > self._drawn[0][0]:
            heapq.heapreplace(self._drawn, (rank, place, sample))

    def spread(self, count: int) -> list[Sample]:
        """`count` of them (or all, if there are fewer), evenly by length; one is a median one."""
        found = {place: (len(sample), place, sample) for _, place, sample in self._drawn}
        for end in (self._shortest, self._longest):
            if end is not None:
                found[end[1]] = end
        pool = [sample for _, _, sample in sorted(found.values(), key=lambda entry: entry[:2])]
        if len(pool) <= count:
            return pool
        if count < 2:
            return pool[len(pool) // 2 :][:count]
        return [pool[round(i * (len(pool) - 1) / (count - 1))] for i in range(count)]


def _decoded(tokenizer: Any, ids: Sequence[int], edges: Sequence[int]) -> Iterator[str]:
    """The text of the tokens from each edge to the next, so that together they are the whole."""
    before = ""
    for begin, end in pairwise(edges):
        # a stretch decoded alone may lose the space that begins it
        whole = _text(tokenizer, ids[:end])
        yield whole[len(before) :] if whole.startswith(before) else _text(tokenizer, ids[begin:end])
        before = whole


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
