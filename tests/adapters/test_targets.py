"""Targets by group, name, regular expression, layer and part."""

from __future__ import annotations

import pytest
import torch
import transformers
from models import build
from torch import nn

from rango.adapters.config import LoraConfig
from rango.adapters.targets import find_targets
from rango.base.roles import fused_parts
from rango.errors import ConfigError, TargetError


def _names(model: nn.Module, **fields: object) -> list[str]:
    return [target.name for target in find_targets(model, LoraConfig(**fields))]  # type: ignore[arg-type]


def _endings(name: str, group: str) -> set[str]:
    return {
        n.split("layers.0.")[-1].split("h.0.")[-1]
        for n in _names(build(name), target_modules=group)
        if ".0." in n
    }


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        (
            "llama",
            {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
            {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
        ),
        (
            "falcon",
            {"self_attention.query_key_value", "self_attention.dense"},
            {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
        ),
        ("gpt2", {"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
    ],
)
def test_groups(name: str, attention: set[str], mlp: set[str]) -> None:
    assert _endings(name, "attention") == attention
    assert _endings(name, "mlp") == mlp
    assert _endings(name, "all-linear") == attention | mlp


def test_berts_outputs_belong_where_they_stand() -> None:
    model = build("bert")
    assert _names(model, target_modules="mlp", layers="0") == [
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.0.output.dense",
    ]
    assert "encoder.layer.0.attention.output.dense" in _names(model, target_modules="attention")
    assert "pooler.dense" in _names(model)


@pytest.mark.parametrize("name", ["llama", "qwen2", "falcon", "gpt2", "phi", "gemma", "mixtral"])
def test_all_linear_leaves_the_head_out(name: str) -> None:
    names = _names(build(name))
    assert names
    assert not any("lm_head" in n or "embed" in n or n.endswith("gate") for n in names)


def test_all_linear_leaves_task_heads_out() -> None:
    config = build("bert").config
    config.num_labels = 3
    model = transformers.BertForSequenceClassification(config)
    assert "classifier" not in _names(model)
    assert "classifier" in _names(model, target_modules=["all-linear", "classifier"])


def test_names_regex_layers_and_exclusion() -> None:
    model = build("llama")
    assert _names(model, target_modules=["q_proj"]) == _names(model, target_modules="q_proj")
    assert _names(model, target_modules=r".*\.1\..*_proj", exclude_modules=["mlp"]) == [
        f"model.layers.1.self_attn.{p}_proj" for p in "qkvo"
    ]
    assert _names(model, target_modules="mlp", layers="1") == [
        f"model.layers.1.mlp.{p}_proj" for p in ("gate", "up", "down")
    ]
    assert len(_names(model, layers="0-1")) == len(_names(model))
    assert _names(model, target_modules=["mlp"], exclude_modules=["up_proj", "gate_proj"]) == [
        f"model.layers.{i}.mlp.down_proj" for i in (0, 1)
    ]


def test_patterns_give_modules_their_own_rank_and_alpha() -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        rank_pattern={"layers.0.mlp.up_proj": 7, "up_proj": 1},
        alpha_pattern={r"layers\.\d+\.mlp\..*": 3},
    )
    by_name = {target.name: target for target in find_targets(build("llama"), config)}
    assert by_name["model.layers.0.mlp.up_proj"].r == 7  # the first hit wins
    assert by_name["model.layers.1.mlp.up_proj"].r == 1
    assert by_name["model.layers.1.mlp.down_proj"].r == 4
    assert by_name["model.layers.1.mlp.down_proj"].lora_alpha == 3
    assert by_name["model.layers.1.self_attn.q_proj"].lora_alpha == 8


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn"),
        ("falcon", "transformer.h.0.self_attention.query_key_value"),
        ("falcon_grouped", "transformer.h.0.self_attention.query_key_value"),
        ("falcon_rw", "transformer.h.0.self_attention.query_key_value"),
        ("phi3", "model.layers.0.self_attn.qkv_proj"),
        ("phi3", "model.layers.0.mlp.gate_up_proj"),
    ],
)
def test_parts_cover_a_fused_projection_once(name: str, module: str) -> None:
    model = build(name)
    layer = model.get_submodule(module)
    out = layer.nf if hasattr(layer, "nf") else layer.out_features
    counted = torch.zeros(out)
    for columns in fused_parts(model, module).values():
        counted[columns] += 1
    assert bool((counted == 1).all())


@pytest.mark.parametrize("name", ["falcon", "falcon_grouped", "falcon_rw"])
def test_falcons_parts_are_those_of_its_own_code(name: str) -> None:
    model = build(name)
    attention = model.transformer.h[0].self_attention
    out = attention.query_key_value.out_features
    fused = torch.arange(out, dtype=torch.float32)[None, None]
    query, key, value = attention._split_heads(fused)
    parts = fused_parts(model, "transformer.h.0.self_attention.query_key_value")
    heads = [set(part.flatten().long().tolist()) for part in (query, key, value)]
    for part, expected in zip("qkv", heads, strict=True):
        columns = parts[part]
        ours = torch.arange(out)[columns].tolist()
        assert set(ours) == expected


def test_what_matches_nothing_names_the_nearest() -> None:
    model = build("llama")
    with pytest.raises(TargetError, match=r"'q_porj' matches no module; nearest: q_proj"):
        _names(model, target_modules=["v_proj", "q_porj"])
    with pytest.raises(TargetError, match="has no layer 7"):
        _names(model, layers="0,7")
    with pytest.raises(TargetError, match="leaves no module"):
        _names(model, layers="7")
    with pytest.raises(TargetError, match="rank_pattern: 'q_porj' matches no adapted module"):
        _names(model, rank_pattern={"q_porj": 2})
    with pytest.raises(TargetError, match="alpha_pattern"):
        _names(model, alpha_pattern={"nope": 2.0})
    with pytest.raises(TargetError, match="exclude_modules: 'gate'"):
        _names(model, exclude_modules=["gate"])
    with pytest.raises(TargetError, match="empty"):
        _names(model, target_modules=[])
    with pytest.raises(TargetError, match="no part 'x'; it has q, k, v"):
        _names(build("gpt2"), target_modules=["c_attn[q,x]"])
    with pytest.raises(TargetError, match="not a fused projection"):
        _names(model, target_modules=["q_proj[q]"])
    with pytest.raises(TargetError, match="both"):
        _names(build("gpt2"), target_modules=["c_attn", "c_attn[q]"])


def test_values_that_make_no_sense() -> None:
    model = build("llama")
    for fields in (
        {"r": 0},
        {"rank_pattern": {"q_proj": 0}},
        {"lora_dropout": 1.0},
        {"layers": "a"},
        {"rank_pattern": {"(": 2}},
    ):
        with pytest.raises(ConfigError):
            _names(model, **fields)
