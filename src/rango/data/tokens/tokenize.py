"""Examples become token ids, each with what is supervised.

Chat and Alpaca entries go through the tokenizer's chat template; every assistant turn (or only the
last) is learnt up to its end-of-turn token. Prompt/completion entries are the tokens of the prompt,
those of the completion, and the end token. Plain text is learnt whole, with the end token; what is
longer than the limit goes on in further windows, each starting with the last token of the one
before, so that every token is learnt once. The first token of a sample is never supervised: nothing
predicts it. A labelled text is the tokenizer's own framing of it, and its label's number.

Examples are taken a few hundred at a time and their samples written to disk, so that neither has to
fit into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rango.data.config import DEFAULT_CACHE_GB
from rango.data.faults import LIMIT, Faults
from rango.data.samples import Example, Message, Origin, Sample
from rango.data.templates.render import Renderer
from rango.data.tokens.cache import cache_key, examples_digest, open_token_cache, unkept
from rango.data.tokens.chunk import Encoded, LossOn, TokenOptions, TooLong
from rango.data.tokens.encode import Encoder, opening, token_ids
from rango.data.tokens.store import Block, SampleStore, StoreWriter
from rango.data.tokens.workers import encode_chunks
from rango.errors import ConfigError, DataError
from rango.progress import Progress, silent

_CHUNK = 512
"""Most examples encoded in one call."""
_CHUNK_CHARACTERS = 2**22
"""Their characters, unless one example alone has more."""


@dataclass(frozen=True)
class Tokenized:
    """Samples in the order of their examples, what was left out, and a digest of all of it."""

    samples: SampleStore
    skipped: list[tuple[Origin, str]]
    """Examples that were left out, each with the reason."""
    truncated: int
    """Samples that were cut to the limit."""
    digest: str
    """sha256 of token ids and masks."""

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return self.samples.tokens

    @property
    def supervised(self) -> int:
        """Tokens, or labels, that the loss counts."""
        return self.samples.supervised


def tokenize(
    examples: Iterable[Example],
    tokenizer: Any,
    *,
    max_length: int = 1024,
    too_long: TooLong = "error",
    loss_on: LossOn = "completion",
    labels: Sequence[str] = (),
    workers: int | None = None,
    total: int | Callable[[], int] | None = None,
    cache: bool | str | Path = False,
    cache_gb: float = DEFAULT_CACHE_GB,
    data: str | None = None,
    unchanged: Callable[[], bool] = lambda: True,
    skip: Callable[[DataError], None] | None = None,
    progress: Progress = silent,
) -> Tokenized:
    """The examples as samples of at most `max_length` tokens.

    labels: of text+label data, in the order of the classifier's logits; loss_on then says nothing.
    workers: processes to share the work among; None for one a core where that pays, 1 for this one
    alone. The result does not depend on it.
    total: how many examples an iterator has, for progress, if that is known, or what tells it:
    asked only where samples are made, once their first examples were read.
    cache: keep the samples in that folder (True: the user's), at most cache_gb · 10⁹ bytes, and
    take them from there where the same data was tokenized before in the same way. The data is known
    by `data`, a digest of all that decides which examples come and in what order (files, columns,
    split), and then is not read at all; without one, a list is digested, an iterator not kept. Nor
    is anything of a tokenizer that is Python alone, whose doings have no digest.
    unchanged: asked before samples are kept, whether `data` still is the digest of the data.
    skip: is given the fault of each example that cannot be used, which is then left out; without it
    they are raised.

    Raises DataError: samples too long (file, line, tokens and limit named), answers that the chat
    template drops or changes, no end-of-turn token, nothing left; up to ten faults at once.
    TokenizerError: no offsets, no end token, or no chat template where one is needed. ConfigError:
    max_length below 2. StorageError: no room for the samples.
    """
    if max_length < 2:
        raise ConfigError(f"max_length should be at least 2 tokens, not {max_length}")
    if isinstance(examples, Sequence):
        if not examples:
            raise DataError("no samples to tokenize")
        total = len(examples)
    options = TokenOptions(max_length, too_long, loss_on, tuple(labels))

    def write(folder: Path) -> SampleStore:
        return _write(examples, tokenizer, options, folder, workers, total, skip, progress)

    kept = open_token_cache(cache, cache_gb) if tokenizer.is_fast else None
    if kept is not None and data is None and isinstance(examples, Sequence):
        data = examples_digest(examples)
    if kept is None or data is None:
        samples = unkept(write)
    else:
        key = cache_key(data, tokenizer, options)
        found = kept.find(key)
        if found is not None:
            _tell_again(found, skip)
            progress("tokenize", len(found), len(found), "samples", "kept from an earlier run")
        samples = kept.make(key, write, unchanged) if found is None else found
    skipped = [(Origin(file, line), reason) for file, line, reason in samples.notes["skipped"]]
    return Tokenized(samples, skipped, samples.notes["truncated"], samples.digest)


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
    (int32), the two masks (a byte a token) and its label if it has one (int32), all
    little-endian."""
    if isinstance(samples, SampleStore):
        blocks: Iterable[Block] = samples.blocks()
    else:
        blocks = [Block.of(list(samples))]
    state = hashlib.sha256()
    for block in blocks:
        state.update(block.digested())
    return f"sha256:{state.hexdigest()}"


def _write(
    examples: Iterable[Example],
    tokenizer: Any,
    options: TokenOptions,
    folder: Path,
    workers: int | None,
    total: int | Callable[[], int] | None,
    skip: Callable[[DataError], None] | None,
    progress: Progress,
) -> SampleStore:
    """Encode the examples into a store in `folder`."""
    chunks = _chunks(examples)
    first = next(chunks, None)
    if first is None:
        raise DataError("no samples to tokenize")
    total = total() if callable(total) else total
    faults, told, done = Faults(first[0].origin.file, skip), list[str](), 0
    left_out = _LeftOut(options.max_length)
    encoding = encode_chunks(
        _rejoined(first, chunks), tokenizer, options, workers=workers, total=total
    )
    del first  # else it would stay to the end
    with StoreWriter(folder) as writer, closing(encoding):
        for encoded in encoding:
            writer.add(encoded.block)
            left_out.add(encoded)
            for message in encoded.faults:
                told.append(message)
                faults.add(DataError(message))
            done += encoded.examples
            progress("tokenize", done, max(done, total or 0), "samples")
        if (refused := left_out.refused()) is not None:
            if skip is not None:
                raise refused
            faults.add(refused)
        faults.raise_any()
        if not writer.samples:
            skipped = left_out.skipped
            reason = f"; the first was left out: {skipped[0][2]}" if skipped else ""
            raise DataError(
                f"no samples are left to use{reason}; raise max_length or check the data"
            )
        return writer.finish(
            {
                "skipped": left_out.skipped,
                "truncated": left_out.truncated,
                "source": faults.source,
                "faults": told,
            }
        )


def _rejoined(
    first: list[Example] | None, chunks: Iterator[list[Example]]
) -> Iterator[list[Example]]:
    if first is not None:
        yield first
    first = None  # else it would stay to the end
    yield from chunks


def _tell_again(samples: SampleStore, skip: Callable[[DataError], None] | None) -> None:
    """The faults of the examples that kept samples leave out."""
    faults = Faults(samples.notes["source"], skip)
    for message in samples.notes["faults"]:
        faults.add(DataError(message))
    faults.raise_any()


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """A few hundred examples at a time, fewer of long ones."""
    chunk: list[Example] = []
    characters = 0
    for example in examples:
        chunk.append(example)
        characters += sum(len(message.content) for message in example.messages)
        if len(chunk) == _CHUNK or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class _LeftOut:
    """What was left out or cut, of all chunks."""

    def __init__(self, limit: int) -> None:
        self.skipped: list[tuple[str, int, str]] = []
        self.truncated = 0
        self._limit = limit
        self._named: list[str] = []
        self._refused = self._longest = 0

    def add(self, encoded: Encoded) -> None:
        """Note what became of a chunk."""
        self.skipped.extend((origin.file, origin.line, why) for origin, why in encoded.skipped)
        self.truncated += encoded.truncated
        for origin, length in encoded.refused:
            self._refused += 1
            self._longest = max(self._longest, length)
            if len(self._named) < LIMIT:
                self._named.append(f"{origin}: {length} tokens")

    def refused(self) -> DataError | None:
        """The samples over the limit as one fault: the first ones, and the longest."""
        if not self._refused:
            return None
        remedy = f"raise max_length to {self._longest}, or set too_long to skip or truncate"
        if self._refused == 1:
            return DataError(f"{self._named[0]}, over the limit of {self._limit}; {remedy}")
        more = [f"and {self._refused - LIMIT} more"] if self._refused > LIMIT else []
        listed = "".join(f"\n  {line}" for line in (*self._named, *more))
        head = f"{self._refused} samples are over the limit of {self._limit} tokens; {remedy}:"
        return DataError(head + listed)
