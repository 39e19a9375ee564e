from __future__ import annotations

import json

import pytest
import torch

from rango.base.inspect import inspect_base
from rango.base.linear import QuantizedLinear
from rango.base.load import load_base
from rango.base.save import save_base
from rango.errors import CheckpointError


def test_a_plain_base(saved):
    folder, model = saved("llama")
    facts = inspect_base(load_base(folder))
    assert facts == inspect_base(folder)
    assert (facts.architecture, facts.model_type) == ("LlamaForCausalLM", "llama")
    assert (facts.quantize, facts.dtype, facts.layers) == ("none", "float32", ())
    assert facts.parameters["total"] == model.num_parameters()
    assert facts.parameters["embedding"] == facts.parameters["head"] == 128 * 32
    assert facts.parameters["other"] == 5 * 32
    assert facts.nbytes == 4 * model.num_parameters()
    assert facts.ratio_linear == facts.ratio_whole == 1
    assert not facts.tied
    assert facts.error is None
    json.dumps(facts.as_dict())


def test_tied_weights_count_once(saved):
    folder, model = saved("qwen2")
    facts = inspect_base(folder)
    assert facts.tied
    assert facts.parameters["head"] == 0
    assert facts.parameters["total"] == model.num_parameters()


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "bert"])
@pytest.mark.parametrize(("kind", "least", "most"), [("nf4", 0.05, 0.15), ("int8", 0.002, 0.01)])
def test_what_quantization_loses(name, kind, least, most, saved):
    folder, model = saved(name)
    base = load_base(folder, quantize=kind)
    facts = inspect_base(base)
    dry = inspect_base(folder, quantize=kind)
    assert facts.quantize == dry.quantize == kind
    assert facts.double_quant == dry.double_quant == (kind == "nf4")
    assert dry.nbytes == facts.nbytes
    assert dry.error == pytest.approx(facts.error)
    assert {layer.name: layer for layer in dry.layers} == {la.name: la for la in facts.layers}
    assert facts.parameters["total"] == dry.parameters["total"] == model.num_parameters()
    modules, original = dict(base.model.named_modules()), dict(model.named_modules())
    assert {la.name for la in facts.layers} == {
        key for key, module in modules.items() if isinstance(module, QuantizedLinear)
    }
    for layer in facts.layers:
        weight = original[layer.name].weight.detach()
        if type(original[layer.name]).__name__ == "Conv1D":
            weight = weight.T
        held = modules[layer.name].dequantize()
        assert layer.error == pytest.approx(((weight - held).norm() / weight.norm()).item())
        assert least < layer.error < most
        assert layer.zeros == pytest.approx((held == 0).float().mean().item())
        assert layer.ratio == weight.nbytes / layer.nbytes
    biases = sum(p.nbytes for n, p in base.model.named_parameters() if n.endswith("bias"))
    assert facts.nbytes > facts.linear_nbytes > 0
    assert facts.nbytes >= facts.linear_nbytes + biases
    assert facts.ratio_linear > facts.ratio_whole > 1


@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
def test_sizes_of_a_base_kept_in_16_bits(quantize, saved):
    """Norms are held in fp32; the rest takes half of what fp32 does, or is quantized."""
    folder, model = saved("llama", torch.bfloat16)
    base = load_base(folder, quantize=quantize)
    facts, dry = inspect_base(base), inspect_base(folder, quantize=quantize)
    assert facts.dtype == dry.dtype == "bfloat16"
    assert facts.nbytes == dry.nbytes
    held = [*base.model.parameters(), *(b for n, b in base.model.named_buffers() if "proj" in n)]
    assert facts.nbytes == sum(tensor.nbytes for tensor in held)
    if quantize == "none":
        assert facts.nbytes == 2 * model.num_parameters() + 2 * 5 * 32


def test_a_quantized_checkpoint_against_its_source(saved, tmp_path):
    folder, _ = saved("llama")
    base = load_base(folder, quantize="nf4", double_quant=False)
    copy = save_base(base, tmp_path / "copy")
    alone, compared = inspect_base(copy), inspect_base(copy, against=folder)
    assert alone.error is None
    assert all(layer.error is None for layer in alone.layers)
    assert compared.error == pytest.approx(inspect_base(base).error)
    assert alone.fingerprint == compared.fingerprint == base.fingerprint
    assert not alone.double_quant
    assert inspect_base(load_base(copy), against=folder).error == compared.error


def test_what_cannot_be_compared(saved, tmp_path):
    base = load_base(saved("llama")[0], quantize="nf4")
    copy = save_base(base, tmp_path / "copy")
    with pytest.raises(CheckpointError, match="is quantized itself"):
        inspect_base(base, against=copy)
    with pytest.raises(CheckpointError, match="no weights to compare with"):
        inspect_base(base, against=saved("gpt2")[0])
    other, _ = saved("llama", torch.bfloat16, intermediate_size=32)
    with pytest.raises(CheckpointError, match="the checkpoint to compare with is another model's"):
        inspect_base(base, against=other)
