"""Tiny checkpoints on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import logging

Saved = Callable[..., tuple[Path, PreTrainedModel]]


@pytest.fixture(autouse=True, scope="session")
def _no_bars() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """saved(name, dtype=…, shards="60KB", **config) -> (folder, the model in it)."""

    def save(
        name: str, dtype: torch.dtype = torch.float32, shards: str = "60KB", **config: Any
    ) -> tuple[Path, PreTrainedModel]:
        model = build(name, **config).to(dtype)
        folder = tmp_path / f"{name}-{str(dtype).removeprefix('torch.')}"
        model.save_pretrained(folder, max_shard_size=shards)
        return folder, model

    return save


class Files:
    """Reads and rewrites a checkpoint folder as one file, to spoil it."""

    @staticmethod
    def tensors(folder: Path) -> dict[str, torch.Tensor]:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return found

    @staticmethod
    def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
            path.unlink()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @staticmethod
    def edit_json(path: Path, **changes: Any) -> None:
        value = json.loads(path.read_text())
        value.update(changes)
        path.write_text(json.dumps(value))


@pytest.fixture
def files() -> type[Files]:
    return Files
