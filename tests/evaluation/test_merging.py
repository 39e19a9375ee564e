"""Merged against unmerged, layer by layer and whole."""

from __future__ import annotations

import models
import pytest
import torch

from rango.adapters.attach import Adapted, attach
from rango.base.load import base_from_model
from rango.evaluation.merging import (
    available_memory,
    layer_errors,
    merged_bytes,
    model_error,
)

SAMPLES = [ids.tolist() for ids in models.inputs(2, 12)]


def adapted(name: str = "llama", rows: int = 1) -> Adapted:
    made = attach(base_from_model(models.build(name)), r=2, rows=rows)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return made


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_both_agree_in_fp32(name: str) -> None:
    made = adapted(name, rows=2)
    made.scale(1, 0.5)
    for row in (0, 1):
        errors = layer_errors(made, row)
        assert set(errors) == set(made.modules)
        assert 0 < max(errors.values()) < 1e-6
        merged, restored = model_error(made, SAMPLES, row)
        assert merged < 1e-6
        assert restored == 0


def test_a_wrong_merge_shows_in_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapted()
    name = "model.layers.1.mlp.down_proj"
    original = made.sites[name].factors

    def wrong(row: int) -> tuple[torch.Tensor, torch.Tensor]:
        lora_A, lora_B = original(row)
        return lora_A, lora_B * 1.1

    monkeypatch.setattr(made.sites[name], "factors", wrong)
    errors = layer_errors(made)
    assert max(errors, key=lambda key: errors[key]) == name
    assert errors[name] > 1e-3
    assert model_error(made, SAMPLES)[0] > 1e-5


def test_memory_of_a_merged_copy() -> None:
    made = adapted()
    layer = 32 * 32 * 2 + 16 * 32 * 2 + 3 * 32 * 64
    assert merged_bytes(made) == 2 * layer * 4
    free = available_memory(torch.device("cpu"))
    assert free is None or free > 2**20
