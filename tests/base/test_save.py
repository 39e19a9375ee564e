from __future__ import annotations

import errno
import json

import pytest
import torch
from models import inputs
from transformers import AutoModelForCausalLM

from rango.base import save
from rango.base.linear import Int8Linear, NF4Linear
from rango.base.load import base_from_model, load_base
from rango.base.save import save_base
from rango.errors import CheckpointError, OutputExistsError, StorageError


@pytest.mark.parametrize("name", ["llama", "qwen2", "falcon", "gpt2", "mixtral", "bert"])
@pytest.mark.parametrize("shard_bytes", [30_000, 10**9])
def test_what_is_written_is_read_back(name, shard_bytes, saved, tmp_path):
    folder, model = saved(name)
    copy = save_base(load_base(folder), tmp_path / "copy", shard_bytes=shard_bytes)
    assert (copy / "model.safetensors").exists() == (shard_bytes == 10**9)
    with torch.no_grad():
        assert torch.equal(load_base(copy).model(inputs())[0], model(inputs())[0])


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi", "gemma", "bert"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "double_quant"), [("nf4", True), ("nf4", False), ("int8", True)])
def test_what_is_quantized_is_read_back_bit_for_bit(
    name, kind, double_quant, stored, saved, tmp_path
):
    base = load_base(saved(name, stored)[0], quantize=kind, double_quant=double_quant)
    again = load_base(save_base(base, tmp_path / "copy"))
    assert (again.quantize, again.double_quant) == (kind, double_quant)
    assert (again.dtype, again.compute) == (stored, torch.float32)
    assert again.fingerprint == base.fingerprint
    expected, found = base.model.state_dict(), again.model.state_dict()
    assert set(expected) == set(found)
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key
    with torch.no_grad():
        assert torch.equal(base.model(inputs())[0], again.model(inputs())[0])


def test_what_is_not_quantized_is_listed_by_name(saved, tmp_path):
    base = load_base(saved("llama")[0], quantize="nf4")
    base.model.set_submodule(
        "model.layers.0.mlp.up_proj", torch.nn.Linear(32, 64, bias=False).requires_grad_(False)
    )
    copy = save_base(base, tmp_path / "copy")
    skipped = json.loads((copy / "config.json").read_text())["quantization_config"]
    assert skipped["llm_int8_skip_modules"] == ["model.layers.0.mlp.up_proj", "lm_head"]
    up = load_base(copy).model.model.layers[0].mlp.up_proj
    assert not isinstance(up, NF4Linear)


def test_two_kinds_of_quantized_layers_are_refused(saved, tmp_path):
    base = load_base(saved("llama")[0], quantize="nf4")
    other = Int8Linear.from_weight(base.model.model.layers[0].mlp.up_proj.weight)
    base.model.set_submodule("model.layers.0.mlp.up_proj", other)
    with pytest.raises(CheckpointError, match="holds NF4 and int8 layers"):
        save_base(base, tmp_path / "copy")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_layers_that_bitsandbytes_cannot_read_are_named(kind, saved, tmp_path):
    base = load_base(saved("falcon")[0], quantize=kind)
    with pytest.raises(CheckpointError) as raised:
        save_base(base, tmp_path / "copy")
    for layer in (0, 1):
        for name in ("self_attention.query_key_value", "mlp.dense_4h_to_h"):
            assert f"transformer.h.{layer}.{name}" in str(raised.value)
    assert not (tmp_path / "copy").exists()


def test_transformers_reads_it(saved, tmp_path):
    base = load_base(saved("llama", torch.bfloat16)[0], compute="as stored")
    copy = save_base(base, tmp_path / "copy")
    theirs = AutoModelForCausalLM.from_pretrained(copy)
    assert theirs.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(theirs(inputs())[0], base.model(inputs())[0])


def test_a_cast_base_says_its_new_dtype(saved, tmp_path):
    copy = save_base(load_base(saved("llama")[0], dtype="bf16"), tmp_path / "copy")
    assert load_base(copy).dtype == torch.bfloat16
    assert json.loads((copy / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_tokenizer_comes_along(saved, tmp_path):
    folder, model = saved("llama")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "notes.txt").write_text("private")
    copy = save_base(load_base(folder), tmp_path / "copy")
    assert (copy / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (copy / "tokenizer.json").exists()
    assert (copy / "generation_config.json").exists()
    assert not (copy / "notes.txt").exists()
    in_memory = save_base(base_from_model(model), tmp_path / "other")
    assert (in_memory / "generation_config.json").exists()


def test_nothing_is_overwritten_unasked(saved, tmp_path):
    base = load_base(saved("llama")[0])
    copy = save_base(base, tmp_path / "copy")
    with pytest.raises(OutputExistsError):
        save_base(base, copy)
    save_base(base, copy, overwrite=True)


def test_a_full_disk_leaves_nothing(saved, tmp_path, monkeypatch):
    base = load_base(saved("llama")[0])

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save, "save_file", full)
    with pytest.raises(StorageError, match="the disk is full"):
        save_base(base, tmp_path / "out" / "copy")
    assert list((tmp_path / "out").iterdir()) == []
