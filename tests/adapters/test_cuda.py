"""The same adapters on a GPU: routed batches and their gradients equal the CPU's."""

from __future__ import annotations

import pytest
import torch
from models import build, inputs

import rango
from rango.adapters.attach import Adapted
from rango.adapters.routing import Routing


def _made(name: str, **fields: object) -> Adapted:
    adapted = rango.attach(build(name), r=3, rows=2, **fields)
    torch.manual_seed(0)
    adapted.bank.parameters.normal_(std=0.1)
    return adapted


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("gpt2", {"target_modules": ["c_attn[q,v]", "wte"]}),
        ("falcon_grouped", {"target_modules": ["query_key_value[k]"]}),
        ("qwen2", {"lora_dropout": 0.3}),
    ],
)
def test_cuda_equals_cpu(name: str, fields: dict[str, object]) -> None:
    outputs, gradients = [], []
    for device in ("cpu", "cuda"):
        adapted = _made(name, **fields)
        adapted.model.to(device)
        adapted.bank.check_sharing()
        adapted.dropout_key(step=1)
        adapted.train()
        with adapted.route(Routing.sequences([1, 0], [0.5, 2.0])):
            logits = adapted.model(input_ids=inputs().to(device))[0]
        logits.square().mean().backward()
        assert adapted.bank.gradients is not None
        outputs.append(logits.detach().cpu())
        gradients.append(adapted.bank.gradients.cpu())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
