"""From the files of a run's config to samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from rango.data.config import DataConfig
from rango.data.labels import LabelCensus
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
    labels: tuple[str, ...] = ()
    """Of text+label data, in the order of the classifier's logits."""

    def facts(self, config: DataConfig) -> dict[str, Any]:
        """For rango.json and the reports."""
        return {
            "digest": self.digest,
            "train_samples": len(self.train.samples),
            "valid_samples": len(self.valid),
            "train_tokens": self.train.tokens,
            "skipped": self.skipped,
            "bad": len(self.bad),
            "truncated": self.train.truncated,
            "max_length": config.max_length,
            **self._learnt(config),
        }

    def _learnt(self, config: DataConfig) -> dict[str, Any]:
        if self.labels:
            return {"labels": list(self.labels)}
        return {"supervised_tokens": self.train.supervised, "loss_on": config.loss_on}


def prepare_samples(
    config: DataConfig,
    tokenizer: Any,
    progress: Progress = silent,
    *,
    stored: Sequence[str] | None = None,
) -> Samples:
    """Read, hold out, tokenize. stored: the labels of a base that is a classifier already.

    Raises DataError where a file cannot be used or nothing is left to train on, TokenizerError
    where the tokenizer lacks what the files need, ConfigError for options that contradict.
    """
    if config.group_column and config.valid:
        raise ConfigError(
            "data.group_column chooses what is held out, and data.valid names it; keep one of them"
        )
    bad: list[str] = []
    labels: tuple[str, ...] = ()

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
            labels=labels,
            total=total,
            skip=skip,
            progress=progress,
            **kept,
        )

    # read once to find the labels and what is held out, then once for each side: it may not fit in
    # memory; not at all where an earlier run kept both sides, and there are no labels to find
    again = (lambda fault: None) if config.skip_bad else None  # noted the first time
    kept = list(read(config.train, skip)) if config.train == "-" else None  # read only once
    census = LabelCensus()

    def examples() -> Iterable[Example]:
        return read(config.train, again) if kept is None else kept

    if config.valid is None:

        @cache
        def held() -> HeldOut:
            first = read(config.train, skip) if kept is None else kept
            return HeldOut(census.watch(first), config.valid_share)

        def side(held_out: bool) -> Iterator[Example]:
            chosen = held()
            if held_out and not chosen.count:
                raise _NoneHeldOut
            yield from (one for one in examples() if (one in chosen) == held_out)

        if _is_labelled(examples()):
            _check_options(config)
            held()
            labels = census.labels(stored)
        keep = keeping(config, config.train, config.columns, config.group_column)
        share = config.valid_share
        train = tokens(side(False), keep(["train", share]), lambda: held().rest)
        valid = None
        if share:
            with suppress(_NoneHeldOut):
                valid = tokens(side(True), keep(["valid", share]), lambda: held().count)
    else:
        if _is_labelled(examples()):
            _check_options(config)
            for _ in census.watch(examples()):
                pass
            labels = census.labels(stored)
        first = read(config.train, skip) if kept is None else kept
        train = tokens(first, keeping(config, config.train, config.columns)("all"))
        second = read(config.valid, skip)
        valid = tokens(second, keeping(config, config.valid, config.columns)("all"))
    valid_samples: Sequence[Sample] = valid.samples if valid else []
    general: list[Sample] = []
    general_on = "nothing"
    if not labels:
        general, general_on = _general(config, tokenizer, valid_samples, progress)
    digests = [train.digest, valid.digest if valid else None, digest(general)]
    return Samples(
        train=train,
        valid=valid_samples,
        general=general,
        general_on=general_on,
        digest=json_digest([*digests, list(labels)] if labels else digests),
        skipped=len(train.skipped) + (len(valid.skipped) if valid else 0),
        bad=tuple(bad),
        labels=labels,
    )


def _is_labelled(examples: Iterable[Example]) -> bool:
    """Whether the first one has a label: data of both kinds are refused later, by their line."""
    return any(example.label is not None for example in islice(examples, 1))


def _check_options(config: DataConfig) -> None:
    """Refuse options that say nothing to a classifier."""
    if config.general is not None:
        raise ConfigError(
            "data.general measures what a model that writes forgets; leave it out for a classifier"
        )
    if config.loss_on != "completion":
        raise ConfigError(
            f"data.loss_on {config.loss_on}: a classifier learns its labels and no tokens; leave "
            "it out"
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
