"""The tokenizer that comes with a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rango.base.architecture import quiet_transformers
from rango.base.source import local_folder
from rango.errors import TokenizerError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files of a checkpoint folder that belong to its tokenizer."""

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def load_tokenizer(path_or_name: str | Path, revision: str | None = None) -> Any:
    """The transformers tokenizer of a checkpoint folder or of a model on the hub.

    Without a pad token, the end token pads (on this object only: neither the files nor the
    embeddings change, and padding is always masked). An encoder's separator counts as end token.
    Raises TokenizerError when there is no tokenizer or it has no end token.
    """
    folder = local_folder(path_or_name, revision, error=TokenizerError, weights=False)
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise TokenizerError(
            f"{folder}: no tokenizer: expected tokenizer.json, or a vocabulary with "
            "tokenizer_config.json; copy the tokenizer's files beside the model"
        )
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # tokenizers raises bare Exceptions for a malformed file
        raise TokenizerError(f"{folder}: its tokenizer cannot be read: {error}") from error
    if len(tokenizer) == 0:
        raise TokenizerError(f"{folder}: its tokenizer has no vocabulary")
    end = tokenizer.eos_token or tokenizer.sep_token
    if end is None:
        raise TokenizerError(
            f"{folder}: its tokenizer has no end token, without which no answer would ever end; "
            'set "eos_token" in tokenizer_config.json'
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = end
    return tokenizer
