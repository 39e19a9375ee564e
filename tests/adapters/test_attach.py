"""Attach, detach, enable, disable: the base is what it was."""

from __future__ import annotations

import pytest
import torch
from models import ALL, build, inputs
from torch import nn

import rango
from rango.adapters.routing import Routing
from rango.errors import AdapterError, ConfigError
from rango.kernels import dispatch


@pytest.mark.parametrize("mode", ["reference", "auto"])
@pytest.mark.parametrize("name", [*ALL, "falcon_grouped", "falcon_rw", "gemma2", "phi3", "mixtral"])
def test_at_step_0_the_model_is_the_base_bit_for_bit(name: str, mode: str) -> None:
    """With the reference also the base before attach(): the kernels sum in another order."""
    model, ids = build(name), inputs()
    before = model(input_ids=ids)[0]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    trainable = {key for key, p in model.named_parameters() if p.requires_grad}
    with dispatch.using(mode):
        adapted = rango.attach(model, r=3, rows=2)
        with adapted.disabled():
            base = model(input_ids=ids)[0]
        torch.testing.assert_close(base, before, rtol=1e-4, atol=1e-5)
        assert mode != "reference" or torch.equal(base, before)
        assert torch.equal(model(input_ids=ids)[0], base)
        with adapted.route(Routing.sequences([0, 1])):
            assert torch.equal(model(input_ids=ids)[0], base)
        adapted.bank.parameters.normal_()
        assert not torch.equal(model(input_ids=ids)[0], base)
        with adapted.disabled():
            assert torch.equal(model(input_ids=ids)[0], base)
        adapted.disable()
        assert torch.equal(model(input_ids=ids)[0], base)
        adapted.enable()
        assert adapted.detach() is model
    assert torch.equal(model(input_ids=ids)[0], before)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {key for key, p in model.named_parameters() if p.requires_grad} == trainable


def test_starts_depend_on_seed_and_site_alone() -> None:
    first = rango.attach(build("llama"), r=4, rows=2, seed=7)
    second = rango.attach(build("llama"), r=4, target_modules="mlp", seed=8)
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(first.sites[name].A[1], second.sites[name].A[0])
    assert not torch.equal(first.sites[name].A[0], first.sites[name].A[1])
    bound = 1 / first.sites[name].A.shape[2] ** 0.5
    assert first.sites[name].A.abs().max() <= bound
    assert first.sites[name].A.abs().max() > 0.9 * bound


def test_any_module_can_be_adapted_and_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    x, y = torch.randn(64, 4), torch.randn(64, 2)
    frozen = [p.clone() for p in model.parameters()]
    adapted = rango.attach(model, r=2, lora_alpha=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(40):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    adapted.detach()
    assert all(torch.equal(a, b) for a, b in zip(frozen, model.parameters(), strict=True))


def test_weights_left_alone_are_listed_with_the_reason() -> None:
    adapted = rango.attach(build("mixtral"), r=2)
    reasons = {weight.name: weight.reason for weight in adapted.uncovered}
    assert reasons["lm_head.weight"] == "output or task head"
    assert reasons["model.embed_tokens.weight"] == "embedding"
    assert reasons["model.layers.0.mlp.gate.weight"] == "router of a mixture of experts"
    experts = [name for name in reasons if "experts" in name]
    assert len(experts) == 4
    assert all("not covered" in reasons[name] for name in experts)
    assert {name.rpartition(".")[2] for name in adapted.sites} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }


def test_tokens_in_the_layout_of_experts_are_routed() -> None:
    # a module that sees (B·S, in) gets the rows of its sequences
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.up(x.flatten(0, 1)).view_as(x)
            return out

    adapted = rango.attach(Flat(), r=2, rows=2)
    adapted.bank.parameters.normal_()
    x = torch.randn(2, 3, 4)
    with adapted.route(Routing.sequences([1, 0])):
        mixed = adapted.model(x)
    for place, row in enumerate([1, 0]):
        with adapted.route(Routing.everywhere(row)):
            torch.testing.assert_close(mixed[place], adapted.model(x)[place])


def test_gpt3_from_its_config() -> None:
    with torch.device("meta"):
        model = build(
            "gpt2", n_embd=12288, n_layer=96, n_head=96, n_positions=2048, vocab_size=50257
        )
    adapted = rango.attach(model, r=4, target_modules=["c_attn[q,v]"])
    assert list(adapted.sites) == [
        f"transformer.h.{layer}.attn.c_attn[{part}]" for layer in range(96) for part in "qv"
    ]
    assert adapted.trainable_parameters() == 18_874_368 == adapted.bank.layout.size
    assert round(adapted.trainable_parameters() * 2 / 1e6, 1) == 37.7  # MB in fp16
    assert round(175e9 / adapted.trainable_parameters()) == 9272


def test_modules_that_torch_reads_without_calling() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        before = model(x)
        adapted = rango.attach(model, r=2)
        assert list(adapted.sites) == ["linear1", "linear2"]
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
        adapted.bank.parameters.normal_()
        assert not torch.allclose(model(x), before, atol=1e-2)
    with pytest.raises(rango.errors.TargetError):
        rango.attach(nn.Linear(4, 4))


def test_the_head_of_a_model_inside_another_stays_out() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("llama")

    assert not any("lm_head" in name for name in rango.attach(Holder(), r=2).sites)


def test_a_row_that_is_given_anew_keeps_nothing_of_its_past() -> None:
    adapted = rango.attach(build("llama"), r=2, rows=2)
    adapted.bank.parameters.normal_()
    adapted.scale(1, 0.5)
    assert adapted.bank.gradients is not None
    adapted.bank.gradients.fill_(1.0)
    config = rango.LoraConfig(r=1)
    targets = rango.adapters.targets.find_targets(build("llama"), config)
    adapted.configure(1, config, targets)
    assert not adapted.bank.row(1).any()
    assert not adapted.bank.gradients[1].any()
    assert adapted.bank.gradients[0].all()
    assert adapted.switch.factors == {}
    assert {site.ranks[1] for site in adapted.sites.values()} == {1}


def test_refusals() -> None:
    model = build("llama")
    adapted = rango.attach(model, r=2)
    with pytest.raises(AdapterError, match="attached already"):
        rango.attach(model)
    with pytest.raises(AdapterError, match="rows 0 to 0"):
        adapted.scale(1, 0.5)
    with pytest.raises(AdapterError, match="no adapter is merged"):
        adapted.unmerge()
    adapted.merge()
    with pytest.raises(AdapterError, match="unmerge"), adapted.disabled():
        pass
    adapted.detach()
    with pytest.raises(ConfigError, match="nearest: lora_alpha"):
        rango.attach(model, lora_alhpa=3)
    with pytest.raises(ConfigError, match="not both"):
        rango.attach(model, rango.LoraConfig(), r=3)
    with pytest.raises(ConfigError, match="rows 0"):
        rango.attach(model, rows=0)
    bank_too_small = rango.attach(model, r=2)
    wide = rango.LoraConfig(r=3)
    with pytest.raises(AdapterError, match="rank 3 exceeds"):
        bank_too_small.configure(0, wide, rango.adapters.targets.find_targets(build("llama"), wide))
