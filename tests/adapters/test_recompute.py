"""Full checkpointing: the same gradients from less memory, whatever has changed meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build, inputs
from torch import Tensor, nn

import rango
from rango.adapters.attach import Adapted
from rango.adapters.checkpointed import RecomputedLayer
from rango.adapters.recompute import recomputing
from rango.adapters.routing import Routing
from rango.errors import ConfigError
from rango.kernels import dispatch


def _adapted(name: str) -> Adapted:
    adapted = rango.attach(build(name), r=3, lora_alpha=6, rows=2, lora_dropout=0.3)
    adapted.bank.parameters.copy_(
        torch.randn(adapted.bank.parameters.shape, generator=torch.Generator().manual_seed(1)) / 8
    )
    return adapted


def _gradients(adapted: Adapted, recompute: bool) -> tuple[Tensor, int]:
    """Of a pass whose routing, scale and dropout are over when the backward pass comes; and the
    bytes kept for it."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    adapted.dropout_key(5)
    adapted.scale(1, 0.5)
    with (
        recomputing(adapted.model, recompute),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        adapted.train(True)
        with adapted.route(Routing.sequences([0, 1])):
            loss = adapted.model(inputs(), use_cache=False).logits.square().sum()
        adapted.train(False)
        adapted.scale(1, 2.0)
        adapted.dropout_key(6)
        loss.backward()
    assert adapted.bank.gradients is not None
    return adapted.bank.gradients, sum(kept.values())


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gemma2"])
def test_gradients_are_those_of_the_forward_pass(name: str, mode: str) -> None:
    with dispatch.using(mode):
        expected, all_kept = _gradients(_adapted(name), recompute=False)
        found, kept = _gradients(_adapted(name), recompute=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert kept < 0.8 * all_kept


def test_a_fused_layer_that_goes_the_plain_way_is_recomputed_too() -> None:
    results: dict[bool, tuple[Tensor, int]] = {}
    for recompute in (False, True):
        adapted = _adapted("llama")
        for layer in adapted.model.model.layers:
            layer.mlp.register_forward_hook(lambda *_: None)
        results[recompute] = _gradients(adapted, recompute)
    torch.testing.assert_close(results[True][0], results[False][0], rtol=1e-5, atol=1e-6)
    assert results[True][1] < 0.8 * results[False][1]


def test_the_layers_are_what_they_were_afterwards() -> None:
    model = build("phi")
    before = [type(module) for module in model.modules()]
    with recomputing(model):
        assert any(isinstance(module, RecomputedLayer) for module in model.modules())
    assert [type(module) for module in model.modules()] == before


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing"), recomputing(nn.Linear(2, 2)):
        pass


def test_a_cache_is_filled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = _adapted("phi")
    with recomputing(adapted.model):
        output: Any = adapted.model(inputs(), use_cache=True)
        output.logits.sum().backward()
    assert output.past_key_values.get_seq_length() == inputs().shape[1]
