"""Tiny bases on disk with a tokenizer, and a task they can learn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rango.data.samples import Origin, Sample

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
MARKS = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> "
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny model with the tokenizer beside it."""

    def make(folder: str, name: str = "llama", **overrides: Any) -> Path:
        build(name, **overrides).save_pretrained(tmp_path / folder)
        make_tokenizer().save_pretrained(tmp_path / folder)
        return tmp_path / folder

    return make


@pytest.fixture
def base_folder(make_base: Callable[..., Path]) -> Path:
    """A tiny Llama with a tokenizer."""
    return make_base("base")


def pair(number: int) -> tuple[str, str]:
    """A question of three words and its answer: the words in reverse order."""
    words = [WORDS[number % 10], WORDS[number // 10 % 10], WORDS[(number * 7 + 3) % 10]]
    return " ".join(words), " ".join(reversed(words))


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of conversations."""

    def make(name: str, numbers: Iterable[int]) -> Path:
        with (tmp_path / name).open("w") as file:
            for number in numbers:
                question, answer = pair(number)
                messages = [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
                file.write(json.dumps({"messages": messages}) + "\n")
        return tmp_path / name

    return make


@pytest.fixture
def data_file(make_data: Callable[..., Path]) -> Path:
    """Forty conversations."""
    return make_data("train.jsonl", range(40))


@pytest.fixture
def make_samples() -> Callable[..., list[Sample]]:
    """Random samples of various lengths, the latter half of each supervised."""

    def make(count: int, seed: int = 0, shortest: int = 4, longest: int = 14) -> list[Sample]:
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for number in range(count):
            length = int(torch.randint(shortest, longest + 1, (), generator=generator))
            ids = torch.randint(5, 15, (length,), generator=generator).tolist()
            learnt = tuple(place >= length // 2 for place in range(length))
            content = (*learnt[:-1], False)
            samples.append(Sample(tuple(ids), learnt, content, Origin("made.jsonl", number + 1)))
        return samples

    return make
