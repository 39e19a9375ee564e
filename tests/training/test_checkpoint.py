"""Checkpoints: whole or not at all, and only continued by the run that wrote them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rango.training.checkpoint as checkpoint_module
from rango.errors import AdapterError, ConfigError, StorageError
from rango.training.checkpoint import (
    Checkpoint,
    Origins,
    RunState,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)

CONFIG = {"adapter": {"r": 4, "rank_pattern": {"a.b": 2}}, "seed": 0}
ORIGINS = Origins(CONFIG, "sha256:b", "sha256:d")


def make(step: int = 3) -> Checkpoint:
    state = RunState(step=step, tokens=7, evaluations=[{"step": 0, "loss": 1.5}], best_loss=1.25)
    tensors = {
        "weights": {"row": torch.arange(6.0)},
        "optimizer": {"exp_avg": torch.ones(1, 6), "steps": torch.tensor([step])},
        "best": {},
    }
    return Checkpoint(state, ORIGINS, tensors)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(), keep=1)
    assert path.name == "step-00000003"
    found = load_checkpoint(path)
    assert found.state == make().state
    assert found.origins == ORIGINS
    for kind, tensors in make().tensors.items():
        assert found.tensors[kind].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[kind][name], tensor)


def test_the_latest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):
        save_checkpoint(tmp_path, make(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000030"]


def test_a_full_disk_leaves_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make(1), keep=1)

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(StorageError, match=r"step-00000002: cannot be written: the disk is full"):
        save_checkpoint(tmp_path, make(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    load_checkpoint(tmp_path / "step-00000001")


def spoil(path: Path, how: str) -> None:
    state, tensors = path / "state.json", path / "tensors.safetensors"
    facts = json.loads(state.read_text())
    if how == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    elif how == "gone":
        tensors.unlink()
    elif how == "no json":
        state.write_text("{")
    elif how == "no state":
        state.write_text("{}")
    elif how == "unknown field":
        state.write_text(json.dumps(facts | {"state": {"moon": 1}}))
    else:
        state.write_text(json.dumps(facts | {"format": 2}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "is not what was written"),
        ("gone", "No such file"),
        ("no json", "not readable as a checkpoint"),
        ("no state", "'format'"),
        ("unknown field", "moon"),
        ("format", "a checkpoint of format 2; this version of Rango reads format 1"),
    ],
)
def test_a_spoilt_checkpoint_is_refused(tmp_path: Path, how: str, words: str) -> None:
    path = save_checkpoint(tmp_path, make(), keep=1)
    spoil(path, how)
    with pytest.raises(AdapterError, match=words):
        load_checkpoint(path)


def test_origins_name_every_difference() -> None:
    ORIGINS.check(ORIGINS, Path("run"))
    other = Origins(
        {"adapter": {"r": 8, "rank_pattern": {}}, "seed": 0, "new": True}, "sha256:b", "sha256:e"
    )
    with pytest.raises(ConfigError) as info:
        ORIGINS.check(other, Path("run"))
    message = str(info.value)
    for words in (
        "adapter.r: 4 then, 8 now",
        "adapter.rank_pattern.a.b: 2 then, 'absent' now",
        "new: 'absent' then, True now",
        "the samples: sha256:d then, sha256:e now",
    ):
        assert words in message
    assert "base" not in message
