"""Layers that rows hold whole: which they are, how they start, merge, and lie on disk."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from labelled_texts import LABELS, save_encoder
from models import build, inputs
from safetensors.torch import load_file

from rango.adapters.attach import Adapted, attach
from rango.adapters.files import load_adapter, read_adapter, save_adapter
from rango.adapters.inspect import inspect_adapter
from rango.adapters.matching import load_base_for
from rango.base.load import Base, base_from_model, load_base
from rango.errors import AdapterError, TargetError


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return load_base(save_encoder(tmp_path / "base"), labels=LABELS)


def stirred(adapted: Adapted, seed: int = 0) -> Adapted:
    """The same with random numbers in every row."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = torch.randn(adapted.bank.parameters.shape, generator=generator)
        adapted.bank.parameters.copy_(0.05 * drawn)
    return adapted


def logits(adapted: Adapted) -> torch.Tensor:
    with torch.no_grad():
        return adapted.model(input_ids=inputs(3, 7)).logits


def test_a_classifiers_head_is_held_by_itself_and_drawn(base: Base) -> None:
    adapted = attach(base, r=4)
    layer = adapted.saved["classifier"]
    weight, bias = layer.delta(0)["weight"], layer.delta(0)["bias"]
    assert 0.1 < float(weight.std()) < 0.3  # initializer_range is 0.2
    assert not bias.any()
    assert "classifier" not in {site.module_name for site in adapted.sites.values()}
    assert not any(weight.name.startswith("classifier") for weight in adapted.uncovered)
    with adapted.disabled():
        assert not logits(adapted).any()  # the base knows nothing: ln K
    assert logits(adapted).any()
    own = sum(
        site.ranks[0] * (site.A.shape[2] + site.B.shape[1]) for site in adapted.sites.values()
    )
    assert adapted.trainable_parameters() == own + 3 * 32 + 3
    before = weight.clone()
    adapted.reset(0, seed=1)
    assert not torch.equal(before, adapted.saved["classifier"].delta(0)["weight"])
    adapted.reset(0, seed=0)
    assert torch.equal(before, adapted.saved["classifier"].delta(0)["weight"])


def test_a_head_that_the_base_has_starts_as_it_is() -> None:
    adapted = attach(build("llama"), target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert not any(delta.any() for delta in adapted.saved["lm_head"].delta(0).values())
    with torch.no_grad():
        found = adapted.model(inputs()).logits
        with adapted.disabled():
            assert torch.equal(found, adapted.model(inputs()).logits)


@pytest.mark.parametrize(
    ("names", "targets", "message"),
    [
        (["clasifier"], "attention", "matches no module; nearest: classifier"),
        (["embeddings"], "attention", "a Embedding; only plain linear"),
        (["LayerNorm"], "attention", "a LayerNorm; only plain linear"),
        (["query"], "attention", "in target_modules and in modules_to_save"),
    ],
)
def test_what_cannot_be_held_is_named(
    base: Base, names: list[str], targets: str, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        attach(base, target_modules=targets, modules_to_save=names)


def test_a_new_head_is_held_beside_what_is_named(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "base", "roberta")
    head = {"classifier.dense", "classifier.out_proj"}
    query = "roberta.encoder.layer.0.attention.self.query"
    for target, name in (("dense", query), ("query", "classifier.dense")):
        adapted = attach(
            load_base(folder, labels=LABELS), target_modules=[target], modules_to_save=[name]
        )
        assert set(adapted.saved) == head | {name}
        assert "classifier.dense" not in adapted.modules
        assert logits(adapted).any()
    with pytest.raises(TargetError, match="in target_modules and in modules_to_save"):
        attach(load_base(folder, labels=LABELS), target_modules=["query"], modules_to_save=[query])


def test_a_head_that_the_base_has_is_held_where_it_is_named(base: Base) -> None:
    with torch.no_grad():
        base.model.classifier.weight.fill_(1.0)
    query = "bert.encoder.layer.0.attention.self.query"
    assert set(attach(base, target_modules=["value"], modules_to_save=[query]).saved) == {query}


def test_packed_layers_are_refused(tmp_path: Path) -> None:
    base = load_base(save_encoder(tmp_path / "base"), labels=LABELS, quantize="int8")
    with pytest.raises(TargetError, match="Int8Linear; only plain linear"):
        attach(base, target_modules=["value"], modules_to_save=["query"])


def test_merging_is_exact_and_undone_bit_for_bit(base: Base) -> None:
    adapted = stirred(attach(base, r=4))
    before, plain = logits(adapted), adapted.saved["classifier"].base_layer
    adapted.merge()
    layer = adapted.saved["classifier"]
    assert torch.equal(layer.base_layer.weight, plain.weight + layer.delta(0)["weight"])
    assert torch.equal(layer.base_layer.bias, plain.bias + layer.delta(0)["bias"])
    torch.testing.assert_close(logits(adapted), before, atol=1e-5, rtol=1e-5)
    adapted.unmerge()
    assert adapted.saved["classifier"].base_layer is plain
    assert torch.equal(logits(adapted), before)


def test_what_is_saved_while_merged_is_the_same(base: Base, tmp_path: Path) -> None:
    adapted = stirred(attach(base, r=4))
    save_adapter(adapted, tmp_path / "before")
    adapted.merge()
    save_adapter(adapted, tmp_path / "merged")
    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "merged")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_detach_and_copies(base: Base) -> None:
    adapted = stirred(attach(base, r=4))
    twin = copy.deepcopy(adapted)
    assert torch.equal(logits(twin), logits(adapted))
    twin.bank.check_sharing()
    with torch.no_grad():
        twin.saved["classifier"].delta(0)["bias"].add_(1.0)
    assert not torch.equal(logits(twin), logits(adapted))
    model = adapted.detach()
    assert type(model.classifier) is torch.nn.Linear
    assert not adapted.saved


def test_a_folder_brings_the_head_back(base: Base, tmp_path: Path) -> None:
    adapted = stirred(attach(base, r=4))
    before = logits(adapted)
    save_adapter(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    assert config["task_type"] == "SEQ_CLS"
    file = read_adapter(tmp_path / "adapter")
    assert file.labels == LABELS
    assert file.tensors["base_model.model.classifier.weight"].shape == (3, 32)
    adapted.detach()
    again = load_base_for(tmp_path / "adapter", tmp_path / "base")
    assert again.labels == LABELS
    loaded = load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), before, atol=1e-6, rtol=1e-6)
    facts = inspect_adapter(tmp_path / "adapter")
    assert facts.labels == list(LABELS)
    assert [(whole.module, whole.shape) for whole in facts.saved] == [("classifier", (3, 32))]


