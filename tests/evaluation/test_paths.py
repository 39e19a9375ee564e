"""What `rango inspect` says of a base's paths is what attach() then does."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import build

import rango
from rango.evaluation.paths import FUSED, ONE_STEP, PLAIN, base_paths
from rango.kernels import dispatch

COMPILED = dispatch.available()[0] != "reference"


@pytest.mark.skipif(not COMPILED, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi", "gpt2", "bert"])
def test_the_paths_are_those_of_attach(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    with dispatch.using("auto"):
        told = base_paths(tmp_path)
        adapted = rango.attach(model, r=2)
    assert adapted.fusion is not None
    done = adapted.fusion.paths
    assert ("attention" in told) == ("attention" in done)
    del told["attention"], done["attention"]
    assert {module for module, path in told.items() if path == FUSED} == set(done)
    loss = told.pop("head and loss")
    assert loss.startswith("kernel") == (name != "bert")
    rest = {path for path in told.values() if path != FUSED}
    expected = {"llama": set(), "qwen3": set(), "gpt2": {PLAIN}}
    assert rest == expected.get(name, {ONE_STEP})


def test_the_reference_takes_the_plain_path(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    with dispatch.using("reference"):
        assert base_paths(tmp_path) == {"LlamaForCausalLM": PLAIN}
