"""Merged checkpoints compute what base and adapter compute, in transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from labelled_texts import LABELS, save_encoder
from models import build, inputs
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

import rango
from rango.data.templates.choose import save_template
from rango.errors import AdapterError, ConfigError, OutputExistsError


def _made(tmp_path: Path, name: str, scale: float = 0.1, **fields: object) -> tuple[Path, Path]:
    build(name).save_pretrained(tmp_path / "base")
    adapted = rango.attach(rango.load_base(tmp_path / "base"), r=3, **fields)
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=scale)
    return tmp_path / "base", rango.save_adapter(adapted, tmp_path / "adapter")


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(((ours - theirs).norm() / theirs.norm()).detach())


@pytest.mark.parametrize("name", ["llama", "qwen2", "falcon", "gpt2", "phi", "gemma", "bert"])
def test_transformers_reads_what_was_trained(tmp_path: Path, name: str) -> None:
    base, adapter = _made(tmp_path, name)
    report = rango.merge_checkpoint(base, adapter, tmp_path / "merged")
    assert report.surviving == pytest.approx(1, abs=1e-4)
    assert 0.01 < report.update < 20
    auto = AutoModel if name == "bert" else AutoModelForCausalLM
    merged = auto.from_pretrained(tmp_path / "merged").eval()
    adapted = rango.load_adapter(rango.load_base(base), adapter)
    ids = inputs()
    expected = adapted.model(input_ids=ids)[0]
    assert _relative(merged(input_ids=ids)[0], expected) < 1e-5
    # it is a base of its own: the adapter is not accepted on top of it
    with pytest.raises(AdapterError, match="another base"):
        rango.load_adapter(rango.load_base(tmp_path / "merged"), adapter)


def test_an_adapted_embedding_is_untied_from_its_head(tmp_path: Path) -> None:
    base, adapter = _made(tmp_path, "gpt2", target_modules=["wte", "c_attn[v]"])
    rango.merge_checkpoint(base, adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    adapted = rango.load_adapter(rango.load_base(base), adapter)
    ids = inputs()
    assert _relative(merged(input_ids=ids)[0], adapted.model(input_ids=ids)[0]) < 1e-5


@pytest.mark.parametrize(("onto", "scale", "most"), [("nf4", 0.004, 0.5), ("int8", 0.0008, 0.9)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_onto_quantized_weights_it_says_how_little_survives(
    tmp_path: Path, name: str, onto: Any, scale: float, most: float
) -> None:
    base, adapter = _made(tmp_path, name, scale=scale)
    report = rango.merge_checkpoint(base, adapter, tmp_path / "merged", onto=onto)
    assert report.onto == onto
    assert report.surviving < most
    loaded = rango.load_base(tmp_path / "merged")
    assert loaded.quantize == onto
    assert loaded.model(input_ids=inputs())[0].isfinite().all()


def test_a_large_head_does_not_hide_what_is_lost(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "base")
    reports = []
    for scale in (0.0, 10.0):
        adapted = rango.attach(rango.load_base(folder, labels=LABELS), r=3)
        torch.manual_seed(0)
        adapted.bank.parameters.normal_(std=0.012)
        adapted.saved["classifier"].delta(0)["weight"].fill_(scale)
        adapter = rango.save_adapter(adapted, tmp_path / f"adapter {scale}")
        reports.append(
            rango.merge_checkpoint(folder, adapter, tmp_path / f"merged {scale}", onto="nf4")
        )
    assert reports[0].surviving == reports[1].surviving < 0.5
    assert reports[0].update == reports[1].update < 0.1
    assert reports[0].modules == len(adapted.modules) + 1


def test_int8_keeps_nearly_all_of_an_ordinary_update(tmp_path: Path) -> None:
    base, adapter = _made(tmp_path, "llama", scale=0.1)
    report = rango.merge_checkpoint(base, adapter, tmp_path / "merged", onto="int8")
    assert report.surviving == pytest.approx(1, abs=1e-2)


def test_a_bf16_base_merges_into_bf16_files(tmp_path: Path) -> None:
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    adapted = rango.attach(rango.load_base(tmp_path / "base"), r=3)
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=0.1)
    adapter = rango.save_adapter(adapted, tmp_path / "adapter")
    report = rango.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    assert report.dtype == "bfloat16"
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    merged = rango.load_base(tmp_path / "merged").model(input_ids=inputs())[0]
    assert _relative(merged, adapted.model(input_ids=inputs())[0]) < 0.02


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_checkpoint_keeps_its_kind(tmp_path: Path, kind: Any) -> None:
    build("llama").save_pretrained(tmp_path / "source")
    quantized = rango.load_base(tmp_path / "source", quantize=kind)
    rango.save_base(quantized, tmp_path / "base")
    adapter = rango.save_adapter(rango.attach(quantized, r=3), tmp_path / "adapter")
    other = "int8" if kind == "nf4" else "nf4"
    with pytest.raises(ConfigError, match=f"is stored in {kind}; expected stored or {kind}"):
        rango.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged", onto=other)
    with pytest.raises(ConfigError, match="onto: expected one of stored, nf4, int8; found 'fp4'"):
        rango.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged", onto="fp4")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_quantized_checkpoint_merges_into_a_dense_one(
    tmp_path: Path, name: str, kind: Any
) -> None:
    build(name).save_pretrained(tmp_path / "source")
    quantized = rango.load_base(tmp_path / "source", quantize=kind)
    rango.save_base(quantized, tmp_path / "base")
    adapted = rango.attach(quantized, r=3)
    adapted.bank.parameters.normal_(std=0.1)
    adapter = rango.save_adapter(adapted, tmp_path / "adapter")
    rango.merge_checkpoint(tmp_path / "base", adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = inputs()
    assert _relative(merged(input_ids=ids)[0], adapted.model(input_ids=ids)[0]) < 1e-5


def test_an_output_that_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("x")
    with pytest.raises(OutputExistsError):
        rango.merge_checkpoint(tmp_path / "no base", tmp_path / "no adapter", tmp_path / "merged")


@pytest.mark.parametrize("own", [True, False])
def test_the_template_of_the_training_lies_beside_the_weights(tmp_path: Path, own: bool) -> None:
    base, adapter = _made(tmp_path, "llama")
    tokenizer = families.tokenizer("qwen-2.5")
    tokenizer.save_pretrained(base)
    expected = tokenizer.chat_template
    if own:
        trained = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        assert expected != trained
        expected = tokenizer.chat_template = trained
        save_template(tokenizer, adapter)
    rango.merge_checkpoint(base, adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == expected
    assert rango.load_tokenizer(tmp_path / "merged").chat_template == expected
