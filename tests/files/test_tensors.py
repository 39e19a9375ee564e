from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rango.errors import AdapterError, CheckpointError
from rango.files.tensors import MAX_HEADER, TensorFile


def _file(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _tensor(start: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "pattern"),
    [
        (b"{", b"", "header is no JSON"),
        (b"[]", b"", "no JSON object"),
        (b"[" * 100_000, b"", "header is no JSON"),
        (b'{"a": {}, "a": {}}', b"", "a name occurs twice"),
        ({"a": {"dtype": "F32"}}, b"", "'a' needs dtype, shape and data_offsets"),
        ({"a": [1]}, b"", "'a' needs dtype"),
        ({"a": _tensor(0, 4, [1], "F31")}, bytes(4), "unknown dtype 'F31'"),
        ({"a": _tensor(0, -4, [-1])}, b"", "negative or fractional"),
        ({"a": _tensor(0, 4, [1.0])}, bytes(4), "negative or fractional"),
        ({"a": _tensor(0, 4, [True])}, bytes(4), "negative or fractional"),
        ({"a": _tensor(0, 4, [2])}, bytes(4), "needs 8 bytes, 4 are announced"),
        ({"a": _tensor(0, 4, [2**62, 2**62])}, bytes(4), "needs"),
        ({"a": _tensor(0, 8, [2])}, bytes(4), "truncated: .*fetch it again"),
        ({"a": _tensor(0, 4, [1])}, bytes(9), "5 bytes follow its last tensor"),
        ({"a": _tensor(4, 8, [1])}, bytes(8), "'a' begins at byte"),
        ({"a": _tensor(0, 4, [1]), "b": _tensor(0, 4, [1])}, bytes(4), "'b' begins at byte"),
        ({"__metadata__": 3}, b"", "__metadata__"),
    ],
)
def test_malformed_headers(header, data, pattern, tmp_path):
    path = _file(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{pattern}"):
        TensorFile(path)


def test_a_giant_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((MAX_HEADER + 1).to_bytes(8, "little") + b"{")
    with pytest.raises(CheckpointError, match="header is too large: 4194305 bytes announced"):
        TensorFile(path)


def test_every_truncation_is_noticed(tmp_path):
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "x.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"truncated|cannot be read"):
            TensorFile(path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "whole")
    damaged = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(damaged))
    try:
        file = TensorFile(path)
    except CheckpointError:
        return
    for name in file.entries:
        assert len(file.view(name)) == file.entries[name].nbytes


def test_the_error_can_be_another_packages(tmp_path):
    with pytest.raises(AdapterError, match="no such file"):
        TensorFile(tmp_path / "nothing", error=AdapterError)
