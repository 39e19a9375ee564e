"""Merging sums once; unmerging gives the base back bit for bit."""

from __future__ import annotations

import pathlib

import pytest
import torch
from models import ALL, build, inputs

import rango
from rango.base.linear import Int8Linear, NF4Linear, QuantizedLinear
from rango.base.load import load_base
from rango.base.stored import StoredLinear


@pytest.mark.parametrize("name", [*ALL, "falcon_grouped", "phi3", "mixtral"])
@pytest.mark.parametrize("r", [1, 3, 5, 7])
def test_merged_equals_unmerged_and_comes_back(name: str, r: int) -> None:
    model, ids = build(name), inputs()
    base = model(input_ids=ids)[0]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = rango.attach(model, r=r, lora_alpha=2 * r)
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=0.1)
    unmerged = model(input_ids=ids)[0]
    adapted.merge()
    merged = model(input_ids=ids)[0]
    assert (merged - unmerged).norm() / unmerged.norm() < 1e-5
    assert (merged - base).norm() / base.norm() > 1e-3
    adapted.unmerge()
    assert torch.equal(model(input_ids=ids)[0], unmerged)
    adapted.detach()
    assert torch.equal(model(input_ids=ids)[0], base)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_parts_and_embeddings_merge() -> None:
    ids = inputs()
    for name, targets in (("gpt2", ["c_attn[q,v]", "wte"]), ("falcon_rw", ["query_key_value[k]"])):
        model = build(name)
        adapted = rango.attach(model, r=3, target_modules=targets)
        adapted.bank.parameters.normal_(std=0.1)
        unmerged = model(input_ids=ids)[0]
        adapted.merge()
        torch.testing.assert_close(model(input_ids=ids)[0], unmerged, rtol=1e-4, atol=1e-5)
        if name == "gpt2":  # the head is tied to the embedding, and keeps the base's weight
            assert model.lm_head.weight is model.transformer.wte.base_layer.weight or not (
                torch.equal(model.lm_head.weight, model.transformer.wte.weight)
            )
        adapted.detach()


@pytest.mark.parametrize("kind", [NF4Linear, Int8Linear])
def test_a_quantized_layer_merges_into_a_dense_one(kind: type[QuantizedLinear]) -> None:
    torch.manual_seed(0)
    layer = kind.from_weight(torch.randn(24, 64), torch.randn(24))
    model = torch.nn.Sequential(layer)
    packed = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = rango.attach(model, r=3, target_modules=["0"])
    adapted.bank.parameters.normal_()
    x = torch.randn(5, 64)
    unmerged = model(x)
    adapted.merge()
    assert (model(x) - unmerged).norm() / unmerged.norm() < 1e-5
    assert isinstance(adapted.modules["0"].base_layer, torch.nn.Linear)
    adapted.unmerge()
    assert torch.equal(model(x), unmerged)
    assert adapted.detach()[0] is layer
    assert all(torch.equal(value, packed[key]) for key, value in model.state_dict().items())


def test_a_quantized_layer_merges_into_the_type_the_model_computes_in() -> None:
    torch.manual_seed(0)
    stored = NF4Linear.from_weight(torch.randn(24, 64).bfloat16(), double_quant=False)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), stored)
    adapted = rango.attach(model, r=3, target_modules=["1"])
    adapted.bank.parameters.normal_()
    x = torch.randn(5, 64)
    unmerged = model(x)
    adapted.merge()
    assert adapted.modules["1"].weight.dtype == torch.float32
    assert (model(x) - unmerged).norm() / unmerged.norm() < 1e-5


def test_a_merge_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build("llama"), inputs()
    adapted = rango.attach(model, r=2)
    adapted.bank.parameters.normal_(std=0.1)
    before = model(input_ids=ids)[0]
    whole, calls = rango.adapters.merge.merged_module, []

    def short_of_memory(*arguments: object) -> torch.nn.Module:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return whole(*arguments)

    monkeypatch.setattr(rango.adapters.merge, "merged_module", short_of_memory)
    with pytest.raises(MemoryError):
        adapted.merge()
    assert torch.equal(model(input_ids=ids)[0], before)


