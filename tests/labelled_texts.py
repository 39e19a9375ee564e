"""Tiny encoders on disk with a tokenizer that frames texts, and labels they can learn."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models import build
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
MARKS = ["[PAD]", "[EMPTY]", "[CLS]", "[SEP]", "[UNK]"]
LABELS = ("even", "odd", "zero")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] words [SEP], as BERT's."""
    vocabulary = {word: number for number, word in enumerate([*MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=128,
    )


def save_encoder(folder: Path, name: str = "bert", **overrides: Any) -> Path:
    """A tiny model with its tokenizer."""
    build(name, **overrides).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def text_of(number: int) -> tuple[str, str]:
    """A few words, and whether the first is an even number (ten: zero)."""
    words = [WORDS[number % 10], WORDS[number // 10 % 10], WORDS[(number * 7 + 3) % 10]]
    first = number % 10 + 1
    label = "zero" if first == 10 else "odd" if first % 2 else "even"
    return " ".join(words[: 2 + number % 2]), label


def write_data(path: Path, numbers: Iterable[int]) -> Path:
    """A CSV file of text,label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(text_of(number) for number in numbers)
    return path
