"""Answers, streamed or in batches, and base and adapter side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch

from rango.adapters.attach import Adapted, attach
from rango.adapters.routing import Routing
from rango.base.tokenizer import load_tokenizer
from rango.data.samples import Message
from rango.errors import AdapterError, ConfigError, TokenizerError
from rango.generation.generate import generate, side_by_side, stop_ids, stream

CHAT = [[Message("user", text)] for text in ("def f(): pass", "What?", "A longer question, now.")]
FEW = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def tokenizer(demo_base: Path) -> Any:
    return load_tokenizer(demo_base)


@pytest.fixture
def model() -> Any:
    return models.build("llama", vocab_size=4096, eos_token_id=0, max_position_embeddings=64)


@pytest.fixture
def adapted(model: Any) -> Adapted:
    adapted = attach(model, r=2, rows=2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return adapted


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_batches_streams_and_each_alone_agree(
    model: Any, tokenizer: Any, temperature: float
) -> None:
    options: dict[str, Any] = {"temperature": temperature, "seed": 5, **FEW}
    together = generate(model, tokenizer, CHAT, **options)
    split = generate(model, tokenizer, CHAT, batch_size=1, **options)
    assert together == split
    assert generate(model, tokenizer, CHAT[::-1], batch_size=2, **options)[::-1] == together
    for prompt, completion in zip(CHAT, together, strict=True):
        assert "".join(stream(model, tokenizer, prompt, **options)) == completion.text


def test_sampling_is_reproducible_and_equal_prompts_differ(model: Any, tokenizer: Any) -> None:
    options: dict[str, Any] = {"temperature": 2.0, **FEW}
    first = generate(model, tokenizer, ["def", "def"], seed=1, **options)
    assert first[0] != first[1]
    assert generate(model, tokenizer, ["def", "def"], seed=1, **options) == first
    assert generate(model, tokenizer, ["def", "def"], seed=2, **options) != first


def test_an_answer_ends_at_the_end_of_turn(model: Any, tokenizer: Any) -> None:
    free = generate(model, tokenizer, ["def"], **FEW)[0]
    assert not free.stopped
    assert len(free.token_ids) == 8
    model.generation_config.eos_token_id = [3, free.token_ids[4]]
    ended = generate(model, tokenizer, ["def"], **FEW)[0]
    assert ended.stopped
    cut = free.token_ids.index(free.token_ids[4])
    assert ended.token_ids == free.token_ids[:cut]
    assert stop_ids(model, tokenizer) == {0, 3, free.token_ids[4]}
    assert "".join(stream(model, tokenizer, "def", **FEW)) == ended.text


def test_limits_one_a_prompt(model: Any, tokenizer: Any) -> None:
    found = generate(model, tokenizer, CHAT, max_new_tokens=[1, 4, 2], batch_size=2)
    assert [len(completion.token_ids) for completion in found] == [1, 4, 2]
    with pytest.raises(ConfigError, match="one a prompt"):
        generate(model, tokenizer, CHAT, max_new_tokens=[1, 2])
    with pytest.raises(ConfigError, match="batch_size"):
        generate(model, tokenizer, CHAT, batch_size=0)
    with pytest.raises(ConfigError, match="64 positions"):
        generate(model, tokenizer, CHAT, max_new_tokens=64)
    assert generate(model, tokenizer, []) == []


def test_progress_is_reported(model: Any, tokenizer: Any) -> None:
    reports: list[tuple[Any, ...]] = []
    generate(
        model,
        tokenizer,
        CHAT,
        max_new_tokens=1,
        batch_size=2,
        progress=lambda *r: reports.append(r),
    )
    assert reports == [("generate", 2, 3, "prompts"), ("generate", 3, 3, "prompts")]


def test_base_and_adapter_side_by_side(adapted: Adapted, tokenizer: Any) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, **FEW}
    pairs = side_by_side(adapted, tokenizer, CHAT, row=1, batch_size=4, **options)
    with adapted.disabled():
        base = generate(adapted.model, tokenizer, CHAT, **options)
    with adapted.route(Routing.everywhere(1)):
        tuned = generate(adapted.model, tokenizer, CHAT, **options)
    assert [pair.prompt for pair in pairs] == CHAT
    assert [pair.base for pair in pairs] == base
    assert [pair.adapted for pair in pairs] == tuned
    assert base != tuned


def test_sequences_may_use_rows_of_their_own(adapted: Adapted, tokenizer: Any) -> None:
    with adapted.route(Routing.sequences([0, -1, 1])):
        mixed = generate(adapted.model, tokenizer, CHAT, **FEW)
    for completion, prompt, row in zip(mixed, CHAT, [0, -1, 1], strict=True):
        routing = Routing.base() if row < 0 else Routing.everywhere(row)
        with adapted.route(routing):
            assert generate(adapted.model, tokenizer, [prompt], **FEW) == [completion]


def test_a_merged_or_disabled_adapter_has_no_base_beside_it(
    adapted: Adapted, tokenizer: Any
) -> None:
    adapted.merge()
    with pytest.raises(AdapterError, match="unmerge"):
        side_by_side(adapted, tokenizer, CHAT)
    adapted.unmerge()
    adapted.disable()
    with pytest.raises(AdapterError, match="enable"):
        side_by_side(adapted, tokenizer, CHAT)


def test_messages_need_a_chat_template(model: Any, demo_base: Path) -> None:
    tokenizer = load_tokenizer(demo_base)
    tokenizer.chat_template = None
    with pytest.raises(TokenizerError, match="chat template"):
        generate(model, tokenizer, CHAT)
    assert len(generate(model, tokenizer, ["def"], **FEW)) == 1
