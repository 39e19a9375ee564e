"""Fixtures that several packages' tests share."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

# a shared machine may stall for longer than hypothesis's deadline of 200 ms
settings.register_profile("rango", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("rango")

_HERE = Path(__file__).parent

# tests are no package (importlib mode), so what several of them build with is importable by name
for _name, _path in (
    ("models", "models.py"),
    ("families", "data/templates/families.py"),
    ("labelled_texts", "labelled_texts.py"),
):
    _spec = importlib.util.spec_from_file_location(_name, _HERE / _path)
    if _spec is None or _spec.loader is None:
        raise ImportError(f"tests/{_path} is missing")
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Quantized bases of the tests stay out of the user's cache, in subprocesses too."""
    os.environ["RANGO_CACHE"] = str(tmp_path_factory.mktemp("bases"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU report their skip where there is none."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def demo_base() -> Path:
    """Folder of the embedded pretrained base."""
    import rango

    return Path(rango.__file__).parent / "demo" / "base"
