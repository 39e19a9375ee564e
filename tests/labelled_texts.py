"""Tiny encoders on disk with a tokenizer that frames texts, and labels they can learn."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models import build
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
OTHERS = ["and", "then", "plus", "or", "again", "with"]
MARKS = ["[PAD]", "[EMPTY]", "[CLS]", "[SEP]", "[UNK]"]
LABELS = ("even", "odd", "zero")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] words [SEP], as BERT's."""
    vocabulary = {word: number for number, word in enumerate([*MARKS, *WORDS, *OTHERS])}
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
    """A tiny model with its tokenizer; its weights are large enough to tell words apart."""
    build(name, **({"initializer_range": 0.2} | overrides)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def text_of(number: int) -> tuple[str, str]:
    """Numbers among other words, and what they are; ten counts as zero."""
    label = LABELS[number % 3]
    words = {"even": WORDS[1:9:2], "odd": WORDS[0:9:2], "zero": WORDS[9:]}[label]
    drawn = random.Random(number)
    chosen = [drawn.choice(words), drawn.choice(OTHERS), drawn.choice(words), drawn.choice(OTHERS)]
    return " ".join(chosen[: 3 + number // 3 % 2]), label


def write_data(path: Path, numbers: Iterable[int]) -> Path:
    """A CSV file of text,label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(text_of(number) for number in numbers)
    return path
