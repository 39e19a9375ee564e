"""The decoding loop against transformers' own, and batches against each sequence alone."""

from __future__ import annotations

from collections.abc import Sequence

import models
import pytest
import torch
from torch import nn

import rango
from rango.adapters.fused.head import NarrowHead
from rango.adapters.fused.layer import FusedLayer
from rango.adapters.routing import Routing
from rango.errors import ConfigError, DataError
from rango.generation.decode import decode
from rango.kernels import dispatch

NEW = 12


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def written(
    model: nn.Module, prompts: Sequence[list[int]], limit: int = NEW, ends: Sequence[int] = ()
) -> list[list[int]]:
    sequences: list[list[int]] = [[] for _ in prompts]
    passes = decode(model, prompts, limits=[limit] * len(prompts), ends=ends, choose=greedy)
    for tokens in passes:
        for sequence, token in zip(sequences, tokens, strict=True):
            if token is not None:
                sequence.append(token)
    return sequences


def transformers_own(model: nn.Module, prompt: list[int]) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "falcon_grouped"])
def test_a_frozen_model_without_adapters_decodes_in_fused_layers(name: str) -> None:
    model = models.build(name, seed=3).requires_grad_(False).eval()
    prompts = [ids.tolist() for ids in models.inputs(2, 9)]
    plain = [transformers_own(model, prompt) for prompt in prompts]
    before = [type(module) for module in model.modules()]
    attention = model.config._attn_implementation
    passes = decode(model, prompts, limits=[NEW] * 2, ends=(), choose=greedy)
    first = next(passes)
    if name in ("llama", "qwen2") and dispatch.native() is not None:
        assert any(isinstance(module, FusedLayer) for module in model.modules())
    rest = list(passes)
    assert [list(tokens) for tokens in zip(first, *rest, strict=True)] == plain
    assert before == [type(module) for module in model.modules()]
    assert attention == model.config._attn_implementation

    unfinished = decode(model, prompts, limits=[NEW] * 2, ends=(), choose=greedy)
    next(unfinished)
    unfinished.close()
    assert before == [type(module) for module in model.modules()]


@pytest.mark.parametrize("name", [*models.CAUSAL, "falcon_grouped", "gemma2", "phi3", "mixtral"])
def test_greedy_equals_transformers_and_batches_equal_each_alone(name: str) -> None:
    model = models.build(name, seed=3)
    with torch.no_grad():  # layers that count for more than the last token's embedding
        for module in model.base_model.modules():
            if not isinstance(module, nn.Embedding):
                for parameter in module.parameters(recurse=False):
                    parameter.mul_(6 if parameter.ndim > 1 else 1)
    prompts = [ids.tolist() for ids in models.inputs(3, 14)]
    prompts = [prompts[0], prompts[1][:5], prompts[2][:1]]
    alone = [transformers_own(model, prompt) for prompt in prompts]
    assert len({token for tokens in alone for token in tokens}) > 4
    assert written(model, prompts) == alone
    for prompt, expected in zip(prompts, alone, strict=True):
        assert written(model, [prompt]) == [expected]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
@pytest.mark.parametrize("rows", [[1], [0, 1, -1, 2, 2, 0, -1, 1]])
def test_adapters_mixed_in_a_batch_write_what_the_reference_writes(
    name: str, rows: list[int]
) -> None:
    prompts = [ids.tolist()[: 1 + 3 * i % 14] for i, ids in enumerate(models.inputs(len(rows), 14))]
    found = []
    for mode in ("reference", "auto"):
        with dispatch.using(mode):
            adapted = rango.attach(models.build(name, seed=3), r=4, lora_alpha=8, rows=3)
            generator = torch.Generator().manual_seed(1)
            table = adapted.bank.parameters
            table.copy_(torch.randn(table.shape, generator=generator) / 4)
            with adapted.route(Routing.sequences(rows)):
                found.append(written(adapted.model, prompts))
            with adapted.disabled():
                found.append(written(adapted.model, prompts))
            adapted.merge(2)
            found.append(written(adapted.model, prompts))
    assert found[:3] == found[3:]
    assert len({str(answers) for answers in found}) > 1


def test_the_head_is_what_it_was_between_the_tokens() -> None:
    model = models.build("llama")
    seen: list[type] = []
    model.lm_head.register_forward_hook(lambda module, *_: seen.append(type(module)))
    for _ in decode(model, [[3, 4]], limits=[2], ends=(), choose=greedy):
        assert type(model.lm_head) is nn.Linear
    assert [issubclass(kind, NarrowHead) for kind in seen] == [True, True]


def test_each_sequence_stops_at_its_own_end() -> None:
    model = models.build("llama")
    prompts = [ids.tolist() for ids in models.inputs(2, 6)]
    free = written(model, prompts)
    end = free[0][2]
    stopped = written(model, prompts, ends=[end])
    assert stopped[0] == free[0][: free[0].index(end) + 1]
    cut = free[1].index(end) + 1 if end in free[1] else NEW
    assert stopped[1] == free[1][:cut]


def test_limits_are_per_sequence_and_reach_the_last_position() -> None:
    model = models.build("gpt2", n_positions=16)  # learned positions: one beyond would be an error
    prompts = [list(range(3, 15)), [5, 6]]
    sequences: list[list[int]] = [[], []]
    for tokens in decode(model, prompts, limits=[4, 14], ends=(), choose=greedy):
        for sequence, token in zip(sequences, tokens, strict=True):
            if token is not None:
                sequence.append(token)
    assert [len(sequence) for sequence in sequences] == [4, 14]


def test_modes_are_restored() -> None:
    model = models.build("llama")
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    written(model, [[3, 4]], limit=2)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("prompts", "limit", "error", "words"),
    [
        ([[3] * 120], 20, ConfigError, "128 positions: lower max_new_tokens to at most 8"),
        ([[3] * 200], 20, ConfigError, "lower the length of the prompt"),
        ([[3], []], 20, DataError, "prompt 2 has no tokens"),
        ([[3]], 0, ConfigError, "expected at least 1"),
    ],
)
def test_refusals(prompts: list[list[int]], limit: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        written(models.build("llama"), prompts, limit=limit)


@pytest.mark.parametrize("model", [models.build("bert"), nn.Linear(2, 2)])
def test_only_causal_models_generate(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="causal language model"):
        written(model, [[3]])
