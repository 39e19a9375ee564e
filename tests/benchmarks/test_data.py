"""The data benchmark through its own command, and what it says of cut samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def test_packing_and_tokenizing(run: Callable[..., dict[str, Any]]) -> None:
    """Both sides make the same tokens, which the checks of the result hold them to."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    result = run("data", "--samples", "60", "--rounds", "1")
    names = [(row["name"], row["against"]) for row in result["rows"]]
    packing = "packing 2,000 samples"
    assert names == [
        (f"{packing}: efficiency", "TRL, bfd"),
        (f"{packing}: to tensors", "TRL, bfd"),
        (f"{packing}: efficiency", "TRL, wrapped"),
        (f"{packing}: to tensors", "TRL, wrapped"),
        ("tokenizing 60 chats, 1 process", "datasets.map, as TRL does"),
        ("tokenizing 60 chats, 1 process: memory above imports", "datasets.map, as TRL does"),
        ("tokenizing 60 chats, kept from the first run", "datasets.map, as TRL does"),
    ]
    assert 0.97 <= result["rows"][0]["ours"] <= 1
    cut = result["rows"][2]["settings"]["samples_cut_in_two"]
    assert cut["ours"] == 0
    assert 0.1 < cut["peer"] < 0.5
    checks = {check["what"] for check in result["checks"]}
    assert "supervised of 60 chats, 1 process" in checks


def test_samples_cut(module: Callable[[str], Any]) -> None:
    cut = module("data")._cut
    assert cut([1024, 1024]) == 0
    assert cut([1000, 24, 1000, 25]) == 0.25
    assert cut([1000, 12, 20, 1000]) == 0.25
    assert cut([1000, 12, 20, 1000], batch=2) == 0
    assert cut([512, 1024]) == 0.5
