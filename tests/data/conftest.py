"""Tokenizers with the chat templates of real model families, written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(content, name): a file of text or bytes, and its path."""

    def write(content: str | bytes, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


CORPUS = [
    "The capital of France is Paris. What is the capital of Spain? Madrid, of course.",
    "El niño pequeño comió piñas en Logroño; ¿qué hora es? Son las tres y media, señor.",
    "def answer(question): return question + ' is a good question'  # user assistant system",
    "You are a helpful assistant.\n\nHello there!\n\n- one\n- two\n\nThank you very much.",
] * 4

LLAMA_3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN_2_5 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN_3 = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- message.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
PHI_3 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _spaced(*names: str) -> list[AddedToken]:
    """Phi-3's tokens swallow the white space after them."""
    return [AddedToken(name, rstrip=True, normalized=False, special=True) for name in names]


# style: template, begin-of-text token, end token, further special tokens
STYLES: dict[str, tuple[str, str | None, str, list[str | AddedToken]]] = {
    "llama-3": (
        LLAMA_3,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "qwen-2.5": (QWEN_2_5, None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "qwen-3": (QWEN_3, None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "mistral": (MISTRAL, "<s>", "</s>", ["[INST]", "[/INST]"]),
    "phi-3": (
        PHI_3,
        None,
        "<|endoftext|>",
        list(_spaced("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    ),
    "marked": (MARKED, None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
}


def _train(end: str, begin: str | None, special: list[str | AddedToken]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    first = [end, *([begin] if begin else []), *special]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=first,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, core.token_to_id(begin))]
        )
    return core


def _sentencepiece(scheme: str) -> Tokenizer:
    """A tokenizer in SentencePiece's manner: Gemma's (no space put before a text) or Llama's."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "gemma":
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif scheme == "legacy":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [] if scheme == "gemma" else [decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence([*parts, *strip])
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return core


@pytest.fixture(scope="session", params=["gemma", "first", "always", "legacy"])
def sentencepiece(request: pytest.FixtureRequest) -> Any:
    """Mistral's template over the several ways in which SentencePiece treats a text's start."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_sentencepiece(request.param),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = MISTRAL
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """make_tokenizer(style, **changes): a fresh tokenizer of a style; template=None for none."""
    cores: dict[str, str] = {}

    def make(style: str = "qwen-2.5", **changes: Any) -> Any:
        template, begin, end, special = STYLES[style]
        if style not in cores:
            cores[style] = _train(end, begin, special).to_str()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(cores[style]), bos_token=begin, eos_token=end
        )
        tokenizer.chat_template = changes.get("template", template)
        return tokenizer

    return make
