"""A few tokens over a cache, one call a layer, against the plain model under the reference."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from models import build, inputs
from torch import Tensor, nn
from transformers import DynamicCache

import rango
from rango.adapters.attach import Adapted
from rango.adapters.fused import head as head_module
from rango.adapters.fused import infer
from rango.adapters.fused.cache import RoomyLayer, roomy_cache
from rango.adapters.routing import Lane, Routing
from rango.base.linear import Int8Linear, NF4Linear
from rango.base.stored import StoredLinear
from rango.errors import AdapterError
from rango.kernels import dispatch

FUSED = ("llama", "mistral", "qwen2", "qwen3", "gemma")
COMPILED = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not COMPILED, reason="the compiled kernels are not installed")

PROMPT, NEW = 11, 6


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way each layer went in each pass: ``step``, or ``rest`` over another cache."""
    seen: list[str] = []
    for name in ("step", "rest"):
        method = getattr(infer._Gathered, name)

        def counting(*args: Any, name: str = name, method: Any = method) -> Any:
            found = method(*args)
            seen.extend([name] if found is not None else [])
            return found

        monkeypatch.setattr(infer._Gathered, name, counting)
    return seen


def _attached(name: str, mode: str, rows: int = 3, model: Any = None, **fields: Any) -> Adapted:
    with dispatch.using(mode):
        options = {"r": 3, "lora_alpha": 6, "rows": rows} | fields
        adapted = rango.attach(model or build(name), **options)
    generator = torch.Generator().manual_seed(1)
    adapted.bank.parameters.copy_(
        torch.randn(adapted.bank.parameters.shape, generator=generator) / 8
    )
    return adapted


def _batch(count: int) -> tuple[Tensor, Tensor]:
    """ids (count, PROMPT + NEW), and the mask of prompts padded on the left by 0, 1, 2, …"""
    ids = inputs(count, PROMPT + NEW)
    mask = torch.ones_like(ids)
    for row in range(count):
        mask[row, : row % (PROMPT - 1)] = 0
    return ids, mask


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any, at_once: int = 1) -> Tensor:
    """(batch, passes, vocabulary): of the prompt's last token, and after it token by token."""
    found, done = [], 0
    for end in (PROMPT, *range(PROMPT + at_once, PROMPT + NEW + 1, at_once)):
        output = model(
            input_ids=ids[:, done:end],
            attention_mask=mask[:, :end],
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, done:end],
            past_key_values=cache,
            use_cache=True,
        )
        found.append(output.logits[:, -at_once if done else -1 :])
        done = end
    return torch.cat(found, dim=1)


def _run(adapted: Adapted, mode: str, count: int = 3, ours: bool = True, **options: Any) -> Tensor:
    cache = roomy_cache(adapted.model) if ours else DynamicCache(config=adapted.model.config)
    with dispatch.using(mode):
        return _logits(adapted.model, *_batch(count), cache, **options)


def _close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(("count", "ours"), [(1, True), (8, True), (8, False)])
def test_rows_mixed_in_a_padded_batch(
    name: str, mode: str, count: int, ours: bool, steps: list[str]
) -> None:
    routing = Routing.sequences(
        [0, 1, -1, 2, 0, 2, 1, -1][:count], [1.0, 0.5, 1, 2, 1, 1, 3, 1][:count]
    )
    plain, fused = _attached(name, "reference"), _attached(name, mode)
    with plain.route(routing):
        expected = _run(plain, "reference", count, ours=False)
    assert not steps
    with fused.route(routing):
        _close(_run(fused, mode, count, ours), expected)
    # a prompt of one sequence is few enough tokens too
    assert steps[-2 * NEW :] == ["step" if ours else "rest"] * 2 * NEW


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_several_tokens_of_a_sequence_at_once(name: str, steps: list[str]) -> None:
    plain, fused = _attached(name, "reference"), _attached(name, COMPILED[0])
    expected = _run(plain, "reference", ours=False, at_once=3)
    _close(_run(fused, COMPILED[0], at_once=3), expected)
    assert "step" in steps
    _close(_run(fused, COMPILED[0]), expected)


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("threads", [1, 2])
def test_sizes_that_fill_no_vector(mode: str, threads: int, steps: list[str]) -> None:
    sizes = {"hidden_size": 39, "intermediate_size": 45, "num_attention_heads": 3, "head_dim": 10}
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for one in ("reference", mode):
            model = build("llama", num_key_value_heads=1, **sizes)
            adapted = _attached("", one, model=model, r=6)
            with adapted.route(Routing.sequences([2, 1, 1])):
                found.append(_run(adapted, one))
    finally:
        torch.set_num_threads(before)
    _close(found[1], found[0])
    assert len(steps) >= 2 * NEW


