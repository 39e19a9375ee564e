"""Fused decoder layers against transformers' own forward and plain autograd."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from models import build
from torch import Tensor

import rango
from rango.adapters.attach import Adapted
from rango.adapters.fused.attention import _SelfAttention
from rango.adapters.fused.layer import FusedLayer
from rango.adapters.fused.mlp import _GatedMlp
from rango.adapters.fused.norm import FusedNorm
from rango.adapters.recompute import recomputing
from rango.adapters.routing import Routing
from rango.kernels import dispatch

FUSED = ("llama", "mistral", "qwen2", "qwen3", "gemma")
COMPILED = [mode for mode in dispatch.available() if mode != "reference"]
pytestmark = pytest.mark.skipif(not COMPILED, reason="the compiled kernels are not installed")


@pytest.fixture(autouse=True)
def _over_the_kernels() -> Iterator[None]:
    """Whatever RANGO_KERNELS says."""
    with dispatch.using(COMPILED[0]):
        yield


POSITIONS = torch.cat([torch.arange(9), torch.arange(14)])[None]
IDS = torch.randint(2, 100, (1, 23), generator=torch.Generator().manual_seed(0))


def _attached(name: str, mode: str, **fields: Any) -> Adapted:
    """A tiny model with adapters that act, attached under a mode of the kernels."""
    with dispatch.using(mode):
        adapted = rango.attach(build(name), r=3, lora_alpha=6, **fields)
    generator = torch.Generator().manual_seed(1)
    adapted.bank.parameters.copy_(
        torch.randn(adapted.bank.parameters.shape, generator=generator) / 8
    )
    return adapted


def _step(adapted: Adapted, mode: str, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Logits and the gradient table of one pass."""
    arguments = {"input_ids": IDS, "position_ids": POSITIONS, "use_cache": False} | inputs
    with dispatch.using(mode):
        logits = adapted.model(**arguments).logits
        logits.log_softmax(dim=-1)[..., 5].sum().backward()
    assert adapted.bank.gradients is not None
    return logits.detach(), adapted.bank.gradients


@contextmanager
def _counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the fused halves that ran within the block."""
    ran: list[str] = []
    for function in (_SelfAttention, _GatedMlp):
        forward: Callable[..., Any] = function.forward

        def counting(
            *args: Any, forward: Callable[..., Any] = forward, name: str = function.__name__
        ) -> Any:
            ran.append(name)
            return forward(*args)

        monkeypatch.setattr(function, "forward", staticmethod(counting))
    yield ran
    monkeypatch.undo()


def _close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm()) <= 2e-5 * float(expected.norm())


@pytest.mark.parametrize("mode", COMPILED)
@pytest.mark.parametrize("name", FUSED)
def test_a_packed_pass_and_its_gradients(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _step(_attached(name, "reference"), "reference")
    fused = _attached(name, mode)
    assert fused.fusion is not None
    assert set(fused.fusion.paths.values()) == {"fused"}
    with _counted(monkeypatch) as ran:
        found = _step(fused, mode)
    assert ran == ["_SelfAttention", "_GatedMlp"] * 2
    for ours, theirs in zip(found, plain, strict=True):
        _close(ours, theirs)


@pytest.mark.parametrize("name", FUSED)
def test_rows_of_several_adapters(name: str) -> None:
    """Sequences of two rows and of none, and dropout, in one batch."""
    results = []
    for mode in ("reference", COMPILED[0]):
        adapted = _attached(name, mode, rows=2, lora_dropout=0.3)
        adapted.train()
        adapted.dropout_key(3)
        rows = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3 + [0] * 11])
        with adapted.route(Routing.tokens(rows, torch.linspace(0.5, 2, 23)[None])):
            results.append(_step(adapted, mode))
    for ours, theirs in zip(results[1], results[0], strict=True):
        _close(ours, theirs)


@pytest.mark.parametrize("rows", [1, 2])
def test_recomputing_gives_the_same_bits_and_keeps_less(rows: int) -> None:
    kept: dict[bool, int] = {}
    found = {}
    for recompute in (False, True):
        adapted = _attached("qwen3", COMPILED[0], rows=rows)
        with recomputing(adapted.model, recompute):
            found[recompute], kept[recompute] = _kept_in_a_step(adapted)
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert torch.equal(ours, theirs)
    assert kept[True] < 0.6 * kept[False]


def test_short_sequences_attend_again_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[bool, int] = {}
    found = {}
    for again in (False, True):
        monkeypatch.setattr("rango.adapters.fused.attention._CHEAP", 0 if again else 1e9)
        found[again], kept[again] = _kept_in_a_step(_attached("qwen3", COMPILED[0]))
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert torch.equal(ours, theirs)
    assert kept[True] < 0.95 * kept[False]


def _kept_in_a_step(adapted: Adapted) -> tuple[tuple[Tensor, Tensor], int]:
    """What _step gives, and the bytes saved for its backward pass."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = _step(adapted, COMPILED[0])
    # one storage counts once: each half's input is the output of the one before
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return found, sum(storages.values())


