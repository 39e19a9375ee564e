from __future__ import annotations

import pytest
import torch
from models import build
from torch import nn

from rango.base.load import load_base
from rango.base.packing import packing_probe

APART = ("llama", "qwen2", "gpt2", "phi", "gemma", "gemma2", "phi3", "mixtral")
MASKED = ("falcon", "falcon_grouped")
TOGETHER = ("falcon_rw", "bert")


@pytest.mark.parametrize("name", APART)
def test_sequences_are_kept_apart(name):
    found = packing_probe(build(name))
    assert found.ok, found.reason
    assert found.error <= 1e-4
    assert found.how is True


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sequences_are_kept_apart_by_a_mask(name, dtype):
    found = packing_probe(build(name).to(dtype))
    assert found.ok, found.reason
    assert found.how == "masked"
    assert "explicit mask" in found.reason


def test_a_mask_of_boundaries_is_none_of_a_window():
    model = build("falcon")
    model.config.sliding_window = 4096
    assert packing_probe(model).how is False


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sequences_see_each_other(name, dtype):
    found = packing_probe(build(name).to(dtype))
    assert not found.ok
    assert "does not keep packed sequences apart" in found.reason
    assert found.how is False


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi", "gemma", "gemma2", "phi3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_in_16_bits_is_no_leak(name, dtype):
    assert packing_probe(build(name).to(dtype)).ok


def test_a_leak_is_noticed():
    """As in Falcon: the boundaries in position_ids go unseen."""
    model = build("gemma2")
    inner = model.forward

    def forward(input_ids, position_ids=None, **kwargs):
        return inner(input_ids=input_ids, **kwargs)

    model.forward = forward
    found = packing_probe(model)
    assert not found.ok
    assert found.error > 1e-3


def test_the_members_are_longer_than_a_short_sliding_window():
    """Else a window that is not kept in a packed row could go unnoticed."""
    lengths = []
    model = build("gemma2", sliding_window=16)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]),
        with_kwargs=True,
    )
    packing_probe(model)
    assert min(lengths) > 16
    assert max(lengths) <= 2 * 96


def test_a_quantized_base(saved):
    for dtype in (torch.float32, torch.bfloat16):
        assert packing_probe(load_base(saved("llama", dtype)[0], quantize="nf4").model).ok
    assert packing_probe(load_base(saved("falcon")[0], quantize="nf4").model).how == "masked"


def test_the_model_is_left_as_it_was():
    model = build("llama", attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    assert packing_probe(model).ok
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_models_without_position_ids():
    found = packing_probe(nn.Linear(2, 2))
    assert not found.ok
    assert found.reason == "Linear takes no position_ids"
