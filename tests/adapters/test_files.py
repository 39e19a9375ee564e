"""PEFT's directory: written whole, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, inputs
from safetensors.torch import load_file, save_file

import rango
from rango.adapters.attach import Adapted
from rango.adapters.files import read_adapter
from rango.errors import AdapterError, OutputExistsError


def _random(name: str = "llama", **fields: Any) -> Adapted:
    adapted = rango.attach(build(name), **({"r": 3, "lora_alpha": 6} | fields))
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=0.1)
    return adapted


def _saved(folder: Path, name: str = "llama", **fields: Any) -> Path:
    return rango.save_adapter(_random(name, **fields), folder / "adapter")


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip_of_every_feature(tmp_path: Path) -> None:
    adapted = _random(
        "gpt2",
        target_modules=["c_attn[q,v]", "mlp.c_fc", "wte"],
        rank_pattern={"h.0.mlp.c_fc": 7},
        alpha_pattern={"c_attn": 5},
        use_rslora=True,
    )
    ids = inputs()
    expected = adapted.model(input_ids=ids)[0]
    rango.save_adapter(adapted, tmp_path / "a", facts={"data": {"digest": "x"}}, card="# Card\n")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "rango.json",
        "README.md",
    }
    loaded = rango.load_adapter(build("gpt2"), tmp_path / "a")
    assert list(loaded.sites) == list(adapted.sites)
    assert torch.equal(loaded.bank.parameters, adapted.bank.parameters)
    assert torch.equal(loaded.model(input_ids=ids)[0], expected)
    assert loaded.config.target_modules == adapted.config.target_modules
    # and once more: saving what was loaded gives the same bytes
    rango.save_adapter(loaded, tmp_path / "b")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert read_adapter(tmp_path / "a").facts["data"] == {"digest": "x"}


@settings(max_examples=15, deadline=None)
@given(r=st.integers(1, 7), alpha=st.floats(0.1, 100), rslora=st.booleans(), row=st.integers(0, 2))
def test_any_row_of_a_bank_round_trips(
    tmp_path_factory: pytest.TempPathFactory, r: int, alpha: float, rslora: bool, row: int
) -> None:
    folder = tmp_path_factory.mktemp("row") / "a"
    adapted = _random(r=r, lora_alpha=alpha, use_rslora=rslora, rows=3, target_modules=["q_proj"])
    rango.save_adapter(adapted, folder, row=row)
    loaded = rango.load_adapter(build("llama"), folder, rows=2, row=1)
    assert torch.equal(loaded.bank.row(1), adapted.bank.row(row))
    assert not loaded.bank.row(0).any()
    for name, site in loaded.sites.items():
        assert site.ranks == [0, r]
        assert site.scalings[1] == adapted.sites[name].scalings[row]


def test_the_files_are_pefts(tmp_path: Path) -> None:
    folder = _saved(tmp_path, rank_pattern={"layers.0.*up_proj": 5})
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 3
    assert config["rank_pattern"] == {"model.layers.0.mlp.up_proj": 5}
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert list(config) == sorted(config)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (5, 32)
    assert tensors[f"{name}.lora_B.weight"].shape == (64, 5)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_name_that_another_ends_in_keeps_its_own_rank(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.ModuleDict(
            {
                "up": torch.nn.Linear(8, 8),
                "block": torch.nn.ModuleDict({"up": torch.nn.Linear(8, 8)}),
            }
        )

    adapted = rango.attach(make(), r=3, rank_pattern={"^up": 5})
    assert [site.ranks for site in adapted.sites.values()] == [[5], [3]]
    adapted.bank.parameters.normal_()
    rango.save_adapter(adapted, tmp_path / "a")
    loaded = rango.load_adapter(make(), tmp_path / "a")
    assert torch.equal(loaded.bank.parameters, adapted.bank.parameters)


def test_targets_of_some_layers_are_written_by_their_whole_names(tmp_path: Path) -> None:
    folder = _saved(tmp_path, target_modules="attention", layers="1")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(f"model.layers.1.self_attn.{p}_proj" for p in "kqov")


def test_every_misfit_is_listed_at_once(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    prefix = "base_model.model.model.layers"
    del tensors[f"{prefix}.0.mlp.up_proj.lora_B.weight"]
    del tensors[f"{prefix}.1.mlp.up_proj.lora_A.weight"]
    del tensors[f"{prefix}.1.mlp.up_proj.lora_B.weight"]
    tensors[f"{prefix}.0.mlp.gate_proj.lora_A.weight"] = torch.zeros(3, 31)
    tensors[f"{prefix}.9.mlp.up_proj.lora_A.weight"] = torch.zeros(3, 32)
    tensors["stranger"] = torch.zeros(1)
    tensors[f"{prefix}.0.self_attn.q_proj.lora_A.weight"][0, 0] = float("inf")
    save_file(tensors, path)
    with pytest.raises(AdapterError) as caught:
        rango.load_adapter(build("llama"), folder)
    message = str(caught.value)
    for expected in (
        "model.layers.0.mlp.up_proj: lora_B is missing",
        "model.layers.1.mlp.up_proj: targeted by adapter_config.json, but the file has no tensors",
        "model.layers.0.mlp.gate_proj.lora_A: expected shape (3, 32), found (3, 31)",
        "model.layers.9.mlp.up_proj: no such module",
        "stranger: unexpected, shape (1,)",
        "model.layers.0.self_attn.q_proj.lora_A: holds values that are not finite",
    ):
        assert expected in message


def test_a_rank_that_the_config_does_not_say_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    _edit(folder, r=4)
    with pytest.raises(AdapterError, match=r"expected shape \(4, 32\), found \(3, 32\)"):
        rango.load_adapter(build("llama"), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"modules_to_save": [3]}, "modules_to_save: expected names"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"something_new": 3}, "something_new = 3"),
        ({"peft_type": "LOHA"}, "expected peft_type LORA"),
        ({"r": "3"}, "r: expected a number"),
        ({"rank_pattern": {"(": 3}}, "adapter_config.json"),
        ({"rank_pattern": {"q_proj": "abc"}}, "q_proj: expected a number"),
        ({"alpha_pattern": {"q_proj": None}}, "q_proj: expected a number"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "q_proj: expected a number"),
        ({"exclude_modules": "a["}, "adapter_config.json"),
    ],
)
def test_what_rango_cannot_read_is_named(tmp_path: Path, change: Any, message: str) -> None:
    folder = _saved(tmp_path)
    _edit(folder, **change)
    with pytest.raises(AdapterError, match=r"adapter_config\.json") as caught:
        rango.load_adapter(build("llama"), folder)
    assert message in str(caught.value)


def test_copies_of_the_base_are_accepted_when_equal(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.lm_head.base_layer.weight"
    tensors[name] = build("llama").lm_head.weight.detach().clone()
    save_file(tensors, path)
    rango.load_adapter(build("llama"), folder)
    tensors[name] += 1
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="other copy of the base"):
        rango.load_adapter(build("llama"), folder)


def test_files_that_are_not_adapters(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such adapter folder"):
        read_adapter(tmp_path / "none")
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path)
    folder = _saved(tmp_path)
    tensors = folder / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-10])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        read_adapter(folder)
    tensors.rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickle"):
        read_adapter(folder)
    (folder / "adapter_model.bin").rename(tensors)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not valid JSON"):
        read_adapter(folder)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_adapter_errors_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = _saved(tmp_path_factory.mktemp("damage"), target_modules=["q_proj"])
    name = data.draw(
        st.sampled_from(["adapter_config.json", "adapter_model.safetensors", "rango.json"])
    )
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 700) - 1))
        content[place] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    model = build("llama")
    try:
        rango.load_adapter(model, folder)
    except rango.RangoError:
        assert not any("lora" in key for key in model.state_dict())


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = _random()
    folder = rango.save_adapter(adapted, tmp_path / "a")
    before = (folder / "adapter_model.safetensors").read_bytes()
    adapted.bank.parameters.zero_()
    with pytest.raises(OutputExistsError):
        rango.save_adapter(adapted, folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(TypeError):  # a fact that JSON cannot hold
        rango.save_adapter(adapted, tmp_path / "b", facts={"x": object()})
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_a_load_that_fails_leaves_the_base_alone(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    facts = json.loads((folder / "rango.json").read_text())
    for wrong in ({"config": None}, {"base": "x"}):
        (folder / "rango.json").write_text(json.dumps(facts | wrong))
        with pytest.raises(AdapterError, match="expected an object"):
            rango.load_adapter(build("llama"), folder)
    (folder / "rango.json").write_text(json.dumps(facts))
    model = build("llama")
    with pytest.raises(AdapterError, match="rows 0 to 0"):
        rango.load_adapter(model, folder, row=1)
    rango.load_adapter(model, folder)


def test_nothing_is_saved_as_something(tmp_path: Path) -> None:
    adapted = _random()
    adapted.detach()
    with pytest.raises(AdapterError):
        rango.save_adapter(adapted, tmp_path / "a")
    base = rango.base.load.base_from_model(build("llama"))
    rango.attach(base, r=2)
    with pytest.raises(rango.RangoError, match="detach"):
        rango.save_base(base, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_parts_that_contradict_the_tensors(tmp_path: Path) -> None:
    folder = _saved(tmp_path, "gpt2", target_modules=["c_attn[q,v]"])
    facts = json.loads((folder / "rango.json").read_text())
    name = "transformer.h.0.attn.c_attn"
    for parts, message in (
        ({name: {"q": 3}}, "add up to 6"),
        ({name: {"q": 3, "x": 3}}, "expected ranks of q, k, v"),
        ({name: {"k": 3, "v": 3}}, "act on k alone"),
        ([], "expected an object"),
    ):
        if parts == []:
            parts = ["x"]
        (folder / "rango.json").write_text(json.dumps(facts | {"parts": parts}))
        with pytest.raises(AdapterError, match=message):
            rango.load_adapter(build("gpt2"), folder)
