"""Loading the base that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import rango
from rango.cli.options import ModelOptions
from rango.cli.parsing import say
from rango.errors import ConfigError
from rango.progress import Progress

if TYPE_CHECKING:
    from rango.base.load import Base


def load(options: ModelOptions, adapter: str | None, progress: Progress) -> Base:
    """The base that the options name, held as the adapter's training held it unless they say."""
    from rango.kernels.dispatch import facts

    facts()  # a RANGO_KERNELS that cannot be is refused before any work
    if adapter is not None:
        return rango.load_base_for(
            adapter,
            options.base,
            dtype=options.dtype,
            compute=options.compute,
            quantize=options.quantize,
            revision=options.revision,
            cache=options.cache,
            cache_gb=options.cache_gb,
            progress=progress,
        )
    return rango.load_base(
        options.base,
        dtype=options.dtype or "as stored",
        compute=options.compute or "auto",
        quantize=options.quantize or "none",
        revision=options.revision,
        cache=options.cache,
        cache_gb=options.cache_gb,
        progress=progress,
    )


def refuse_classifier(adapters: Sequence[str]) -> None:
    """Raise ConfigError where an adapter is a classifier's, for commands that have text written."""
    from rango.adapters.files import read_adapter

    for adapter in adapters:
        if labels := read_adapter(adapter).labels:
            raise ConfigError(
                f"{adapter}: the adapter of a classifier ({', '.join(labels)}), which writes "
                "nothing; see rango classify --help"
            )


def tokenizer_of(options: ModelOptions, base: Base, adapter: str | None) -> Any:
    """The base's tokenizer with the chat template that --chat_template names, or with the one and
    the special tokens that the adapter was trained with; says in what those differ."""
    tokenizer = rango.use_template(rango.load_tokenizer(base.path), options.chat_template)
    if adapter is None:
        return tokenizer
    tokenizer, differences = rango.load_template(tokenizer, adapter)
    say(*(f"rango: {difference}" for difference in differences))
    return tokenizer
