from __future__ import annotations

import json

import pytest
import torch
from models import build

from rango.base.fingerprint import FACTS, combine, digest_tensor, fingerprint
from rango.base.load import base_from_model, load_base
from rango.base.save import save_base
from rango.errors import CheckpointError


def test_its_definition_never_changes():
    tensors = {
        "b.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
        "a.bias": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "step": torch.tensor(7),
    }
    found = combine((digest_tensor(name, tensor) for name, tensor in tensors.items()), None)
    assert found == "blake3:80e127b3a783bc80f35bcc285c54a6c18022400059325dad260bbc83326ccd55"


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral", "bert"])
def test_is_the_same_however_a_base_is_loaded(name, saved):
    folder, model = saved(name)
    expected = fingerprint(folder)
    assert load_base(folder).fingerprint == expected
    assert load_base(folder, quantize="nf4").fingerprint == expected
    assert load_base(folder, dtype="bf16").fingerprint == expected
    assert base_from_model(model).fingerprint == expected


def test_does_not_depend_on_the_sharding(saved, files):
    folder, _ = saved("llama")
    before = fingerprint(folder)
    files.rewrite(folder, dict(reversed(files.tensors(folder).items())))
    assert fingerprint(folder) == before


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype", "more"])
def test_depends_on_every_tensor(change, saved, files):
    folder, _ = saved("llama")
    before = fingerprint(folder)
    tensors = files.tensors(folder)
    weight = tensors.pop("model.layers.0.mlp.up_proj.weight")
    name = "model.layers.0.mlp.up_proj.weight"
    if change == "value":
        weight.view(torch.int32)[3, 3] ^= 1
    elif change == "name":
        name = "model.layers.0.mlp.up_project.weight"
    elif change == "shape":
        weight = weight.view(32, 64)
    elif change == "dtype":
        weight = weight.view(torch.bfloat16).view(64, 64)
    else:
        tensors["more"] = torch.zeros(1)
    files.rewrite(folder, tensors | {name: weight})
    assert fingerprint(folder) != before


def test_a_stored_tied_head_changes_nothing(saved, files):
    folder, _ = saved("qwen2")
    before = fingerprint(folder)
    tensors = files.tensors(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    files.rewrite(folder, tensors)
    assert fingerprint(folder) == before
    assert load_base(folder).fingerprint == before
    tensors["lm_head.weight"][0, 0] += 1
    files.rewrite(folder, tensors)
    assert fingerprint(folder) != before


def test_an_untied_head_counts(saved, files):
    folder, _ = saved("llama")
    before = fingerprint(folder)
    tensors = files.tensors(folder)
    tensors["lm_head.weight"], tensors["model.embed_tokens.weight"] = (
        tensors["model.embed_tokens.weight"],
        tensors["lm_head.weight"],
    )
    files.rewrite(folder, tensors)
    assert fingerprint(folder) != before


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_converted_copy_carries_its_sources(quantize, saved, tmp_path):
    folder, _ = saved("llama")
    base = load_base(folder, quantize=quantize, dtype="bf16")
    copy = save_base(base, tmp_path / "copy")
    assert load_base(copy).fingerprint == base.fingerprint == fingerprint(folder)
    again = save_base(load_base(copy), tmp_path / "again")
    assert fingerprint(again) == base.fingerprint


def test_a_note_about_other_tensors_is_not_believed(saved, tmp_path, files):
    folder, _ = saved("llama")
    copy = save_base(load_base(folder, dtype="bf16"), tmp_path / "copy")
    tensors = files.tensors(copy)
    tensors["model.norm.weight"] += 1
    files.rewrite(copy, tensors)
    assert load_base(copy).fingerprint != fingerprint(folder)


def test_a_malformed_note(saved, tmp_path):
    copy = save_base(load_base(saved("llama")[0]), tmp_path / "copy")
    facts = json.loads((copy / FACTS).read_text())
    facts["base"]["fingerprint"] = 3
    (copy / FACTS).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"base.fingerprint: expected 'blake3:…', found 3"):
        load_base(copy)


def test_two_models_differ():
    assert base_from_model(build("llama")).fingerprint != (
        base_from_model(build("llama", seed=1)).fingerprint
    )
