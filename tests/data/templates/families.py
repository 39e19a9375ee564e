"""Tokenizers in the manner of real model families, small, with the chat templates beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent
CORPUS = """The capital of France is Paris. What is the capital of Spain? Madrid, of course.
El niño pequeño comió piñas en Logroño; ¿qué hora es? Son las tres y media, señor.
def answer(question): return question + ' is a good question'  # user assistant system
You are a helpful assistant.

Hello there!

- one
- two

Thank you very much."""
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Family:
    """What a family's tokenizer has, and what its template makes of an answer."""

    core: Callable[[list[str | AddedToken]], Tokenizer]
    begin: str | None
    end: str
    special: list[str | AddedToken]
    end_of_turn: str
    written: Callable[[str], str] = field(default=str)
    """An answer as the template writes it."""
    last: Callable[[str], str] = field(default=str)
    """The last answer, beside that."""
    pad: str | None = None
    system: bool = True
    tool: bool = False
    joined: bool = False
    """The answer's leading white space may share a token with what stands before it."""


def tokenizer(name: str) -> Any:
    """A fresh tokenizer of a family, with its chat template."""
    family = FAMILIES[name]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core(name)),
        bos_token=family.begin,
        eos_token=family.end,
        pad_token=family.pad,
        **({"unk_token": "<unk>"} if family.core in (_gemma, _mistral) else {}),
    )
    made.chat_template = template(name)
    return made


def bare(*special: str, begin: str | None = None, end: str = "<|endoftext|>") -> Any:
    """A tokenizer without chat template, with these special tokens."""
    first = [end, *([begin] if begin else []), *special]
    made = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(None, None, first), bos_token=begin, eos_token=end
    )
    made.chat_template = None
    return made


def template(name: str) -> str:
    """The text of a template of this folder."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def _core(name: str) -> str:
    family = FAMILIES[name]
    first = [family.end, *([family.begin] if family.begin else []), *family.special]
    core = family.core(first)
    if family.begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.begin} $A",
            special_tokens=[(family.begin, core.token_to_id(family.begin))],
        )
    return str(core.to_str())


def _words() -> list[str]:
    """No learnt token then spans two words."""
    return re.findall(r" ?\S+|\s+?(?= ?\S)", CORPUS) * 4


def _byte_level(pattern: str | None, normalizer: Any, special: list[str | AddedToken]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    if normalizer is not None:
        core.normalizer = normalizer
    if pattern is None:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([CORPUS] * 4, trainer)
    return core


def _llama(special: list[str | AddedToken]) -> Tokenizer:
    return _byte_level(_LLAMA_3, None, special)


def _qwen(special: list[str | AddedToken]) -> Tokenizer:
    core = _byte_level(_QWEN, normalizers.NFC(), special)
    # tokens of their own, but not special: they are text too
    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    core.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in marks])
    return core


def _phi(special: list[str | AddedToken]) -> Tokenizer:
    return _byte_level(None, None, special)


def _gemma(special: list[str | AddedToken]) -> Tokenizer:
    """SentencePiece without a space put before a text."""
    core = _bytes_fall_back()
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence(parts)
    return _trained(core, special)


def _mistral(special: list[str | AddedToken]) -> Tokenizer:
    """SentencePiece with a space before the first word of a text."""
    core = _bytes_fall_back()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return _trained(core, special)


def _bytes_fall_back() -> Tokenizer:
    return Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))


def _trained(core: Tokenizer, special: list[str | AddedToken]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", *special], show_progress=False
    )
    core.train_from_iterator(_words(), trainer)
    made = json.loads(core.to_str())
    vocabulary = made["model"]["vocab"]
    for byte in range(256):  # in the vocabulary, but no added tokens
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(made))


def _spaced(*names: str) -> list[str | AddedToken]:
    """Phi-3's tokens swallow the white space after them."""
    return [AddedToken(name, rstrip=True, normalized=False, special=True) for name in names]


def _thinking(answer: str) -> str:
    return f"<think>\n\n</think>\n\n{answer.lstrip(chr(10))}"


FAMILIES: dict[str, Family] = {
    "llama-3": Family(
        _llama,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
        "<|eot_id|>",
        written=str.strip,
        tool=True,
    ),
    "qwen-2.5": Family(
        _qwen,
        None,
        "<|im_end|>",
        ["<|im_start|>", "<|endoftext|>"],
        "<|im_end|>",
        pad="<|endoftext|>",
        tool=True,
        joined=True,
    ),
    "qwen-3": Family(
        _qwen,
        None,
        "<|im_end|>",
        ["<|im_start|>", "<|endoftext|>"],
        "<|im_end|>",
        last=_thinking,
        pad="<|endoftext|>",
        tool=True,
        joined=True,
    ),
    "gemma": Family(
        _gemma,
        "<bos>",
        "<eos>",
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        written=str.strip,
        system=False,
    ),
    "mistral": Family(_mistral, "<s>", "</s>", ["[INST]", "[/INST]"], "</s>", written=str.strip),
    "phi": Family(
        _phi,
        None,
        "<|endoftext|>",
        _spaced("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        joined=True,
    ),
}
