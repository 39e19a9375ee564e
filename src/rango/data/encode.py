"""How each kind of example becomes token ids and masks, and the check of the result.

For each sample it is verified that the supervised tokens, decoded, give the answer back and that
the end-of-turn token is among them.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from rango.data.faults import Faults
from rango.data.render import Rendered, Renderer, Turn
from rango.data.samples import Example, Origin, Sample
from rango.errors import DataError, TokenizerError


class Encoder:
    """A tokenizer, and what examples need to know of it.

    Raises TokenizerError where it has no offsets or no end token, and, when chat examples are
    encoded, where it has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise TokenizerError(
                "the tokenizer gives no character offsets; use one with a tokenizer.json"
            )
        if tokenizer.eos_token_id is None:
            raise TokenizerError("the tokenizer has no end token; set eos_token in its files")
        self._tokenizer = tokenizer
        self._end = int(tokenizer.eos_token_id)
        # some vocabularies hold runs of white space as added tokens, which mark nothing
        added = tokenizer.added_tokens_decoder.items()
        worded = {token for token, entry in added if entry.content.strip(" \t\r\n▁")}
        self._markers = worded | set(tokenizer.all_special_ids)
        self._opening = opening(tokenizer)
        self._renderer: Renderer | None = None

    def ends_turn(self, sample: Sample) -> int:
        """The token that ends the last answer of a chat sample."""
        answered = max(i for i, flag in enumerate(sample.content) if flag)
        return next(token for token in sample.input_ids[answered + 1 :] if token in self._markers)

    def encode(self, examples: Sequence[Example], faults: Faults) -> list[Sample | None]:
        """A sample for each example, None for one whose fault was noted."""
        samples: list[Sample | None] = [None] * len(examples)
        ways = {"chat": self._chats, "completion": self._pairs, "text": self._texts}
        for kind, encode in ways.items():
            places = [i for i, example in enumerate(examples) if example.kind == kind]
            made = encode([examples[i] for i in places], faults) if places else []
            for place, sample in zip(places, made, strict=True):
                samples[place] = sample
        return samples

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
        texts = [entry.text for entry in rendered if entry]
        encoded = iter(self._encodings(texts))
        samples: list[Sample | None] = []
        for example, entry in zip(examples, rendered, strict=True):
            sample = None
            if entry:
                ids, offsets = next(encoded)
                try:
                    sample = self._supervise(example, entry.text, entry.turns, ids, offsets)
                except DataError as error:
                    faults.add(DataError(f"{example.origin}: {error}"))
            samples.append(sample)
        return samples

    def _supervise(
        self,
        example: Example,
        text: str,
        turns: Sequence[Turn],
        ids: list[int],
        offsets: list[tuple[int, int]],
    ) -> Sample:
        """Masks from characters: a token belongs to a span if it has a character in it.

        White space around an answer is learnt where the model is to write it, but isn't content.
        """
        supervised, content = [False] * len(ids), [False] * len(ids)
        starts = [start for start, _ in offsets]
        ends = [end for _, end in offsets]
        for turn in turns:
            answer = text[turn.begin : turn.end]
            begin = bisect_right(ends, turn.end - len(answer.lstrip()))
            after = max(begin, bisect_right(starts, turn.begin + len(answer.rstrip()) - 1))
            self._verify(example.messages[turn.message].content, ids[begin:after])
            first = min(begin, bisect_right(ends, turn.start))
            while first < begin and ids[first] in self._markers and starts[first] < turn.start:
                first += 1  # a marker that swallows the white space after it
            last = self._end_of_turn(text, ids, offsets, after)
            last = max(last + 1, bisect_right(starts, turn.marked - 1))
            supervised[first:last] = [True] * (last - first)
            content[begin:after] = [True] * (after - begin)
        supervised[0] = content[0] = False
        return Sample(tuple(ids), tuple(supervised), tuple(content), example.origin)

    def _end_of_turn(
        self, text: str, ids: list[int], offsets: list[tuple[int, int]], after: int
    ) -> int:
        """Index of the special token that follows an answer, white space apart."""
        for index in range(after, len(ids)):
            if ids[index] in self._markers:
                return index
            if text[slice(*offsets[index])].strip():
                break
        raise DataError(
            "the chat template writes no end-of-turn token after the assistant's text, so the "
            "model would never learn to stop; let the answer end with the tokenizer's end token"
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
        for example, answer, (prompt_ids, _), (ids, _) in zip(
            examples, answers, self._encodings(prompts), self._encodings(joined), strict=True
        ):
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
            self._framed([], ids, example.origin)
            for example, (ids, _) in zip(examples, self._encodings(texts), strict=True)
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
        if self._tokenizer.unk_token_id in ids:
            return  # what the vocabulary lacks can't come back
        decoded = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if _plain(answer) not in _plain(decoded):
            raise DataError(
                f"the supervised tokens decode to {decoded[:60]!r}, not to the answer "
                f"{answer[:60]!r}; the tokenizer's offsets or its chat template are faulty"
            )

    def _encodings(self, texts: list[str]) -> Iterable[tuple[list[int], list[tuple[int, int]]]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


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


def _plain(text: str) -> str:
    """Text without what tokenizers may change: white space, and the form of composed letters."""
    return "".join(unicodedata.normalize("NFKC", text).split())