def test_a_norm_in_a_head_is_not_named_with_it(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "base", "modernbert")
    adapted = stirred(attach(load_base(folder, labels=LABELS), r=4))
    assert set(adapted.saved) == {"head.dense", "classifier"}
    before = logits(adapted)
    save_adapter(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier", "head.dense"]
    again = load_base_for(tmp_path / "adapter", folder)
    loaded = load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), before, atol=1e-6, rtol=1e-6)


def test_rows_with_and_without_a_head_share_a_bank(base: Base) -> None:
    adapted = stirred(attach(base, r=4, rows=2))
    targets = [site.name for site in adapted.sites.values()]
    assert targets
    layer = adapted.saved["classifier"]
    layer.saves[1] = False
    from rango.adapters.routing import Routing

    with adapted.route(Routing.sequences([0, 1, -1])):
        found = logits(adapted)
    assert found[0].any()
    assert not found[1].any()
    assert not found[2].any()
    assert adapted.trainable_parameters(0) - adapted.trainable_parameters(1) == layer.size


def test_other_bases_are_refused_with_what_to_do(base: Base, tmp_path: Path) -> None:
    save_adapter(stirred(attach(base, r=4)), tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"loaded without them; load it with load_base_for"):
        load_adapter(load_base(tmp_path / "base"), tmp_path / "adapter")
    other = load_base(tmp_path / "base", labels=["a", "b", "c"])
    with pytest.raises(AdapterError, match="its labels are even, odd, zero; the base was loaded"):
        load_adapter(other, tmp_path / "adapter")


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
def test_heads_over_tokens_are_refused_by_name(base: Base, tmp_path: Path, task: str) -> None:
    folder = save_adapter(stirred(attach(base, r=4)), tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": task}))
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: task_type {task}: "):
        read_adapter(folder)


def test_missing_and_misshapen_parts_are_listed(base: Base, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = save_adapter(stirred(attach(base, r=4)), tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.classifier.bias"]
    tensors["base_model.model.classifier.weight"] = torch.zeros(3, 31)
    tensors["base_model.model.classifier.gain"] = torch.zeros(3)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError) as caught:
        load_adapter(load_base_for(folder, tmp_path / "base"), folder)
    message = str(caught.value)
    assert "classifier.bias: missing, expected shape (3,)" in message
    assert "classifier.weight: expected shape (3, 32), found (3, 31)" in message
    assert "classifier.gain: unexpected" in message


def test_an_adapter_of_the_head_alone_in_memory() -> None:
    model = build("bert")
    adapted = attach(base_from_model(model), target_modules=["query"])
    assert not adapted.saved  # an encoder without a head has none to hold
