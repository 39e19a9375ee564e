"""int8 against bitsandbytes on CPU: the same bits of a weight, and each reads the other's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, inputs
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

from rango.base.linear import Int8Linear
from rango.base.load import load_base
from rango.base.save import save_base
from rango.numerics.int8 import dequantize_int8, quantize_int8

bnb = pytest.importorskip("bitsandbytes")

NAMES = ["llama", "qwen2", "gpt2", "phi", "gemma", "bert"]


def _weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (9, 64), (130, 127), (64, 896), (700, 900)])
def test_bits_are_theirs(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = _weight(*shape, dtype=dtype) * 0.02
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(weight.clone())
    ours = quantize_int8(weight)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.scales, scales)
    unpacked = bnb.functional.int8_vectorwise_dequant(codes, scales)
    assert torch.equal(dequantize_int8(ours, torch.float32), unpacked)


@pytest.mark.parametrize("tiny", [0.0, 1e-44, 1e-38])
def test_rows_of_nothing_are_theirs(tiny: float) -> None:
    weight = _weight(4, 64)
    weight[1] = tiny
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(weight.clone())
    ours = quantize_int8(weight)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.scales, scales)


def _auto(name: str) -> Any:
    return AutoModel if name == "bert" else AutoModelForCausalLM


def _save(name: str, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """In fp16, which is what bitsandbytes casts a weight to before it quantizes."""
    build(name).to(dtype).save_pretrained(folder, max_shard_size="60KB")
    return folder


def _theirs(model: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Codes and constants of every 8-bit layer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            held = module.weight if module.weight.CB is not None else module.state
            found[name] = (held.CB, held.SCB)
    return found


def _ours(model: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (module.codes, module.scales)
        for name, module in model.named_modules()
        if isinstance(module, Int8Linear)
    }


def _equal(one: dict[str, tuple[Tensor, Tensor]], other: dict[str, tuple[Tensor, Tensor]]) -> bool:
    return (
        bool(one)
        and one.keys() == other.keys()
        and all(
            torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_rango_reads_what_bitsandbytes_writes(name: str, tmp_path: Path) -> None:
    source = _save(name, tmp_path / "base")
    theirs = _auto(name).from_pretrained(
        source, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    theirs.save_pretrained(tmp_path / "theirs")
    base = load_base(tmp_path / "theirs")
    assert base.quantize == "int8"
    assert base.dtype == torch.float16
    assert _equal(_theirs(theirs), _ours(base.model))
    assert _equal(_theirs(theirs), _ours(load_base(source, quantize="int8").model))
    plain = dict(base.model.named_parameters())
    for key, parameter in theirs.named_parameters():
        if key in plain:
            assert torch.equal(plain[key].float(), parameter.float()), key


@pytest.mark.parametrize("name", NAMES)
def test_bitsandbytes_reads_what_rango_writes(name: str, tmp_path: Path) -> None:
    base = load_base(_save(name, tmp_path / "base", torch.bfloat16), quantize="int8")
    copy = save_base(base, tmp_path / "copy", shard_bytes=40_000)
    theirs, info = _auto(name).from_pretrained(copy, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert _equal(_ours(base.model), _theirs(theirs))
    with torch.no_grad():
        expected, found = base.model(inputs())[0], theirs(inputs())[0].float()
    # its products round the inputs to 8 bits too
    assert (expected - found).norm() <= 0.05 * expected.norm()


def test_the_configuration_is_theirs(tmp_path: Path) -> None:
    source = _save("llama", tmp_path / "base")
    theirs = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    written = theirs.config.quantization_config.to_dict()
    import json

    copy = save_base(load_base(source, quantize="int8"), tmp_path / "copy")
    ours = json.loads((copy / "config.json").read_text())["quantization_config"]
    expected = {**written, "quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head"]}
    assert ours == expected