def test_the_cache_decodes_what_the_plain_model_does() -> None:
    found = []
    for mode in ("reference", COMPILED[0]):
        adapted = _attached("llama", mode)
        prompt = torch.cat([torch.zeros(1, 3, dtype=torch.int64), IDS[:, :8]], dim=1)
        batch = torch.cat([prompt, IDS[:, :11]])  # the first is padded on the left
        with dispatch.using(mode), torch.no_grad():
            found.append(
                adapted.model.generate(
                    batch, attention_mask=(batch != 0).long(), max_new_tokens=9, do_sample=False
                )
            )
    assert torch.equal(found[0], found[1])


def test_hooks_take_the_plain_way() -> None:
    adapted = _attached("llama", COMPILED[0])
    seen = []
    handle = adapted.model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    _step(adapted, COMPILED[0])
    assert seen == [1]
    handle.remove()
    output = adapted.model(IDS, output_hidden_states=True, use_cache=False)
    assert len(output.hidden_states) == 3


def test_a_base_weight_that_is_trained_takes_the_plain_way() -> None:
    adapted = _attached("llama", COMPILED[0])
    weight = adapted.model.model.layers[1].post_attention_layernorm.weight.requires_grad_(True)
    last = adapted.model.model.norm.weight.requires_grad_(True)
    _step(adapted, COMPILED[0])
    assert weight.grad is not None
    assert last.grad is not None


def test_nothing_below_the_lowest_adapted_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = _attached("llama", COMPILED[0], target_modules=["layers.1.mlp.down_proj"])
    products = []
    before = rango.adapters.projection.sum_products

    def counting(terms: Any, **keywords: Any) -> Tensor:
        products.append(len(terms))
        return before(terms, **keywords)

    logits = adapted.model(IDS, use_cache=False).logits
    monkeypatch.setattr(rango.adapters.projection, "sum_products", counting)
    logits.sum().backward()
    # down_proj's own g_h, dA and dB; no gradient for anything below it
    assert len(products) == 3


def test_detaching_leaves_nothing_behind() -> None:
    model = build("llama")
    before = {name: type(module) for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    adapted = rango.attach(model, r=2)
    assert any(isinstance(module, FusedLayer) for module in model.modules())
    assert any(isinstance(module, FusedNorm) for module in model.modules())
    names = list(model.state_dict())
    assert not any("fused" in name for name in names)
    adapted.detach()
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == attention


def test_a_subclass_is_not_fused() -> None:
    model = build("llama")
    layer = model.model.layers[0]
    layer.__class__ = type("Changed", (type(layer),), {})
    adapted = rango.attach(model, r=2)
    assert not isinstance(layer, FusedLayer)
    assert isinstance(adapted.model.model.layers[1], FusedLayer)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("part", ["act_fn", "mlp", "norm", "causal"])
def test_a_layer_of_other_parts_stays_plain(part: str, index: int) -> None:
    outputs = []
    for mode in ("reference", COMPILED[0]):
        model = build("llama")
        layer = model.model.layers[index]
        if part == "act_fn":
            layer.mlp.act_fn = torch.nn.Tanh()
        elif part == "mlp":
            layer.mlp.__class__ = type(
                "Other", (type(layer.mlp),), {"forward": lambda self, x: self.down_proj(x.tile(2))}
            )
        elif part == "norm":
            layer.input_layernorm = torch.nn.LayerNorm(32)
        else:
            layer.self_attn.is_causal = False
        with dispatch.using(mode), torch.no_grad():
            adapted = rango.attach(model, r=2)
            outputs.append(adapted.model(IDS, use_cache=False).logits)
        fused = [isinstance(module, FusedLayer) for module in model.model.layers]
        assert fused == [mode != "reference" and place != index for place in range(2)]
    _close(outputs[1], outputs[0])


def test_what_changes_after_attaching_is_honoured() -> None:
    adapted = _attached("llama", COMPILED[0])
    layers = adapted.model.model.layers
    before = _step(adapted, COMPILED[0])[0]
    layers[0].mlp.forward = lambda x: x * 0
    assert not torch.allclose(_step(adapted, COMPILED[0])[0], before)
    del layers[0].mlp.forward
    adapted.model.model.norm.weight = torch.nn.Parameter(adapted.model.model.norm.weight * 3)
    torch.testing.assert_close(_step(adapted, COMPILED[0])[0], 3 * before, rtol=1e-4, atol=1e-4)


def test_hooks_on_an_adapted_linear_run() -> None:
    model = build("phi")
    seen = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: seen.append(1))
    adapted = rango.attach(model, r=2)
    seen.clear()  # of the probes
    adapted.model(IDS)
    assert seen == [1]