def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            adapted = _attached("qwen2", COMPILED[0], r=16)
            with head_module.narrow_head(adapted.model):
                found.append(_run(adapted, COMPILED[0], 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("held", ["nf4", "nf4 flat", "int8", "bf16"])
def test_bases_as_they_are_held(held: str, steps: list[str]) -> None:
    found = []
    for mode in ("reference", COMPILED[0]):
        model = build("qwen2")
        for layer in model.model.layers:
            for parent in (layer.self_attn, layer.mlp):
                for name, linear in list(parent.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(parent, name, _held(linear, held))
        found.append(_run(_attached("", mode, model=model), mode))
    _close(found[1], found[0])
    assert len(steps) >= 2 * NEW


def _held(linear: nn.Linear, how: str) -> nn.Module:
    weight, bias = linear.weight.detach(), linear.bias
    if how == "int8":
        return Int8Linear.from_weight(weight, bias)
    if how == "bf16":
        return StoredLinear(nn.Parameter(weight.bfloat16(), requires_grad=False), bias)
    return NF4Linear.from_weight(weight, bias, double_quant=how == "nf4")


def test_a_blend_adds_up(steps: list[str]) -> None:
    routing = Routing.blend(
        Routing.everywhere(1, 0.5),
        Routing((Lane(torch.tensor([0, -1, 2])),)),
        Routing.sequences([2, 2, 0]),
    )
    found = []
    for mode in ("reference", COMPILED[0]):
        adapted = _attached("llama", mode)
        with adapted.route(routing):
            found.append(_run(adapted, mode))
    _close(found[1], found[0])
    assert steps


def test_a_sequence_does_not_feel_the_others() -> None:
    adapted = _attached("qwen3", COMPILED[0])
    ids, mask = _batch(8)
    rows = [0, 1, 2, -1, 0, 1, 2, -1]
    with dispatch.using(COMPILED[0]), adapted.route(Routing.sequences(rows)):
        together = _logits(adapted.model, ids, mask, roomy_cache(adapted.model))
    for i, row in enumerate(rows):
        own = slice(int((mask[i] == 0).sum()), None)
        with dispatch.using(COMPILED[0]), adapted.route(Routing.sequences([row])):
            cache = roomy_cache(adapted.model)
            padded = _logits(adapted.model, ids[i : i + 1], mask[i : i + 1], cache)
        assert torch.allclose(padded[0], together[i], rtol=0, atol=2e-6), (i, own)


def test_what_changes_between_passes_is_seen(steps: list[str]) -> None:
    """One attachment decodes again and again; each time something else is in force."""
    plain, fused = _attached("llama", "reference"), _attached("llama", COMPILED[0])
    reconfigured = plain.config_of(0)
    seen: list[Tensor] = []

    def check(change: Any, context: Any = None, differs: bool = True) -> None:
        results = []
        for adapted, mode in ((plain, "reference"), (fused, COMPILED[0])):
            change(adapted)
            with context(adapted) if context else nullcontext():
                before = len(steps)
                results.append(_run(adapted, mode))
        assert len(steps) >= before + 2 * NEW
        _close(results[1], results[0])
        if differs:
            assert all(not torch.allclose(results[1], other, rtol=1e-4) for other in seen)
            seen.append(results[1])

    def nothing(adapted: Adapted) -> None: ...

    def trade(adapted: Adapted) -> None:
        linear = adapted.model.model.layers[0].mlp.up_proj.base_layer
        linear.weight = nn.Parameter(linear.weight * 0.5, requires_grad=False)

    def move(adapted: Adapted) -> None:
        adapted.model.double().float()

    def edit(adapted: Adapted) -> None:
        adapted.bank.parameters[0].mul_(1.5)

    def norm(adapted: Adapted) -> None:
        adapted.model.model.layers[1].input_layernorm.weight.data = torch.full((32,), 0.7)

    check(nothing)
    check(nothing, lambda adapted: adapted.disabled())
    check(nothing, lambda adapted: adapted.route(Routing.everywhere(1)))
    check(nothing, lambda adapted: adapted.route(Routing.everywhere(1, 0.5)))
    check(lambda adapted: adapted.scale(0, 0.25))
    check(lambda adapted: adapted.merge(1))
    check(lambda adapted: adapted.unmerge(), differs=False)
    check(edit)
    check(trade)
    check(move, differs=False)
    check(norm)
    targets = rango.adapters.targets.find_targets(build("llama"), reconfigured)
    check(lambda adapted: adapted.configure(0, reconfigured, targets[:3]))


def test_hooks_and_modules_are_seen() -> None:
    adapted = _attached("llama", COMPILED[0])
    first = _run(adapted, COMPILED[0])
    calls = []
    layer = adapted.model.model.layers[1]
    handle = layer.mlp.down_proj.register_forward_hook(lambda *_: calls.append(1))
    _close(_run(adapted, COMPILED[0]), first)
    assert len(calls) == NEW + 1
    handle.remove()
    layer.mlp.act_fn.register_forward_hook(lambda *_: calls.append(2))
    _close(_run(adapted, COMPILED[0]), first)
    assert calls.count(2) == NEW + 1


def test_the_reference_takes_over_between_tokens(steps: list[str]) -> None:
    adapted = _attached("llama", COMPILED[0])
    first = _run(adapted, COMPILED[0])
    del steps[:]
    _close(_run(adapted, "reference"), first)
    assert not steps


def test_gradients_take_another_way(steps: list[str]) -> None:
    adapted = _attached("llama", COMPILED[0])
    cache = DynamicCache(config=adapted.model.config)
    adapted.model(IDS, past_key_values=cache)
    adapted.model(IDS[:, :1], past_key_values=cache).logits.sum().backward()
    assert not steps
    assert adapted.bank.gradients is not None
    assert bool(adapted.bank.gradients.any())


def test_dropout_takes_another_way(steps: list[str]) -> None:
    adapted = _attached("llama", COMPILED[0], lora_dropout=0.5)
    adapted.train()
    first = _run(adapted, COMPILED[0])
    assert not steps
    adapted.train(False)
    assert not torch.allclose(_run(adapted, COMPILED[0]), first, rtol=1e-4)
    assert steps


def test_a_row_that_is_not_there_is_refused() -> None:
    adapted = _attached("llama", COMPILED[0])
    _run(adapted, COMPILED[0])
    with adapted.route(Routing.everywhere(3)), pytest.raises(AdapterError, match="row 3"):
        _run(adapted, COMPILED[0])


def test_a_copy_of_the_model_decodes_by_itself() -> None:
    adapted = _attached("llama", COMPILED[0])
    first = _run(adapted, COMPILED[0])
    copied = copy.deepcopy(adapted)
    adapted.bank.parameters.zero_()
    _close(_run(copied, COMPILED[0]), first)


def test_training_lets_go_of_what_was_gathered() -> None:
    adapted = _attached("llama", COMPILED[0])
    _run(adapted, COMPILED[0])
    layer = adapted.model.model.layers[0]
    assert layer.fused_inference._gathered is not None
    adapted.model(IDS, use_cache=False)
    assert layer.fused_inference._gathered is None


IDS = inputs(2, 9)


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("biased", [False, True])
def test_the_head_of_few_tokens(mode: str, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("phi" if biased else "qwen2")
    head, x = model.get_output_embeddings(), torch.randn(2, 5, 32)
    calls = []
    before = head_module.sum_products
    monkeypatch.setattr(
        head_module, "sum_products", lambda *a, **k: calls.append(1) or before(*a, **k)
    )
    assert (head.bias is not None) is biased
    with dispatch.using(mode), head_module.narrow_head(model), torch.no_grad():
        found, many = head(x), head(torch.cat([x, x]))
        with dispatch.using("reference"):
            head(x)
    assert len(calls) == 1
    assert type(head) is nn.Linear
    with torch.no_grad():
        _close(found, head(x))
    assert torch.allclose(many[:2], found, rtol=1e-5, atol=1e-6)
    with head_module.narrow_head(model):  # gradients go the plain way
        head(x).sum().backward()
    assert head.weight.grad is not None


def test_a_head_that_is_something_else_is_left_alone() -> None:
    with head_module.narrow_head(nn.Linear(2, 2)), head_module.narrow_head(build("bert")):
        pass


def test_the_cache_grows_without_copies() -> None:
    layer, whole = RoomyLayer(), torch.randn(2, 3, 200, 4)
    places = set()
    for end in range(1, 201):
        keys, values = layer.update(whole[:, :, end - 1 : end], -whole[:, :, end - 1 : end])
        assert torch.equal(keys, whole[:, :, :end])
        assert torch.equal(values, -whole[:, :, :end])
        assert layer.get_seq_length() == end
        places.add(keys.data_ptr())
    assert len(places) <= 4


def test_the_cache_can_be_cropped_reordered_and_reset() -> None:
    layer, whole = RoomyLayer(), torch.randn(2, 3, 20, 4)
    layer.update(whole, whole)
    layer.crop(-8)
    assert layer.keys is not None
    assert torch.equal(layer.keys, whole[:, :, :12])
    keys, _ = layer.update(whole[:, :, :1], whole[:, :, :1])
    assert torch.equal(keys, torch.cat([whole[:, :, :12], whole[:, :, :1]], dim=2))
    layer.reorder_cache(torch.tensor([1, 0]))
    keys, values = layer.update(whole[:, :, :1], whole[:, :, :1])
    assert torch.equal(values[:, :, :12], whole[[1, 0], :, :12])
    assert keys.shape == (2, 3, 14, 4)
    layer.reset()
    assert layer.get_seq_length() == 0
    keys, _ = layer.update(whole[:1, :1, :2], whole[:1, :1, :2])
    assert torch.equal(keys, whole[:1, :1, :2])


def test_whose_cache_is_known() -> None:
    assert roomy_cache(nn.Linear(2, 2)) is None
    for name in FUSED:
        cache = roomy_cache(build(name))
        assert cache is not None
        assert {type(layer) for layer in cache.layers} == {RoomyLayer}
