"""How each kind of example becomes token ids and masks, and the check of the result.

For each sample it is verified that the supervised tokens, decoded, give the answer back, that they
hold nothing else but white space, and that the end-of-turn token is among them. A message that
holds the text of a token with which the chat template ends or begins turns is refused: the
tokenizer would read it as that token.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress, count
from typing import Any

from tokenizers import Encoding

from rango.data.faults import Faults
from rango.data.samples import Example, Origin, Sample
from rango.data.templates.render import Rendered, Renderer, Turn
from rango.data.tokens.labelled import Labeller
from rango.errors import ConfigError, DataError, TokenizerError

_WRITTEN = ("chat", "completion", "text")
_NOT_LEARNT = (
    "a text with a label, for a classifier, among data for a model that writes; keep the two apart "
    "(in Python, tokenize takes the labels)"
)
_UNLABELLED = "has no label, and a classifier learns from text+label alone; keep the two apart"


class Encoder:
    """A tokenizer, and what examples need to know of it.

    last_only: of a conversation only the last answer is learnt, not every one.
    labels: what classifiers' data may have; with them nothing else is learnt.
    Raises TokenizerError where it has no offsets or no end token (labels need neither), and, when
    chat examples are encoded, where it has no chat template.
    """

    def __init__(
        self, tokenizer: Any, *, last_only: bool = False, labels: Sequence[str] = ()
    ) -> None:
        if not tokenizer.is_fast and not labels:
            raise TokenizerError(
                "the tokenizer gives no character offsets; use one with a tokenizer.json"
            )
        if tokenizer.eos_token_id is None and not labels:
            raise TokenizerError(
                "the tokenizer has no end token, without which no answer would ever end; set "
                "eos_token in its files (those of encoders have none: they learn text and label)"
            )
        self._tokenizer = tokenizer
        self._last_only = last_only
        self._end = tokenizer.eos_token_id
        self._unknown = tokenizer.unk_token_id
        # some vocabularies hold runs of white space as added tokens, which mark nothing
        added = tokenizer.added_tokens_decoder.items()
        worded = {token for token, entry in added if entry.content.strip(" \t\r\n▁")}
        # one token may be both the unknown one, which stands for text, and the end
        mapped = tokenizer.special_tokens_map
        named = {text for name, text in mapped.items() if name != "unk_token"}
        named |= set(tokenizer.extra_special_tokens)
        self._named = set(tokenizer.convert_tokens_to_ids(sorted(named))) - {None}
        unknown = {self._unknown} - self._named
        special = {token for token, entry in added if entry.special} | self._named
        self._special = {token: entry.content for token, entry in added if token in special}
        self._markers = self._named | worded - unknown
        self._opening = opening(tokenizer)
        self._renderer: Renderer | None = None
        self._labeller = Labeller(tokenizer, labels) if labels else None

    def ends_turn(self, sample: Sample) -> int:
        """The token that ends the last answer of a chat sample."""
        answered = max(i for i, flag in enumerate(sample.content) if flag)
        return next(token for token in sample.input_ids[answered + 1 :] if token in self._markers)

    def encode(self, examples: Sequence[Example], faults: Faults) -> list[Sample | None]:
        """A sample for each example, None for one whose fault was noted."""
        kinds = ("labelled",) if self._labeller else _WRITTEN
        for example in examples:
            if example.kind not in kinds:
                reason = _UNLABELLED if self._labeller else _NOT_LEARNT
                faults.add(DataError(f"{example.origin}: {reason}"))
        samples: list[Sample | None] = [None] * len(examples)
        ways: dict[str, Callable[[Sequence[Example], Faults], list[Sample | None]]]
        ways = {"chat": self._chats, "completion": self._pairs, "text": self._texts}
        if self._labeller:
            ways = {"labelled": self._labeller.encode}
        for kind, encode in ways.items():
            places = [i for i, example in enumerate(examples) if example.kind == kind]
            made = encode([examples[i] for i in places], faults) if places else []
            for place, sample in zip(places, made, strict=True):
                samples[place] = sample
        return samples

    def shortened(self, example: Example, limit: int) -> Sample:
        """A labelled example's sample, its text cut so that it has at most `limit` tokens."""
        if self._labeller is None:
            raise ConfigError("only labelled texts are cut before their last token")
        return self._labeller.shortened(example, limit)

    def _chats(self, examples: Sequence[Example], faults: Faults) -> list[Sample | None]:
        """Conversations through the chat template."""
        self._renderer = self._renderer or Renderer(self._tokenizer)
        rendered: list[Rendered | None] = []
        for example in examples:
            try:
                rendered.append(self._renderer.render(example.messages))
            except DataError as error:
                faults.add(DataError(f"{example.origin}: {error}"))
                rendered.append(None)
        encoded = iter(self._encodings([entry.text for entry in rendered if entry]))
        samples: list[Sample | None] = []
        for example, entry in zip(examples, rendered, strict=True):
            sample = None
            if entry:
                encoding = next(encoded)
                try:
                    sample = self._supervise(_Chat(entry, encoding.ids, encoding), example.origin)
                except DataError as error:
                    faults.add(DataError(f"{example.origin}: {error}"))
            samples.append(sample)
        return samples

    def _supervise(self, chat: _Chat, origin: Origin) -> Sample:
        """Masks from characters: a token belongs to a span if it has a character in it.

        White space around an answer is learnt where the model is to write it, but isn't content.
        """
        self._refuse_markers(chat)
        turns = chat.rendered.turns
        if not turns:
            raise DataError("no message is the assistant's, so there is nothing to learn")
        supervised, content = [False] * len(chat.ids), [False] * len(chat.ids)
        for turn in turns:
            answer = self._answer(chat, turn)
            learnt = self._learnt(chat, turn, answer)
            if turn is turns[-1] or not self._last_only:
                supervised[learnt] = [True] * (learnt.stop - learnt.start)
                content[answer] = [True] * (answer.stop - answer.start)
        supervised[0] = content[0] = False
        return Sample(tuple(chat.ids), tuple(supervised), tuple(content), origin)

    def _answer(self, chat: _Chat, turn: Turn) -> slice:
        """The tokens of an answer, white space around it apart; verified to be its text."""
        text = chat.rendered.text
        answer = text[turn.begin : turn.end]
        begin = turn.end - len(answer.lstrip())
        end = turn.begin + len(answer.rstrip())
        first = chat.ending_after(begin)
        after = max(first, chat.beginning_after(end - 1))
        if first < after:
            around = text[chat.begins(first) : begin], text[end : chat.ends(after - 1)]
            for part in around:
                if part.strip():
                    raise DataError(
                        f"the tokenizer joins {part!r}, the chat template's, with the answer "
                        f"{answer[:60]!r} in one token, which a prompt alone would not have; the "
                        "template should set answers apart by white space or special tokens"
                    )
        self._verify(answer, chat.ids[first:after])
        return slice(first, after)

    def _learnt(self, chat: _Chat, turn: Turn, answer: slice) -> slice:
        """The tokens that the model is to write: the answer, what leads it, its end of turn."""
        first = min(answer.start, chat.ending_after(turn.start))
        while (
            first < answer.start
            and chat.ids[first] in self._markers
            and chat.begins(first) < turn.start
        ):
            first += 1  # a marker that swallows the white space after it
        last = self._end_of_turn(chat, turn, answer.stop)
        return slice(first, max(last + 1, chat.beginning_after(turn.marked - 1)))

    def _end_of_turn(self, chat: _Chat, turn: Turn, after: int) -> int:
        """Index of the special token that follows an answer, white space apart."""
        text, contents = chat.rendered.text, chat.rendered.contents
        others = (begin for message, begin, _ in contents if message != turn.message)
        next_message = next((begin for begin in others if begin >= turn.end), len(text))
        for index in range(after, len(chat.ids)):
            begin, end = chat.span(index)
            if begin >= next_message and begin < end:
                break
            if chat.ids[index] in self._markers:
                return index
            if text[begin:end].strip():
                break
        raise DataError(
            "the chat template writes no end-of-turn token after the assistant's text, so the "
            "model would never learn to stop; let the answer end with the tokenizer's end token"
        )

    def _refuse_markers(self, chat: _Chat) -> None:
        """Raise DataError where a message's own text became one of the tokens that part turns."""
        text, contents = chat.rendered.text, chat.rendered.contents
        begins = [begin for _, begin, _ in contents]
        outside = set(self._named)
        inside: list[tuple[int, int, str]] = []
        special = self._special
        for place in compress(count(), map(special.__contains__, chat.ids)):
            token, (begin, end) = chat.ids[place], chat.span(place)
            written = special[token]
            if written not in text[begin:end]:  # a byte may be such a token too
                continue
            at = text.index(written, begin)  # some swallow the white space around them
            near = max(0, bisect_right(begins, at) - 1)
            for message, start, stop in contents[near : near + 2]:
                if start < at + len(written) and at < stop:
                    inside.append((token, message, written))
                    break
            else:
                outside.add(token)
        for token, message, written in inside:
            if token in outside:
                raise DataError(
                    f"messages[{message}] holds the text {written!r}, which the tokenizer reads as "
                    "a token that begins or ends a turn; take it out of the data (a space inside "
                    "it is enough), or write the data as prompt/completion"
                )

    def _pairs(self, examples: Sequence[Example], faults: Faults) -> list[Sample | None]:
        """Prompts and completions without a template.

        A sample begins with exactly the tokens that its prompt has alone, as it will at generation.
        Where the tokenizer would merge text across the boundary, the two are tokenized apart.
        """
        prompts = [example.messages[0].content for example in examples]
        answers = [example.messages[1].content for example in examples]
        joined = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        samples: list[Sample | None] = []
        for example, answer, asked, both in zip(
            examples, answers, self._encodings(prompts), self._encodings(joined), strict=True
        ):
            prompt_ids, ids = asked.ids, both.ids
            if ids[: len(prompt_ids)] == prompt_ids:
                answer_ids = ids[len(prompt_ids) :]
            else:
                answer_ids = token_ids(self._tokenizer, answer)
            try:
                self._verify(answer, answer_ids)
                samples.append(self._framed(prompt_ids, answer_ids, example.origin))
            except DataError as error:
                faults.add(DataError(f"{example.origin}: {error}"))
                samples.append(None)
        return samples

    def _texts(self, examples: Sequence[Example], faults: Faults) -> list[Sample | None]:
        texts = [example.messages[0].content for example in examples]
        return [
            self._framed([], encoding.ids, example.origin)
            for example, encoding in zip(examples, self._encodings(texts), strict=True)
        ]

    def _framed(self, prompt_ids: list[int], answer_ids: list[int], origin: Origin) -> Sample:
        """Opening (a begin-of-text token, if the tokenizer has one), prompt, answer, end token."""
        unlearnt = len(self._opening) + len(prompt_ids)
        ended = answer_ids[-1:] == [self._end]
        answer = answer_ids if ended else [*answer_ids, self._end]
        supervised = [False] * unlearnt + [True] * len(answer)
        content = [*supervised[:-1], False]
        supervised[0] = content[0] = False
        ids = (*self._opening, *prompt_ids, *answer)
        return Sample(ids, tuple(supervised), tuple(content), origin)

    def _verify(self, answer: str, ids: list[int]) -> None:
        """Raise DataError unless the tokens, decoded, give the answer back."""
        if self._unknown in ids:
            return  # what the vocabulary lacks can't come back
        if self._tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == answer:
            return  # nearly always; what follows takes several times as long
        decoded = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if _plain(answer) != _plain(decoded):
            raise DataError(
                f"the supervised tokens decode to {decoded[:60]!r}, not to the answer "
                f"{answer[:60]!r}; the tokenizer's offsets or its chat template are faulty"
            )

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        # its offsets as lists of tuples would take a third as long as the tokenizer itself
        return list(encoded.encodings)


