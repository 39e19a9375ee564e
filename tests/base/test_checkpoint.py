from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from rango.base.checkpoint import INDEX, open_checkpoint, read_tensor
from rango.errors import CheckpointError
from rango.files.tensors import TensorFile


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool],
)
def test_tensors_are_those_that_were_written(dtype, tmp_path):
    tensors = {
        "matrix": torch.arange(12).reshape(3, 4).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
        "odd": torch.ones(3, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    file = TensorFile(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(read_tensor(file, name), tensor)
        file.release(name)
        assert torch.equal(read_tensor(file, name), tensor)


def test_unaligned_tensors_are_read(tmp_path):
    data = torch.arange(4, dtype=torch.float32)
    header = json.dumps(
        {
            "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "rest": {"dtype": "F32", "shape": [4], "data_offsets": [1, 17]},
        }
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + data.numpy().tobytes())
    assert torch.equal(read_tensor(TensorFile(path), "rest"), data)


class TestShards:
    @pytest.fixture
    def folder(self, saved):
        return saved("llama")[0]

    def refused(self, folder, pattern):
        with pytest.raises(CheckpointError, match=pattern):
            open_checkpoint(folder)

    def index(self, folder):
        return json.loads((folder / INDEX).read_text())

    def test_are_opened_together(self, folder, files):
        checkpoint = open_checkpoint(folder)
        assert len(checkpoint.files) > 1
        assert set(checkpoint.entries) == set(files.tensors(folder))
        assert checkpoint.dtype == torch.float32

    def test_a_missing_one(self, folder):
        (folder / "model-00002-of-00002.safetensors").unlink()
        self.refused(
            folder, "1 of 2 shards are missing: model-00002-of-00002.safetensors; fetch them again"
        )

    def test_a_truncated_one(self, folder):
        path = folder / "model-00002-of-00002.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        self.refused(folder, "model-00002-of-00002.safetensors: truncated: .*fetch it again")

    def test_a_tensor_that_is_not_there(self, folder):
        index = self.index(folder)
        index["weight_map"]["more.weight"] = "model-00001-of-00002.safetensors"
        (folder / INDEX).write_text(json.dumps(index))
        self.refused(folder, "disagree: more.weight is not in model-00001-of-00002.safetensors")

    def test_a_tensor_that_is_not_listed(self, folder):
        index = self.index(folder)
        del index["weight_map"]["model.norm.weight"]
        (folder / INDEX).write_text(json.dumps(index))
        self.refused(folder, "disagree: model.norm.weight is in .* but not listed so")

    def test_a_shard_outside_the_folder(self, folder, tmp_path):
        save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
        index = {"weight_map": {"a": "../outside.safetensors"}}
        (folder / INDEX).write_text(json.dumps(index))
        self.refused(folder, r"shards outside the folder are refused: \.\./outside.safetensors")

    def test_a_list_that_is_none(self, folder):
        (folder / INDEX).write_text("[]")
        self.refused(folder, "expected an object weight_map")
        (folder / INDEX).write_text("{")
        self.refused(folder, "index.json: not valid JSON")

    def test_no_list(self, folder):
        (folder / INDEX).unlink()
        self.refused(folder, "but neither model.safetensors nor model.safetensors.index.json")