def test_fused_again_after_hidden_states_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = _attached("llama", COMPILED[0])
    adapted.model(IDS, output_hidden_states=True, use_cache=False)
    with _counted(monkeypatch) as ran:
        _step(adapted, COMPILED[0])
    assert len(ran) == 4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_in_training_mode_drops_out(name: str) -> None:
    adapted = _attached(name, COMPILED[0])
    if name == "llama":
        for layer in adapted.model.model.layers:
            layer.self_attn.attention_dropout = 0.5
    adapted.model.train()
    first, second = (adapted.model(IDS, use_cache=False).logits for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_adapters_that_are_not_trained_get_no_gradient(name: str) -> None:
    adapted = _attached(name, COMPILED[0], rows=2, trainable=False)
    x = torch.randn(1, 5, 32, requires_grad=True)
    adapted.model(inputs_embeds=x, use_cache=False).logits.sum().backward()
    assert x.grad is not None
    trained = _attached(name, COMPILED[0], rows=2)
    for leaf in trained.parameters():
        leaf.requires_grad_(False)
    trained.model(inputs_embeds=x, use_cache=False).logits.sum().backward()
    assert trained.bank.gradients is not None
    assert not trained.bank.gradients.any()


def test_copies_and_pickles() -> None:
    adapted = _attached("llama", COMPILED[0])
    expected = adapted.model(IDS).logits
    for twin in (copy.deepcopy(adapted.model), pickle.loads(pickle.dumps(adapted.model))):
        torch.testing.assert_close(twin(IDS).logits, expected)
        assert [type(layer).__name__ for layer in twin.model.layers] == ["LlamaDecoderLayer"] * 2


def test_a_model_that_takes_no_ids() -> None:
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(8, 8),
        conv_stride=(2, 2),
        conv_kernel=(3, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    model = transformers.Wav2Vec2ForCTC(config).eval()
    adapted = rango.attach(model, r=2, target_modules=["q_proj"])
    assert adapted.model(torch.randn(1, 400)).logits.isfinite().all()


def test_a_parameter_changed_between_the_passes_is_noticed() -> None:
    adapted = _attached("llama", COMPILED[0])
    loss = adapted.model(IDS, use_cache=False).logits.sum()
    with torch.no_grad():
        for leaf in adapted.parameters():
            leaf.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_layer_that_fails_its_probe_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rango.adapters.fused.mlp, "gated", lambda gate, up, _, out: out.copy_(gate * up)
    )
    adapted = rango.attach(build("llama"), r=2)
    assert not any(isinstance(module, FusedLayer) for module in adapted.model.modules())
    assert adapted.fusion is not None
    assert "differs" in adapted.fusion.paths["model.layers.0"]


def test_the_reference_fuses_nothing() -> None:
    adapted = _attached("llama", "reference")
    assert adapted.fusion is not None
    assert adapted.fusion.paths == {}
