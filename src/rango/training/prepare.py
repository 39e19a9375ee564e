"""From the files of a run's config to samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from rango.data.config import DataConfig
from rango.data.reading.read import stream_examples
from rango.data.samples import Example, Sample
from rango.data.split import HeldOut
from rango.data.tokens.tokenize import Tokenized, digest, tokenize
from rango.errors import ConfigError, DataError
from rango.files.digests import json_digest
from rango.progress import Progress, silent
from rango.training.keeping import keeping

GENERAL_SAMPLES = 64
"""Forgetting is measured on at most this many samples, the first of the file."""


@dataclass(frozen=True)
class Samples:
    """Everything a run reads, as tokens."""

    train: Tokenized
    valid: Sequence[Sample]
    general: Sequence[Sample]
    general_on: str
    """What the general text is, in words."""
    digest: str
    """Of all three."""
    skipped: int
    """Samples left out as too long, of training and held-out ones."""
    bad: tuple[str, ...] = ()
    """What is wrong with the entries that were left out (skip_bad), in the order of the data."""

    def facts(self, config: DataConfig) -> dict[str, Any]:
        """For rango.json and the reports."""
        return {
            "digest": self.digest,
            "train_samples": len(self.train.samples),
            "valid_samples": len(self.valid),
            "train_tokens": self.train.tokens,
            "supervised_tokens": self.train.supervised,
            "skipped": self.skipped,
            "bad": len(self.bad),
            "truncated": self.train.truncated,
            "max_length": config.max_length,
            "loss_on": config.loss_on,
        }


def prepare_samples(config: DataConfig, tokenizer: Any, progress: Progress = silent) -> Samples:
    """Read, hold out, tokenize.

    Raises DataError where a file cannot be used or nothing is left to train on, TokenizerError
    where the tokenizer lacks what the files need, ConfigError for options that contradict.
    """
    if config.group_column and config.valid:
        raise ConfigError(
            "data.group_column chooses what is held out, and data.valid names it; keep one of them"
        )
    bad: list[str] = []

    def note(fault: DataError) -> None:
        bad.append(str(fault))

    skip = note if config.skip_bad else None

    def read(source: str, skip: Callable[[DataError], None] | None) -> Iterator[Example]:
        return stream_examples(
            source,
            columns=config.columns,
            group_column=config.group_column,
            skip=skip,
            progress=progress,
        )

    def tokens(
        examples: Iterable[Example],
        kept: dict[str, Any],
        total: Callable[[], int] | None = None,
    ) -> Tokenized:
        return tokenize(
            examples,
            tokenizer,
            max_length=config.max_length,
            too_long=config.too_long,
            loss_on=config.loss_on,
            total=total,
            skip=skip,
            progress=progress,
            **kept,
        )

    if config.valid is None:
        # read once to find what is held out, then once for each side: it may not fit in memory;
        # not at all where both sides were kept by an earlier run
        again = (lambda fault: None) if config.skip_bad else None  # noted the first time
        kept = list(read(config.train, skip)) if config.train == "-" else None  # read only once

        def examples() -> Iterable[Example]:
            return read(config.train, again) if kept is None else kept

        @cache
        def held() -> HeldOut:
            every = read(config.train, skip) if kept is None else kept
            return HeldOut(every, config.valid_share)

        def side(held_out: bool) -> Iterator[Example]:
            chosen = held()
            if held_out and not chosen.count:
                raise _NoneHeldOut
            yield from (one for one in examples() if (one in chosen) == held_out)

        keep = keeping(config, config.train, config.columns, config.group_column)
        share = config.valid_share
        train = tokens(side(False), keep(["train", share]), lambda: held().rest)
        valid = None
        if share:
            with suppress(_NoneHeldOut):
                valid = tokens(side(True), keep(["valid", share]), lambda: held().count)
    else:
        train, valid = [
            tokens(read(source, skip), keeping(config, source, config.columns)("all"))
            for source in (config.train, config.valid)
        ]
    valid_samples: Sequence[Sample] = valid.samples if valid else []
    general, general_on = _general(config, tokenizer, valid_samples, progress)
    return Samples(
        train=train,
        valid=valid_samples,
        general=general,
        general_on=general_on,
        digest=json_digest([train.digest, valid.digest if valid else None, digest(general)]),
        skipped=len(train.skipped) + (len(valid.skipped) if valid else 0),
        bad=tuple(bad),
    )


def prompts_of(samples: Sequence[Sample]) -> list[Sample]:
    """What stands before each sample's first answer, every token of it a target; a sample without
    such a prompt (plain text) as it is."""
    prompts = []
    for sample in samples[:GENERAL_SAMPLES]:
        length = sample.content.index(True) if True in sample.content else len(sample)
        if length < 2:
            prompts.append(sample)
            continue
        every = (False, *[True] * (length - 1))
        prompts.append(
            dataclasses.replace(
                sample, input_ids=sample.input_ids[:length], supervised=every, content=every
            )
        )
    return prompts


def _general(
    config: DataConfig, tokenizer: Any, valid: Sequence[Sample], progress: Progress
) -> tuple[list[Sample], str]:
    if config.general is None:
        prompts = prompts_of(valid)
        whole = all(
            len(prompt) == len(sample) for prompt, sample in zip(prompts, valid, strict=False)
        )
        return prompts, f"{'' if whole else 'the prompts of '}the held-out samples"
    found = tokenize(
        stream_examples(config.general),
        tokenizer,
        max_length=config.max_length,
        too_long="truncate",
        loss_on="all",
        progress=progress,
        **keeping(config, config.general)("all"),
    )
    return found.samples[:GENERAL_SAMPLES], "general text"


class _NoneHeldOut(Exception):
    """Nothing is held out."""
