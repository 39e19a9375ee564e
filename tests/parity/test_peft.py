"""Adapters travel between Rango and PEFT with equal logits (≤1e-5 relative, fp32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALL, build, inputs

import rango

peft = pytest.importorskip("peft")

# PEFT turns fan_in_fan_out on for Conv1D by itself, and says so; it also says that it saves
# embeddings that are targeted
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:.*tied"),
    # PEFT still calls what transformers renamed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

NAMES = [*ALL, "falcon_grouped", "falcon_rw"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # PEFT asks the hub whether the base's vocabulary changed when it saves
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def _fields(rslora: bool) -> dict[str, Any]:
    # patterns that match in each architecture: "q_proj", "query_key_value", "c_attn", "query", …
    return {
        "r": 3,
        "lora_alpha": 6,
        "use_rslora": rslora,
        "rank_pattern": {r"(layers|h|layer)\.0\..*": 5},
        "alpha_pattern": {r".*(dense|proj|c_fc)": 9},
    }


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_ours_in_peft(name: str, rslora: bool, tmp_path: Path) -> None:
    model, ids = build(name), inputs()
    base = model(input_ids=ids)[0]
    adapted = rango.attach(model, **_fields(rslora))
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=0.1)
    rango.save_adapter(adapted, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(build(name), tmp_path / "a")
    ours = model(input_ids=ids)[0]
    assert _relative(ours, base) > 1e-3
    assert _relative(ours, theirs(input_ids=ids)[0]) < 1e-5


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_pefts_in_ours(name: str, rslora: bool, tmp_path: Path) -> None:
    ids = inputs()
    config = peft.LoraConfig(target_modules="all-linear", **_fields(rslora))
    theirs = peft.get_peft_model(build(name), config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "a")
    expected = theirs(input_ids=ids)[0]
    adapted = rango.load_adapter(build(name), tmp_path / "a")
    assert _relative(adapted.model(input_ids=ids)[0], expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("gpt2", ["c_attn[q,v]", "mlp.c_fc"]),
        ("falcon", ["query_key_value[k,v]"]),
        ("falcon_grouped", ["query_key_value[q,v]"]),
        ("falcon_rw", ["query_key_value[v]", "dense"]),
        ("phi3", ["qkv_proj[q]", "gate_up_proj[up]"]),
    ],
)
def test_parts_of_fused_projections(name: str, targets: list[str], tmp_path: Path) -> None:
    model, ids = build(name), inputs()
    base = model(input_ids=ids)[0]
    adapted = rango.attach(model, r=3, lora_alpha=6, target_modules=targets)
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=0.1)
    rango.save_adapter(adapted, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(build(name), tmp_path / "a")
    ours = model(input_ids=ids)[0]
    assert _relative(ours, base) > 1e-3
    assert _relative(ours, theirs(input_ids=ids)[0]) < 1e-5
    theirs.save_pretrained(tmp_path / "b")
    back = rango.load_adapter(build(name), tmp_path / "b")
    assert _relative(back.model(input_ids=ids)[0], ours) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gemma"])
def test_embeddings(name: str, tmp_path: Path) -> None:
    embedding = {"gpt2": "wte"}.get(name, "embed_tokens")
    ids = inputs()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[embedding])
    theirs = peft.get_peft_model(build(name), config).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "a")
    adapted = rango.load_adapter(build(name), tmp_path / "a")
    assert _relative(adapted.model(input_ids=ids)[0], theirs(input_ids=ids)[0]) < 1e-5
    rango.save_adapter(adapted, tmp_path / "b")
    again = peft.PeftModel.from_pretrained(build(name), tmp_path / "b")
    assert torch.equal(again(input_ids=ids)[0], theirs(input_ids=ids)[0])


def test_a_dropout_of_zero_and_one_step_of_sgd_agree(tmp_path: Path) -> None:
    ids = inputs()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear")
    theirs = peft.get_peft_model(build("llama"), config).eval()
    theirs.save_pretrained(tmp_path / "a")
    adapted = rango.load_adapter(build("llama"), tmp_path / "a", trainable=True)
    for model in (theirs, adapted.model):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    assert _relative(adapted.model(input_ids=ids)[0], theirs(input_ids=ids)[0]) < 1e-5