def test_while_merged_nothing_pretends_to_be_the_base() -> None:
    adapted = rango.attach(build("llama"), r=2, rows=2)
    adapted.merge()
    for act in (
        adapted.disable,
        lambda: adapted.scale(0, 0.5),
        lambda: adapted.route(rango.Routing.base()).__enter__(),
        lambda: adapted.disabled().__enter__(),
    ):
        with pytest.raises(rango.RangoError, match="unmerge"):
            act()


def test_a_model_that_moves_while_merged_comes_back_whole() -> None:
    model, ids = build("llama"), inputs()
    adapted = rango.attach(model, r=2)
    adapted.merge()
    model.double()
    adapted.unmerge()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(input_ids=ids)[0].dtype == torch.float64


@pytest.mark.parametrize("name", ["gemma", "llama"])
def test_an_embedding_that_scales_its_output_scales_the_update(name: str) -> None:
    model, ids = build(name), inputs()
    adapted = rango.attach(model, r=3, target_modules=["embed_tokens"])
    adapted.bank.parameters.normal_(std=0.1)
    unmerged = model(input_ids=ids)[0]
    adapted.merge()
    merged = model(input_ids=ids)[0]
    assert (merged - unmerged).norm() / unmerged.norm() < 1e-5


def test_a_merged_factor_and_a_bf16_base() -> None:
    model, ids = build("llama").bfloat16(), inputs()
    adapted = rango.attach(model, r=3)
    adapted.bank.parameters.normal_(std=0.1)
    adapted.scale(0, 0.5)
    site = adapted.sites["model.layers.0.mlp.up_proj"]
    weight = model.model.layers[0].mlp.up_proj.weight
    lora_A, lora_B = site.factors(0)
    expected = weight.float() + 0.5 * site.scalings[0] * (lora_B @ lora_A)
    unmerged = model(input_ids=ids)[0]
    adapted.merge()
    merged_weight = model.model.layers[0].mlp.up_proj.base_layer.weight
    assert merged_weight.dtype == torch.bfloat16
    torch.testing.assert_close(merged_weight, expected.bfloat16(), rtol=2**-7, atol=0)
    torch.testing.assert_close(model(input_ids=ids)[0], unmerged, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_quantized_layer_merges_into_16_bits_whatever_the_arithmetic(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Int8Linear.from_weight(torch.randn(24, 64).to(dtype), torch.randn(24))
    delta = torch.randn(24, 64)
    merged = rango.adapters.merge.merged_module(layer, delta)
    assert isinstance(merged, StoredLinear)
    expected = (layer.dequantize(torch.float32) + delta).to(dtype)
    assert torch.equal(merged.weight, expected)
    x = torch.randn(5, 64)
    torch.testing.assert_close(merged(x), x @ expected.float().T + layer.bias)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma", "bert"])
def test_a_base_kept_in_bf16_is_summed_in_fp32_and_cast_once(
    name: str, tmp_path: pathlib.Path
) -> None:
    build(name).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    base, ids = load_base(tmp_path / "base"), inputs()
    before = base.model(input_ids=ids)[0]
    adapted = rango.attach(base, r=3)
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=0.1)
    unmerged = base.model(input_ids=ids)[0]
    weights = {key: module.weight.detach() for key, module in adapted.modules.items()}
    adapted.merge()
    for key, module in adapted.modules.items():
        delta = rango.adapters.merge.module_delta(module, 0)
        delta = delta.T if name == "gpt2" else delta
        expected = (weights[key].float() + delta).to(torch.bfloat16)
        assert torch.equal(module.weight, expected)
    merged = base.model(input_ids=ids)[0]
    assert merged.dtype == torch.float32
    assert (merged - unmerged).norm() <= 0.02 * unmerged.norm()
    adapted.detach()
    assert torch.equal(base.model(input_ids=ids)[0], before)
