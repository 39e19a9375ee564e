"""Samples on disk are the samples that were written, or nothing."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rango.data.samples import Origin, Sample
from rango.data.tokens import store
from rango.data.tokens.store import FACTS, Block, SampleStore, StoreWriter
from rango.data.tokens.tokenize import digest
from rango.errors import StorageError


@st.composite
def lists_of_samples(draw):
    made = []
    for number in range(draw(st.integers(1, 12))):
        length = draw(st.integers(1, 9))
        ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length))
        flags = st.lists(st.booleans(), min_size=length, max_size=length)
        origin = Origin(draw(st.sampled_from(["a.jsonl", "ñ/b", "\udcff"])), number)
        made.append(Sample(tuple(ids), tuple(draw(flags)), tuple(draw(flags)), origin))
    return made


def write(folder: Path, samples: list[Sample], size: int = 5) -> SampleStore:
    folder.mkdir(exist_ok=True)
    with StoreWriter(folder) as writer:
        for first in range(0, len(samples), size):
            writer.add(Block.of(samples[first : first + size]))
        return writer.finish({"noted": ["here"]})


def some(count: int = 7) -> list[Sample]:
    return [
        Sample((n, n + 1, n + 2), (False, True, n % 2 == 0), (False, True, False), Origin("a", n))
        for n in range(count)
    ]


@settings(max_examples=40, deadline=None)
@given(lists_of_samples(), st.integers(1, 5))
def test_what_is_read_is_what_was_written(tmp_path_factory, samples, size):
    folder = tmp_path_factory.mktemp("store")
    for stored in (write(folder, samples, size), SampleStore.open(folder)):
        assert list(stored) == samples
        assert stored == samples
        assert samples == stored
        assert stored != [*samples, samples[0]]
        assert len(stored) == len(samples)
        assert stored.lengths.tolist() == [len(sample) for sample in samples]
        assert stored.longest == max(len(sample) for sample in samples)
        assert stored.tokens == sum(len(sample) for sample in samples)
        assert stored.supervised == sum(sum(sample.supervised) for sample in samples)
        assert stored.highest == max(max(sample.input_ids) for sample in samples)
        assert stored.digest == digest(samples) == digest(stored)
        assert stored.notes == {"noted": ["here"]}
        assert [Block.of(samples).digested()] == [
            b"".join(block.digested() for block in stored.blocks())
        ]
    shutil.rmtree(folder)


def test_it_is_a_sequence(tmp_path):
    samples = some()
    stored = write(tmp_path / "store", samples)
    assert stored[-1] == samples[-1]
    assert stored[np.int64(2)] == samples[2]
    assert stored[1:6:2] == samples[1:6:2]
    assert stored[::-1] == samples[::-1]
    assert samples[3] in stored
    assert stored.index(samples[3]) == 3
    for outside in (7, -8):
        with pytest.raises(IndexError, match="of 7"):
            stored[outside]
    assert stored != 3
    ids, supervised, content = stored.arrays(4)
    assert (ids.tolist(), supervised.tolist(), content.tolist()) == (
        [4, 5, 6],
        [False, True, True],
        [False, True, False],
    )


def test_five_bytes_a_token(tmp_path):
    stored = write(tmp_path / "store", some(100))
    assert stored.nbytes == 5 * stored.tokens + 24 * len(stored)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "store").iterdir())
    assert on_disk - stored.nbytes == (tmp_path / "store" / FACTS).stat().st_size


def test_labels_take_four_bytes_a_sample_and_are_kept(tmp_path):
    plain, labelled = some(7), [replace(sample, label=i % 3) for i, sample in enumerate(some(9))]
    stored = write(tmp_path / "store", [*plain, *labelled], size=4)
    assert stored.nbytes == 5 * stored.tokens + 28 * len(stored)
    assert [sample.label for sample in stored] == [None] * 7 + [i % 3 for i in range(9)]
    assert SampleStore.open(tmp_path / "store") == stored
    assert digest(stored) == digest([*plain, *labelled]) != digest([*plain, *some(9)])


def test_many_blocks_are_read_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 3)
    stored = write(tmp_path / "store", some(10), size=4)
    assert [len(block.lengths) for block in stored.blocks()] == [3, 3, 3, 1]
    assert digest(stored) == digest(some(10))


def test_the_folder_may_go_while_samples_are_in_use(tmp_path):
    stored = write(tmp_path / "store", some())
    shutil.rmtree(tmp_path / "store")
    assert stored == some()


def test_nothing_written_is_an_empty_sequence(tmp_path):
    write(tmp_path / "store", [])
    stored = SampleStore.open(tmp_path / "store")
    assert len(stored) == 0
    assert list(stored) == []
    assert stored.longest == 0


@pytest.mark.parametrize("name", ["ids", "flags", "ends", "origins", FACTS])
@pytest.mark.parametrize("damage", ["a byte", "cut", "longer", "gone", "empty"])
def test_damage_is_noticed(tmp_path, name, damage):
    write(tmp_path / "store", some())
    path = tmp_path / "store" / name
    content = bytearray(path.read_bytes())
    if damage == "a byte":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[-1 if name != FACTS else -3 :]
    elif damage == "longer":
        content += b"x"
    elif damage == "empty":
        content.clear()
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    with pytest.raises((OSError, ValueError)):
        SampleStore.open(tmp_path / "store")


def test_another_format_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 3)
    write(tmp_path / "store", some())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 3, not 2"):
        SampleStore.open(tmp_path / "store")


def test_a_full_disk_is_named(tmp_path):
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            """Nothing to close."""

    with StoreWriter(tmp_path) as writer:
        writer._files["ids"].close()
        writer._files["ids"] = Full()
        with pytest.raises(StorageError, match=f"{tmp_path}: .*the disk is full"):
            writer.add(Block.of(some()))
