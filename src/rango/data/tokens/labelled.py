"""Texts with a label: a sample is the tokenizer's own framing of the text, and the label's number.

No token is supervised; the label is what the model predicts at the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rango.data.faults import Faults
from rango.data.samples import Example, Sample
from rango.errors import DataError, nearest


class Labeller:
    """Numbers labels and encodes their texts."""

    def __init__(self, tokenizer: Any, labels: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._numbers = {label: number for number, label in enumerate(labels)}

    def encode(self, examples: Sequence[Example], faults: Faults) -> list[Sample | None]:
        """A sample for each labelled example, None for one whose label is not known."""
        known = [example for example in examples if example.label in self._numbers]
        numbers = [self._numbers[str(example.label)] for example in known]
        made = iter(whole(self._tokenizer, known, numbers) if known else [])
        samples: list[Sample | None] = []
        for example in examples:
            sample = next(made) if example.label in self._numbers else None
            if sample is None:
                faults.add(DataError(f"{example.origin}: {self._unknown(str(example.label))}"))
            elif not len(sample):
                faults.add(DataError(f"{example.origin}: its text has no tokens"))
                sample = None
            samples.append(sample)
        return samples

    def shortened(self, example: Example, limit: int) -> Sample:
        """The sample of an example whose text is cut to fit."""
        return shortened(self._tokenizer, example, self._numbers[str(example.label)], limit)

    def _unknown(self, label: str) -> str:
        known = list(self._numbers)
        listed = ", ".join(map(repr, known[:10])) + (", …" if len(known) > 10 else "")
        return (
            f"label {label!r} is none of those learnt ({listed}){nearest(label, known)}; correct "
            "it, or add samples of it to the training data"
        )


def whole(tokenizer: Any, examples: Sequence[Example], numbers: Sequence[int]) -> list[Sample]:
    """Samples of the examples' texts, with the tokenizer's own special tokens."""
    texts = [example.messages[0].content for example in examples]
    encoded = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    return [
        _sample(ids, example, number)
        for ids, example, number in zip(encoded, examples, numbers, strict=True)
    ]


def shortened(tokenizer: Any, example: Example, number: int, limit: int) -> Sample:
    """The same, the text cut so that with the special tokens it has at most `limit`."""
    encoded = tokenizer(
        example.messages[0].content, truncation=True, max_length=limit, verbose=False
    )
    return _sample(encoded["input_ids"], example, number)


def _sample(ids: Sequence[int], example: Example, number: int) -> Sample:
    none = (False,) * len(ids)
    return Sample(tuple(ids), none, none, example.origin, number)
