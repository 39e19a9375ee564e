"""The proof: it passes for what was trained, and fails for what was not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

from rango.adapters.attach import Adapted, attach
from rango.adapters.files import FACTS, TENSORS, save_adapter
from rango.base.load import Base, base_from_model, load_base
from rango.errors import AdapterError, VerificationError
from rango.evaluation import checks as checks_module
from rango.evaluation.probe import make_probe, observe
from rango.evaluation.proof import Proof, prove, verify, write_proof

SAMPLES = [ids.tolist() for ids in models.inputs(2, 12)]


def fill(adapted: Adapted, std: float = 0.03) -> Adapted:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(std=std, generator=generator)
    return adapted


def trained(base: Base, folder: Path, **fields: Any) -> list[torch.Tensor]:
    """What the end of a training does: note the outputs, save, detach."""
    adapted = fill(attach(base, r=3, **fields))
    expected = observe(adapted.model, SAMPLES)
    save_adapter(adapted, folder, facts={"proof": {"probe": make_probe(adapted, SAMPLES[0])}})
    adapted.detach()
    return expected


def failed(proof: Proof) -> list[str]:
    return [check.name for check in proof.checks if check.passed is False]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    models.build("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("name", models.ALL)
def test_passes_for_what_was_trained(name: str, tmp_path: Path) -> None:
    base = base_from_model(models.build(name))
    before = observe(base.model, SAMPLES)
    expected = trained(base, tmp_path / "adapter")
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    assert failed(proof) == []
    assert all(check.passed for check in proof.checks)
    proof.require()
    values = {check.name: check.value for check in proof.checks}
    assert values["read back"] == 0
    assert values["unmerged again"] == 0
    assert values["acts"] is not None
    assert values["acts"] > 1e-3
    assert set(proof.layers) == set(proof.coverage.modules)
    assert 0 < proof.coverage.share < 1
    assert proof.coverage.linear_share == pytest.approx(1) or name == "bert"
    # the base is bare again, and computes what it did
    for found, kept in zip(observe(base.model, SAMPLES), before, strict=True):
        assert torch.equal(found, kept)


def test_coverage_counts_weights_and_parts_of_fused_projections(tmp_path: Path) -> None:
    base = base_from_model(models.build("gpt2"))
    expected = trained(base, tmp_path / "adapter", target_modules=["c_attn[q]", "c_attn[v]"])
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    assert proof.passed
    covered = 2 * 2 * 32 * 32  # layers, parts, out, in
    linear = 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128)
    assert sum(proof.coverage.modules.values()) == covered
    assert proof.coverage.linear_share == pytest.approx(covered / linear)
    weights = sum(parameter.numel() for parameter in base.model.parameters())
    assert proof.coverage.share == pytest.approx(covered / weights)


def test_a_changed_file_or_other_outputs_fail(tmp_path: Path) -> None:
    base = base_from_model(models.build("llama"))
    expected = trained(base, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / TENSORS)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] *= 1.01
    save_file(tensors, tmp_path / "adapter" / TENSORS)
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    assert failed(proof) == ["read back"]
    with pytest.raises(VerificationError, match="read back"):
        proof.require()


def test_a_factor_that_never_moved_fails_and_is_named(tmp_path: Path) -> None:
    base = base_from_model(models.build("llama"))
    adapted = fill(attach(base, r=3))
    site = adapted.sites["model.layers.1.mlp.up_proj"]
    with torch.no_grad():
        site.B.zero_()
    expected = observe(adapted.model, SAMPLES)
    save_adapter(adapted, tmp_path / "adapter")
    adapted.detach()
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    assert failed(proof) == ["lora_B moved"]
    (check,) = [check for check in proof.checks if check.name == "lora_B moved"]
    assert (check.value, check.limit) == (13, 14)
    assert "model.layers.1.mlp.up_proj" in check.detail
    assert "lora_B moved" not in failed(verify(base, tmp_path / "adapter"))


def test_an_untrained_adapter_fails(tmp_path: Path) -> None:
    base = base_from_model(models.build("llama"))
    adapted = attach(base, r=3)
    expected = observe(adapted.model, SAMPLES)
    save_adapter(adapted, tmp_path / "adapter")
    adapted.detach()
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    assert failed(proof) == ["lora_B moved", "acts"]


def test_outputs_that_are_not_finite_fail_and_make_valid_json(tmp_path: Path) -> None:
    base = base_from_model(models.build("llama"))
    expected = trained(base, tmp_path / "adapter")
    expected[0][0, 0] = math.nan
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    assert failed(proof) == ["read back"]
    json.dumps(proof.as_dict(), allow_nan=False)


def test_a_merged_copy_that_does_not_fit_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_from_model(models.build("llama"))
    expected = trained(base, tmp_path / "adapter")
    monkeypatch.setattr(checks_module, "available_memory", lambda device: 1000)
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    (check,) = [check for check in proof.checks if check.name == "merged model"]
    assert check.passed is None
    assert "not run" in check.detail
    assert proof.passed


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_verify_repeats_it_from_disk(
    checkpoint: Path, tmp_path: Path, dtype: Any, quantize: Any
) -> None:
    base = load_base(checkpoint, dtype=dtype, quantize=quantize)
    expected = trained(base, tmp_path / "adapter")
    proof = prove(base, tmp_path / "adapter", samples=SAMPLES, expected=expected)
    assert failed(proof) == []
    write_proof(tmp_path / "adapter", proof)
    facts = json.loads((tmp_path / "adapter" / FACTS).read_text())
    assert facts["proof"]["passed"] is True
    assert facts["proof"]["checks"]["read back"]["value"] == 0
    again = verify(checkpoint, tmp_path / "adapter")
    assert failed(again) == []
    assert {check.name: check.passed for check in again.checks}["probe"] is True


def test_verify_quantizes_as_the_training_did(checkpoint: Path, tmp_path: Path) -> None:
    trained(load_base(checkpoint, quantize="nf4", double_quant=False), tmp_path / "adapter")
    proof = verify(checkpoint, tmp_path / "adapter")
    assert {check.name: check.passed for check in proof.checks}["probe"] is True


def test_verify_finds_another_adapter_in_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    trained(load_base(checkpoint), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / TENSORS)
    save_file({k: v * 1.1 for k, v in tensors.items()}, tmp_path / "adapter" / TENSORS)
    assert failed(verify(checkpoint, tmp_path / "adapter")) == ["probe"]


def test_verify_without_a_probe_or_over_another_kind_of_base(
    checkpoint: Path, tmp_path: Path
) -> None:
    trained(load_base(checkpoint), tmp_path / "adapter")
    other = verify(checkpoint, tmp_path / "adapter", quantize="nf4")
    probe = next(check for check in other.checks if check.name == "probe")
    assert probe.passed is None
    assert "'quantize': 'nf4'" in probe.detail
    (tmp_path / "adapter" / FACTS).unlink()
    bare = verify(checkpoint, tmp_path / "adapter", samples=SAMPLES)
    assert next(check for check in bare.checks if check.name == "probe").passed is None
    assert bare.passed


@pytest.mark.parametrize("probe", [{"ids": [1]}, {"ids": "x"}, {"ids": [3], "positions": [7]}])
def test_a_malformed_probe_is_named(checkpoint: Path, tmp_path: Path, probe: Any) -> None:
    trained(load_base(checkpoint), tmp_path / "adapter")
    path = tmp_path / "adapter" / FACTS
    facts = json.loads(path.read_text())
    facts["proof"]["probe"] = {
        "dtype": "float32",
        "quantize": "none",
        "double_quant": False,
        **probe,
    }
    path.write_text(json.dumps(facts))
    with pytest.raises(AdapterError, match="malformed"):
        verify(checkpoint, tmp_path / "adapter")


def test_prompts_serve_as_samples(demo_base: Path, tmp_path: Path) -> None:
    base = load_base(demo_base, dtype="fp32")
    trained(base, tmp_path / "adapter")
    proof = verify(base, tmp_path / "adapter", prompts=["def f(x):"])
    assert failed(proof) == []


def test_a_module_without_a_base_record_can_be_proved(tmp_path: Path) -> None:
    model = models.build("llama")
    adapted = fill(attach(model, r=2))
    expected = observe(model, SAMPLES)
    save_adapter(adapted, tmp_path / "adapter")
    adapted.detach()
    assert prove(model, tmp_path / "adapter", samples=SAMPLES, expected=expected).passed
