"""Bases kept in 16 bits: the outputs are those of fp32 arithmetic over the rounded weights."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, inputs
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import OPTConfig, OPTForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.pytorch_utils import Conv1D

import rango
from rango.base import product
from rango.base.load import base_from_model, load_base
from rango.base.save import save_base
from rango.base.stored import (
    StoredConv1D,
    StoredEmbedding,
    StoredLinear,
    keep_as_stored,
    stored_dtype,
)

NARROW = [torch.bfloat16, torch.float16]
NAMES = [
    "llama",
    "qwen2",
    "falcon",
    "falcon_rw",
    "gpt2",
    "phi",
    "gemma",
    "gemma2",
    "phi3",
    "mixtral",
    "bert",
]
SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def _tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _parameter(*shape: int, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(_tensor(*shape).to(dtype), requires_grad=False)


def _pair(transposed: bool, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """A stored layer (40) -> (24), and the ordinary one of its widened weight."""
    b = nn.Parameter(_tensor(24, seed=5), requires_grad=False) if bias else None
    if transposed:
        weight = _parameter(40, 24)
        stored: nn.Module = StoredConv1D(weight, b)
        plain: nn.Module = Conv1D(24, 40)
    else:
        weight = _parameter(24, 40)
        stored = StoredLinear(weight, b)
        plain = nn.Linear(40, 24, bias=bias)
    plain.load_state_dict({k: v.float() for k, v in stored.state_dict().items()})
    return stored, plain.requires_grad_(False)


class TestLayers:
    @pytest.fixture(autouse=True, params=[1 << 20, 100, 1], ids=["whole", "pieces", "rows"])
    def _pieces(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(product, "_PIECE", request.param)

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40), (0, 40)])
    def test_outputs_and_gradients(self, shape: tuple[int, ...], transposed: bool) -> None:
        stored, plain = _pair(transposed)
        x = _tensor(*shape, seed=1).requires_grad_()
        y = stored(x)
        expected = nn.functional.linear(
            x, plain.weight.T if transposed else plain.weight, plain.bias
        )
        torch.testing.assert_close(y, expected)
        upstream = _tensor(*y.shape, seed=2)
        (ours,) = torch.autograd.grad(y, x, upstream)
        (theirs,) = torch.autograd.grad(expected, x, upstream)
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_gradients_of_any_order(self, transposed: bool) -> None:
        stored, _ = _pair(transposed)
        x = _tensor(3, 40).double().requires_grad_()
        assert torch.autograd.gradcheck(stored, (x,))
        assert torch.autograd.gradgradcheck(stored, (x,))

    @pytest.mark.parametrize("transposed", [False, True])
    def test_no_copy_of_the_weight_is_kept(self, transposed: bool) -> None:
        stored, _ = _pair(transposed)
        kept: list[Tensor] = []
        with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = stored(_tensor(2, 40).requires_grad_())
        assert not kept
        assert y.grad_fn.weight is stored.weight

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_computes_in_the_inputs_type(self, dtype: torch.dtype, transposed: bool) -> None:
        stored, plain = _pair(transposed)
        x = _tensor(5, 40).to(dtype)
        assert stored(x).dtype == dtype
        torch.testing.assert_close(stored(x), plain.to(dtype)(x))

    @given(st.integers(0, 20), st.integers(1, 50), st.integers(1, 50), st.booleans())
    def test_odd_shapes(self, tokens: int, out: int, into: int, transposed: bool) -> None:
        weight = _parameter(into, out) if transposed else _parameter(out, into)
        wide = weight.float().T if transposed else weight.float()
        bias = nn.Parameter(_tensor(out), requires_grad=False)
        stored = (StoredConv1D if transposed else StoredLinear)(weight, bias)
        x = _tensor(tokens, into, seed=7)
        torch.testing.assert_close(stored(x), nn.functional.linear(x, wide, bias))

    def test_a_weight_that_is_trained_gets_its_gradient(self) -> None:
        for transposed in (False, True):
            stored, plain = _pair(transposed)
            stored.requires_grad_(True)
            plain.requires_grad_(True)
            x = _tensor(3, 40)
            for layer in (stored, plain):
                layer(x).square().sum().backward()
            assert stored.weight.grad.dtype == torch.bfloat16
            torch.testing.assert_close(
                stored.weight.grad.float(), plain.weight.grad, rtol=2**-7, atol=1e-5
            )
            torch.testing.assert_close(stored.bias.grad, plain.bias.grad)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_a_model_may_change_the_output_in_place(self, transposed: bool) -> None:
        stored, plain = _pair(transposed)
        x = _tensor(2, 3, 40).requires_grad_()
        y = stored(x)
        y += 1
        y.sum().backward()
        assert torch.allclose(y, plain(x) + 1, atol=1e-5)

    def test_works_after_inference_mode(self) -> None:
        stored, _ = _pair(False)
        x = _tensor(2, 40)
        with torch.inference_mode():
            expected = stored(x)
        y = stored(x.requires_grad_())
        y.sum().backward()
        assert torch.equal(y, expected)


@pytest.mark.parametrize("scale", [1.0, 32**0.5])
@pytest.mark.parametrize("dtype", NARROW)
def test_an_embedding_is_widened_then_scaled(scale: float, dtype: torch.dtype) -> None:
    table = StoredEmbedding(_parameter(11, 6, dtype=dtype), padding_idx=3, embed_scale=scale)
    ids = torch.tensor([[0, 3, 10], [5, 5, 1]])
    expected = table.weight.float()[ids] * torch.tensor(scale)
    assert torch.equal(table(ids), expected)
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (11, 6, 3)
    assert list(table.state_dict()) == ["weight"]
    assert str(dtype) in repr(table)


def test_a_cast_of_the_model_is_followed() -> None:
    model = nn.Sequential(StoredEmbedding(_parameter(11, 40)), _pair(False)[0]).to(torch.bfloat16)
    assert model(torch.tensor([1, 2])).dtype == torch.bfloat16
    assert model.float()(torch.tensor([1, 2])).dtype == torch.float32


def test_a_table_that_does_more_than_look_up_is_widened() -> None:
    class LimitedScaledWordEmbedding(nn.Embedding):
        embed_scale = 2.0

        def forward(self, ids: Tensor) -> Tensor:
            return (super().forward(ids) * self.embed_scale).clamp(max=1)

    class DoubledScaledWordEmbedding(nn.Embedding):
        embed_scale = 2.0

        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * self.embed_scale

    model = nn.ModuleDict(
        {
            "limited": LimitedScaledWordEmbedding(9, 4),
            "doubled": DoubledScaledWordEmbedding(9, 4),
            "normed": nn.Embedding(9, 4, max_norm=1.0),
        }
    ).to(torch.bfloat16)
    keep_as_stored(model)
    assert {name: type(module).__name__ for name, module in model.items()} == {
        "limited": "LimitedScaledWordEmbedding",
        "doubled": "StoredEmbedding",
        "normed": "Embedding",
    }
    assert {name: m.weight.dtype for name, m in model.items()} == {
        "limited": torch.float32,
        "doubled": torch.bfloat16,
        "normed": torch.float32,
    }
    ids = torch.arange(9)
    assert torch.equal(model["doubled"](ids), model["doubled"].weight.float() * 2)


def _equal_to_fp32(folder: Any) -> rango.Base:
    base, reference = load_base(folder), load_base(folder, dtype="fp32")
    with torch.no_grad():
        found, expected = base.model(inputs())[0], reference.model(inputs())[0]
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    return base


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NAMES)
def test_a_stored_model_computes_what_its_fp32_copy_does(name, dtype, saved):
    folder, _ = saved(name, dtype)
    base = _equal_to_fp32(folder)
    assert (base.dtype, base.compute) == (dtype, torch.float32)
    assert stored_dtype(base.model) == dtype
    held = {k: p for k, p in base.model.named_parameters() if p.ndim == 2 and "gate.w" not in k}
    assert {p.dtype for p in held.values()} == {dtype}
    rest = [p for k, p in base.model.named_parameters() if k not in held]
    assert {t.dtype for t in [*rest, *base.model.buffers()]} <= {torch.float32, torch.int64}
    assert set(base.model.state_dict()) == set(load_base(folder, dtype="fp32").model.state_dict())


@pytest.mark.parametrize("projected", [16, 32])
def test_opt_whose_positions_are_a_class_of_their_own(projected, tmp_path):
    torch.manual_seed(0)
    config = OPTConfig(ffn_dim=64, word_embed_proj_dim=projected, **SMALL)
    OPTForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "opt")
    base = _equal_to_fp32(tmp_path / "opt")
    assert base.model.model.decoder.embed_positions.weight.dtype == torch.float32


def test_qwen3(tmp_path):
    torch.manual_seed(0)
    config = Qwen3Config(intermediate_size=64, num_key_value_heads=2, head_dim=8, **SMALL)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "qwen3")
    _equal_to_fp32(tmp_path / "qwen3")


def test_an_fp32_file_stays_ordinary(saved):
    model = load_base(saved("llama")[0]).model
    assert type(model.lm_head) is nn.Linear
    assert stored_dtype(model) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_an_fp32_file_kept_in_bf16_by_flag(name, saved):
    folder, model = saved(name)
    base = load_base(folder, dtype="bf16")
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 2:  # norms and biases stay as exact as the file has them
                parameter.copy_(parameter.bfloat16())
        expected, found = reference(inputs())[0], base.model(inputs())[0]
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma", "bert"])
def test_beside_quantized_layers(name, quantize, saved):
    folder, _ = saved(name, torch.bfloat16)
    base = load_base(folder, quantize=quantize)
    reference = load_base(folder, dtype="fp32", quantize=quantize)
    with torch.no_grad():
        found, expected = base.model(inputs())[0], reference.model(inputs())[0]
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert isinstance(base.model.get_input_embeddings(), StoredEmbedding)
    dense = load_base(folder, quantize=quantize, compute="as stored")
    assert type(dense.model.get_input_embeddings()).__name__ != "StoredEmbedding"
    assert dense.compute == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_the_copy_on_disk_is_the_file(name, saved, files, tmp_path):
    folder, _ = saved(name, torch.bfloat16)
    base = load_base(folder)
    assert base_from_model(base.model).fingerprint == base.fingerprint
    written = save_base(base, tmp_path / "copy")
    assert json.loads((written / "config.json").read_text())["dtype"] == "bfloat16"
    before, after = files.tensors(folder), files.tensors(written)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype, key
        assert torch.equal(after[key], tensor), key
    again = load_base(written)
    assert again.fingerprint == base.fingerprint


def test_what_would_be_rounded_is_written_in_fp32(saved, files, tmp_path):
    folder, _ = saved("llama", torch.bfloat16)
    tensors = files.tensors(folder)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-5
    files.rewrite(folder, tensors)
    base = load_base(folder)
    after = files.tensors(save_base(base, tmp_path / "copy"))
    assert torch.equal(after["model.norm.weight"], tensors["model.norm.weight"])
    assert after["model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma", "falcon"])
def test_adapters_attach_train_and_come_off(name, saved):
    folder, _ = saved(name, torch.bfloat16)
    base, reference = load_base(folder), load_base(folder, dtype="fp32")
    losses = []
    for held in (base, reference):
        adapted = rango.attach(held, r=3)
        torch.manual_seed(0)
        adapted.bank.parameters.normal_(std=0.1)
        logits = held.model(inputs())[0]
        logits.logsumexp(-1).sum().backward()
        losses.append((logits.detach(), adapted.bank.gradients.clone()))
        adapted.detach()
    for found, expected in zip(*losses, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    with torch.no_grad():
        assert torch.equal(base.model(inputs())[0], load_base(folder).model(inputs())[0])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generates_what_its_fp32_copy_does(name, saved):
    folder, _ = saved(name, torch.bfloat16)
    texts = [
        load_base(folder, dtype=dtype).model.generate(
            inputs(), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        for dtype in ("as stored", "fp32")
    ]
    assert torch.equal(*texts)


def test_a_model_in_memory_that_is_all_16_bits_is_left_alone():
    base = base_from_model(build("llama").to(torch.bfloat16))
    assert (base.dtype, base.compute) == (torch.bfloat16, torch.bfloat16)