def opening(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: a begin-of-text token or nothing."""
    plain, framed = token_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    for begin in range(len(framed) - len(plain) + 1):
        if framed[begin : begin + len(plain)] == plain:
            return framed[:begin]
    return []


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text alone, without any special ones around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True)
class _Chat:
    """A rendered conversation and its tokens."""

    rendered: Rendered
    ids: list[int]
    encoding: Encoding

    def span(self, index: int) -> tuple[int, int]:
        """The characters of a token: begin, end."""
        return self.encoding.token_to_chars(index) or (0, 0)  # of one text, each has a place

    def begins(self, index: int) -> int:
        """The first character of a token."""
        return self.span(index)[0]

    def ends(self, index: int) -> int:
        """Where a token's characters end."""
        return self.span(index)[1]

    def ending_after(self, place: int) -> int:
        """The first token that ends after this character."""
        found = self.encoding.char_to_token(place) if place >= 0 else None
        if found is None:  # white space that the tokenizer drops
            found = bisect_right(range(len(self.ids)), place, key=self.ends)
        return found

    def beginning_after(self, place: int) -> int:
        """The first token that begins after this character."""
        after = self.encoding.char_to_token(place) if place >= 0 else None
        if after is None:
            return bisect_right(range(len(self.ids)), place, key=self.begins)
        while after < len(self.ids) and self.begins(after) <= place:
            after += 1  # the tokens of one character
        return after


def _plain(text: str) -> str:
    """Text without what tokenizers may change: white space, and the form of composed letters."""
    return "".join(unicodedata.normalize("NFKC", text).split())
