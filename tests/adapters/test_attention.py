from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build, inputs
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache, masking_utils
from transformers.integrations import sdpa_attention

from rango.adapters import attention as ours
from rango.adapters.attention import NAME, rango_attention, rango_mask, use_rango_attention
from rango.adapters.boundaries import Pattern, Table, boundaries, is_table, square_mask
from rango.base.packing import packing_probe
from rango.errors import ConfigError
from rango.kernels.dispatch import using

CAUSAL = (
    "llama",
    "qwen2",
    "gpt2",
    "phi",
    "gemma",
    "gemma2",
    "phi3",
    "mixtral",
    "mistral",
    "qwen2w",
)
PACKED = (13, 25, 1, 20)  # the second and fourth are longer than the windows of 16 and 8


def made(name: str) -> PreTrainedModel:
    if name == "mistral":  # every layer with a window
        return build("mixtral", sliding_window=8)
    if name == "qwen2w":  # a window in the second layer only
        return build("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    return build(name)


def plain(model: PreTrainedModel) -> str:
    """What transformers itself is right with: its sdpa has no soft-cap."""
    softcap = getattr(model.config, "attn_logit_softcapping", None)
    return "eager" if softcap is not None else "sdpa"


def both(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    model, expected = made(name), made(name)
    expected.set_attn_implementation(plain(expected))
    model.set_attn_implementation(NAME)
    return model, expected


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= tolerance * expected.norm()


def packed() -> dict[str, Tensor]:
    positions = torch.cat([torch.arange(length) for length in PACKED])
    return {"input_ids": inputs(1, sum(PACKED)), "position_ids": positions.unsqueeze(0)}


def padded(*, left: bool) -> tuple[dict[str, Tensor], Tensor]:
    mask = torch.ones(3, 24, dtype=torch.int64)
    mask[1, : 9 if left else 0] = 0
    mask[2, 15 if not left else 0 : 24 if not left else 1] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {
        "input_ids": inputs(3, 24),
        "attention_mask": mask,
        "position_ids": positions,
    }, mask.bool()


def count_squares(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of what our path must not need."""
    calls: list[Any] = []

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(function)
            return function(*args, **kwargs)

        return call

    for name in ("sdpa_mask", "sdpa_attention_forward", "square_mask"):
        monkeypatch.setattr(ours, name, counted(getattr(ours, name)))
    return calls


def gradients(model: PreTrainedModel, output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    model.zero_grad()
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", CAUSAL)
def test_packed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = both(name)
    calls = count_squares(monkeypatch)
    batch = packed()
    found, wanted = (m(**batch, use_cache=False).logits for m in (model, expected))
    close(found, wanted)
    close(gradients(model, found), gradients(expected, wanted), 1e-5)
    assert not calls


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("left", [True, False])
def test_padded(name: str, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = both(name)
    calls = count_squares(monkeypatch)
    batch, real = padded(left=left)
    found, wanted = (m(**batch, use_cache=False).logits[real] for m in (model, expected))
    close(found, wanted)
    close(gradients(model, found), gradients(expected, wanted), 1e-5)
    assert not calls


@pytest.mark.parametrize("name", CAUSAL)
def test_unpadded_without_positions(name: str) -> None:
    model, expected = both(name)
    close(*(m(input_ids=inputs(2, 30)).logits for m in (model, expected)))


@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_a_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = both(name)
    calls = count_squares(monkeypatch)
    ids = inputs(3, 24)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[2, :19] = 0
    found, wanted = [], []
    with torch.no_grad():
        for m, into in ((model, found), (expected, wanted)):
            cache, attended, tokens = None, mask, ids
            for step in range(12):
                position_ids = (attended.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
                output = m(
                    input_ids=tokens,
                    attention_mask=attended,
                    position_ids=position_ids,
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = output.past_key_values
                into.append(output.logits[:, -1])
                width = 3 if step == 4 else 1  # one pass with several tokens after the prompt
                tokens = inputs(3, width, seed=step)
                attended = torch.cat([attended, attended.new_ones(3, width)], dim=1)
    close(torch.stack(found), torch.stack(wanted))
    assert not calls


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_generation_of_transformers(name: str) -> None:
    model, expected = both(name)
    ids, mask = inputs(2, 10), torch.ones(2, 10, dtype=torch.int64)
    mask[1, :4] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask}
    found, wanted = (m.generate(ids, **options) for m in (model, expected))
    assert torch.equal(found, wanted)


def test_static_cache() -> None:
    model, expected = both("llama")
    found, wanted = [], []
    with torch.no_grad():
        for m, into in ((model, found), (expected, wanted)):
            cache = StaticCache(config=m.config, max_cache_len=40)
            for tokens in (inputs(2, 9), inputs(2, 1), inputs(2, 1, seed=5)):
                into.append(m(input_ids=tokens, past_key_values=cache).logits[:, -1])
    close(torch.stack(found), torch.stack(wanted))


@pytest.mark.parametrize("masked", [False, True])
def test_an_encoder(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = both("bert")
    calls = count_squares(monkeypatch)
    batch, _ = padded(left=False)
    if not masked:
        del batch["attention_mask"]
    found, wanted = (m(**batch).last_hidden_state for m in (model, expected))
    close(found, wanted)  # at padding too
    close(gradients(model, found), gradients(expected, wanted), 1e-5)
    assert not calls


def test_the_reference_gives_the_same() -> None:
    model, _ = both("gemma2")
    batch = packed()
    found = model(**batch, use_cache=False).logits
    with using("reference"):
        reference = model(**batch, use_cache=False).logits
        grads = gradients(model, reference)
    close(found, reference)
    close(gradients(model, found), grads, 1e-5)


def test_holes_take_the_ordinary_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = both("llama")
    calls = count_squares(monkeypatch)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 5:7] = 0
    close(*(m(input_ids=inputs(2), attention_mask=mask).logits for m in (model, expected)))
    assert sdpa_attention.sdpa_attention_forward in calls


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_other_types_take_the_ordinary_attention(name: str) -> None:
    model, expected = (m.to(torch.bfloat16) for m in both(name))
    batch = packed()
    close(*(m(**batch, use_cache=False).logits.float() for m in (model, expected)), 2e-2)
    with torch.autocast("cpu", torch.bfloat16):  # where the mask was made for fp32
        model.float(), expected.float()
        close(*(m(**batch, use_cache=False).logits.float() for m in (model, expected)), 2e-2)


def test_a_mask_of_the_callers_own() -> None:
    model, expected = both("llama")
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril() & (torch.rand(12, 12) < 0.7)
    mask |= torch.eye(12, dtype=torch.bool)
    close(*(m(input_ids=inputs(1), attention_mask=mask).logits for m in (model, expected)))


def heads(count: int = 2, length: int = 6) -> Tensor:
    return torch.randn(1, count, length, 8)


@pytest.mark.parametrize(
    "keywords",
    [
        {"s_aux": torch.zeros(2)},
        {"position_bias": torch.zeros(1, 2, 6, 6)},
        {"head_mask": torch.ones(2)},
        {"cu_seq_lens_q": torch.tensor([0, 6])},
    ],
)
def test_refuses_what_it_does_not_implement(keywords: dict[str, Any]) -> None:
    q, k, v = heads(), heads(), heads()
    with pytest.raises(ConfigError, match=f"{next(iter(keywords))}.*Identity.*eager"):
        rango_attention(nn.Identity(), q, k, v, None, **keywords)
    unset = dict.fromkeys(keywords)
    rango_attention(nn.Identity(), q, k, v, None, **unset)


def test_dropout_of_a_model_in_training_acts() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    outs = [rango_attention(nn.Identity(), q, k, v, None, dropout=0.5)[0] for _ in range(2)]
    assert not torch.allclose(*outs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 6), (4, 6), (6, 4)])
def test_without_a_mask_it_does_as_sdpa(causal: bool, queries: int, keys: int) -> None:
    q, k, v = heads(4, queries), heads(4, keys), heads(4, keys)
    found, _ = rango_attention(nn.Identity(), q, k, v, None, is_causal=causal)
    wanted, _ = sdpa_attention.sdpa_attention_forward(
        nn.Identity(), q, k, v, None, is_causal=causal
    )
    close(found, wanted)


def test_use() -> None:
    for name in ("llama", "gpt2", "gemma2", "bert", "mistral"):
        model = made(name).train()
        before = model(**packed(), use_cache=False)[0] if name == "llama" else None
        assert use_rango_attention(model)
        assert model.config._attn_implementation == NAME
        assert model.training
        assert use_rango_attention(model)
        if before is not None:
            close(model(**packed(), use_cache=False)[0], before)
        assert NAME not in model.config.to_json_string()


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_sequences_are_kept_apart(name: str) -> None:
    model = made(name)
    assert use_rango_attention(model)
    assert packing_probe(model).ok


def test_with_checkpointing() -> None:
    model, expected = both("qwen2")
    batch = packed()
    wanted = gradients(expected, expected(**batch, use_cache=False).logits)
    model.activation_checkpointing_enable()
    model.train()
    close(gradients(model, model(**batch, use_cache=False).logits), wanted, 1e-5)


def test_use_leaves_others_alone() -> None:
    falcon = made("falcon")
    before = falcon.config._attn_implementation
    assert not use_rango_attention(falcon)
    assert falcon.config._attn_implementation == before
    assert not use_rango_attention(nn.Linear(2, 2))
    chosen = made("llama")
    chosen.set_attn_implementation("eager")
    assert not use_rango_attention(chosen)
    assert chosen.config._attn_implementation == "eager"


@pytest.mark.parametrize("fault", ["wrong", "refused"])
def test_use_restores_after_a_probe_that_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if fault == "refused":
            raise ConfigError("no")
        out, weights = rango_attention(*args, **kwargs)
        return out * 1.01, weights

    monkeypatch.setitem(ours.AttentionInterface._global_mapping, NAME, faulty)
    assert not use_rango_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_mask_function_that_is_not_known() -> None:
    known = masking_utils.sliding_window_causal_mask_function(5)
    pattern = Pattern.of(known)
    assert pattern is not None
    assert (pattern.causal, pattern.window, pattern.packed) == (True, 5, None)
    for unknown in (
        masking_utils.and_masks(known, lambda b, h, q, k: q == k),
        masking_utils.or_masks(known, masking_utils.causal_mask_function),
        masking_utils.chunked_causal_mask_function(4, torch.zeros(1)),
        masking_utils.and_masks(known, masking_utils.bidirectional_mask_function),
        masking_utils.and_masks(
            masking_utils.causal_mask_function,
            masking_utils.sliding_window_bidirectional_overlay(3),
        ),
    ):
        assert Pattern.of(unknown) is None
        mask = rango_mask(1, 4, 4, mask_function=known, dtype=torch.float32)
        assert mask is not None
        assert is_table(mask)
    other = masking_utils.or_masks(known, masking_utils.causal_mask_function)
    mask = rango_mask(1, 4, 4, mask_function=other, dtype=torch.float32, allow_is_causal_skip=False)
    assert mask is not None
    assert torch.equal(mask[0, 0], torch.ones(4, 4, dtype=torch.bool).tril())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("queries", "keys", "ahead"), [(6, 6, 0), (1, 6, 5), (2, 7, 4), (3, 9, 2)])
@pytest.mark.parametrize("padding", [None, "left", "right", "all"])
def test_a_table_says_what_the_mask_says(
    causal: bool, window: int | None, queries: int, keys: int, ahead: int, padding: str | None
) -> None:
    mask = torch.ones(3, keys, dtype=torch.bool)
    if padding == "left":
        mask[1, :2] = False
    elif padding == "right":
        mask[2, keys - 2 :] = False
    elif padding == "all":
        mask[0] = False
    table = boundaries(
        Pattern(causal, window, None), 3, queries, keys, ahead, None if padding is None else mask
    )
    if table is None:
        assert not causal
        assert window is not None
        return
    q, k = torch.empty(3, 1, queries, 1), torch.empty(3, 1, keys, 1)
    found = square_mask(Table.read(table.written()), q, k)[:, 0]
    places, key_places = ahead + torch.arange(queries)[:, None], torch.arange(keys)
    distance = places - key_places
    wanted = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        wanted &= distance >= 0
    if window is not None:
        wanted &= distance < window if causal else distance.abs() <= window
    wanted = wanted & mask[:, None, :]
    real = torch.ones(3, queries, dtype=torch.bool)
    if causal:  # padding gets no answer
        real = torch.stack([row[ahead : ahead + queries] for row in mask])
        assert not found[~real].any()
    assert torch.equal(found[real], wanted[real])
