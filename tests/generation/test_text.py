"""Text piece by piece equals the text of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from rango.base.tokenizer import load_tokenizer
from rango.generation.text import TextPieces, text_of


def pieces_of(tokenizer: Any, tokens: list[int]) -> list[str]:
    pieces = TextPieces(tokenizer)
    return [*(pieces.add(token) for token in tokens), pieces.end()]


@pytest.mark.parametrize(
    "text", ["Señor, ¿qué?", "日本語 → 😀😀 end", "  two  spaces\n\n\ttab ", "e\u0301 and \ufffd!"]
)
def test_bytes_of_a_character_come_out_together(demo_base: Path, text: str) -> None:
    tokenizer = load_tokenizer(demo_base)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(tokenizer, tokens)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_text_cut_inside_a_character(demo_base: Path) -> None:
    tokenizer = load_tokenizer(demo_base)
    tokens = tokenizer("ok 😀", add_special_tokens=False)["input_ids"][:-1]
    pieces = pieces_of(tokenizer, tokens)
    assert "".join(pieces[:-1]) in {"ok", "ok "}
    assert "".join(pieces) == text_of(tokenizer, tokens)


def test_special_tokens_are_left_out(demo_base: Path) -> None:
    tokenizer = load_tokenizer(demo_base)
    tokens = tokenizer("<|user|>\nhi<|end|>", add_special_tokens=False)["input_ids"]
    assert "".join(pieces_of(tokenizer, tokens)) == "\nhi"


def test_tokenizers_that_write_spaces_before_words() -> None:
    vocabulary = {"▁": 0, "▁a": 1, "b": 2, "▁cd": 3, "<unk>": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert pieces_of(tokenizer, [1, 3, 2, 1]) == ["a", " cd", "b", " a", ""]
