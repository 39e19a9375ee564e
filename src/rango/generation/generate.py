"""Answers to prompts: in batches, as a stream, and of base and adapter side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rango.adapters.attach import Adapted
from rango.adapters.routing import NO_ROW, Routing
from rango.base.classifier import is_classifier
from rango.data.samples import Message
from rango.data.tokens.tokenize import end_of_turn_ids, render_prompt
from rango.errors import AdapterError, ConfigError
from rango.generation.decode import check_room, decode
from rango.generation.sampling import Sampler, Sampling, prompt_seeds
from rango.generation.text import TextPieces, text_of
from rango.progress import Progress, silent

Prompt = str | Sequence[Message]
"""Messages go through the chat template; a string is continued as it is."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    text: str
    token_ids: tuple[int, ...]
    """Without the token that ended it."""
    stopped: bool
    """It ended its turn itself, rather than by max_new_tokens."""


@dataclass(frozen=True)
class SideBySide:
    """One prompt answered by the base and by an adapter."""

    prompt: Prompt
    base: Completion
    adapted: Completion


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress = silent,
) -> list[Completion]:
    """A completion for each prompt, in their order; greedy at temperature 0.

    With a temperature, what is drawn for a prompt depends on seed and prompt alone (equal prompts
    get different numbers). max_new_tokens may be given one a prompt. Several batches are made of
    prompts of like length; prompts that fit in one batch keep their order in it, so that
    `adapted.route(Routing.sequences(…))` can give each its own row.

    Raises ConfigError for values out of range or a prompt that does not fit with its answer in the
    model's positions, DataError for an empty prompt, TokenizerError without a chat template.
    """
    if is_classifier(model):
        raise ConfigError(
            f"{type(model).__name__} is a classifier, which writes nothing; see rango.classify"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: expected at least 1")
    sampling = Sampling(temperature, top_k, top_p)
    jobs = _jobs(tokenizer, prompts, max_new_tokens, seed)
    check_room(model, [job.prompt for job in jobs], [job.limit for job in jobs])
    ends = stop_ids(model, tokenizer)
    order = list(range(len(jobs)))
    if len(jobs) > batch_size:
        order.sort(key=lambda index: (len(jobs[index].prompt), jobs[index].limit))
    found: dict[int, Completion] = {}
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        completions = _complete(model, tokenizer, [jobs[i] for i in batch], ends, sampling)
        found.update(zip(batch, completions, strict=True))
        progress("generate", len(found), len(jobs), "prompts")
    return [found[index] for index in range(len(jobs))]


def stream(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[str]:
    """The answer to one prompt piece by piece; the pieces together are generate()'s text.

    Raises as generate() does, at the first piece.
    """
    (job,) = _jobs(tokenizer, [prompt], max_new_tokens, seed)
    ends = stop_ids(model, tokenizer)
    sampler = Sampler(Sampling(temperature, top_k, top_p), [job.seed])
    pieces = TextPieces(tokenizer)
    passes = decode(model, [job.prompt], limits=[job.limit], ends=ends, choose=sampler)
    for (token,) in passes:
        if token is None or token in ends:
            break
        if piece := pieces.add(token):
            yield piece
    if piece := pieces.end():
        yield piece


def side_by_side(
    adapted: Adapted,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    row: int = 0,
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress = silent,
) -> list[SideBySide]:
    """Each prompt answered by the base and by a row of the bank, both in one batch.

    Both draw the same random numbers. Raises AdapterError where the adapter is merged or switched
    off, and what generate() raises.
    """
    if not adapted.switch.acts:
        raise AdapterError("base and adapter side by side: unmerge() or enable() the adapter first")
    sampling = Sampling(temperature, top_k, top_p)
    jobs = _jobs(tokenizer, prompts, max_new_tokens, seed)
    check_room(adapted.model, [job.prompt for job in jobs], [job.limit for job in jobs])
    ends = stop_ids(adapted.model, tokenizer)
    at_once = max(1, batch_size // 2)
    pairs: list[SideBySide] = []
    for begin in range(0, len(jobs), at_once):
        chunk = jobs[begin : begin + at_once]
        rows = [NO_ROW] * len(chunk) + [row] * len(chunk)
        with adapted.route(Routing.sequences(rows)):
            answers = _complete(adapted.model, tokenizer, [*chunk, *chunk], ends, sampling)
        halves = answers[: len(chunk)], answers[len(chunk) :]
        pairs += [
            SideBySide(*each)
            for each in zip(prompts[begin : begin + at_once], *halves, strict=True)
        ]
        progress("generate", len(pairs), len(jobs), "prompts")
    return pairs


def stop_ids(model: nn.Module, tokenizer: Any) -> set[int]:
    """The tokens after which an answer is over: of the tokenizer, its chat template, the model."""
    ends = end_of_turn_ids(tokenizer)
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if isinstance(declared, int):
        return ends | {declared}
    return ends | set(declared or ())


@dataclass(frozen=True)
class _Job:
    prompt: list[int]
    limit: int
    seed: int


def _jobs(
    tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int | Sequence[int], seed: int
) -> list[_Job]:
    limits = max_new_tokens
    if isinstance(limits, int):
        limits = [limits] * len(prompts)
    if len(limits) != len(prompts):
        raise ConfigError(
            f"max_new_tokens: expected one number, or {len(prompts)} (one a prompt); found "
            f"{len(limits)}"
        )
    token_ids = [render_prompt(tokenizer, prompt) for prompt in prompts]
    seeds = prompt_seeds(seed, token_ids)
    return [_Job(*fields) for fields in zip(token_ids, limits, seeds, strict=True)]


def _complete(
    model: nn.Module, tokenizer: Any, jobs: Sequence[_Job], ends: set[int], sampling: Sampling
) -> list[Completion]:
    """One batch."""
    written: list[list[int]] = [[] for _ in jobs]
    passes = decode(
        model,
        [job.prompt for job in jobs],
        limits=[job.limit for job in jobs],
        ends=ends,
        choose=Sampler(sampling, [job.seed for job in jobs]),
    )
    for tokens in passes:
        for sequence, token in zip(written, tokens, strict=True):
            if token is not None:
                sequence.append(token)
    return [_completion(tokenizer, sequence, ends) for sequence in written]


def _completion(tokenizer: Any, tokens: list[int], ends: set[int]) -> Completion:
    stopped = tokens[-1] in ends
    answer = tokens[:-1] if stopped else tokens
    return Completion(text_of(tokenizer, answer), tuple(answer), stopped)
