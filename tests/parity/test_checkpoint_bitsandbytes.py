"""NF4 checkpoints travel between Rango and bitsandbytes, through transformers, both ways.

Rows here are whole blocks of 64, and there are at least 32 of them: bitsandbytes 0.50's CPU kernels
unpack shorter rows wrongly and refuse fewer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, inputs
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

from rango.base.linear import NF4Linear
from rango.base.load import load_base
from rango.base.save import save_base
from rango.errors import CheckpointError

bnb = pytest.importorskip("bitsandbytes")

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "qwen2": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
    "phi": {"hidden_size": 64, "intermediate_size": 128},
    "gemma": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32},
    "bert": {"hidden_size": 64, "intermediate_size": 128},
}


def _auto(name: str) -> Any:
    return AutoModel if name == "bert" else AutoModelForCausalLM


def _theirs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The dequantized weight of every 4-bit layer."""
    return {
        name: bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }


def _ours(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: module.dequantize()
        for name, module in model.named_modules()
        if isinstance(module, NF4Linear)
    }


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return (
        bool(one)
        and one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in one)
    )


def _save(name: str, dtype: torch.dtype, folder: Path) -> Path:
    build(name, **SIZES[name]).to(dtype).save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("double_quant", [True, False])
def test_bitsandbytes_reads_what_rango_writes(name, double_quant, tmp_path):
    base = load_base(
        _save(name, torch.bfloat16, tmp_path / "base"), quantize="nf4", double_quant=double_quant
    )
    copy = save_base(base, tmp_path / "copy", shard_bytes=40_000)
    theirs, info = _auto(name).from_pretrained(copy, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert _equal(_ours(base.model), _theirs(theirs))
    with torch.no_grad():
        expected, found = base.model(inputs())[0].float(), theirs(inputs())[0].float()
    assert (expected - found).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("double_quant", [True, False])
def test_rango_reads_what_bitsandbytes_writes(name, double_quant, tmp_path):
    source = _save(name, torch.bfloat16, tmp_path / "base")
    theirs = _auto(name).from_pretrained(source, quantization_config=_config(double_quant))
    theirs.save_pretrained(tmp_path / "theirs")
    base = load_base(tmp_path / "theirs")
    assert (base.quantize, base.double_quant) == ("nf4", double_quant)
    assert _equal(_theirs(theirs), _ours(base.model))
    plain = dict(base.model.named_parameters())
    for key, parameter in theirs.named_parameters():
        if key in plain:
            assert torch.equal(plain[key], parameter), key


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_both_quantize_a_checkpoint_alike(name, tmp_path):
    """Identical without double quantization (with it, the mean's last bit may move a constant)."""
    source = _save(name, torch.float32, tmp_path / "base")
    theirs = _auto(name).from_pretrained(source, quantization_config=_config(double_quant=False))
    ours = load_base(source, quantize="nf4", double_quant=False)
    assert _equal(_theirs(theirs), _ours(ours.model))


def test_its_other_format_is_refused(tmp_path):
    source = _save("llama", torch.float32, tmp_path / "base")
    theirs = AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    )
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="quantized with bitsandbytes fp4; expected"):
        load_base(tmp_path / "theirs")


def _config(double_quant: bool) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
