from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from models import inputs

from rango.base import cache, load
from rango.base.cache import open_cache
from rango.base.fingerprint import fingerprint
from rango.base.load import load_base
from rango.base.state import state_on_disk
from rango.errors import CheckpointError

ARCHITECTURES = ("llama", "qwen2", "gpt2", "phi", "gemma2", "phi3", "mixtral", "bert")


@pytest.fixture
def folder(saved):
    return saved("llama")[0]


@pytest.fixture
def store(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def quantizations(monkeypatch):
    """How often load_base streamed and quantized a source: one True a load, False for a hit."""
    found = []
    stream = load.stream_model

    def counted(checkpoint, shape, plan, **options):
        found.append(plan.quantize != "none")
        return stream(checkpoint, shape, plan, **options)

    monkeypatch.setattr(load, "stream_model", counted)
    return found


def entries(store):
    return sorted(path for path in store.iterdir() if path.name != "sources" and path.is_dir())


def same(one, other):
    first, second = state_on_disk(one.model), state_on_disk(other.model)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name])
    with torch.no_grad():
        assert torch.equal(one.model(inputs())[0], other.model(inputs())[0])
    for name in ("fingerprint", "source", "path", "kind", "dtype", "compute"):
        assert getattr(one, name) == getattr(other, name)
    assert (one.quantize, one.double_quant) == (other.quantize, other.double_quant)
    assert one.config.to_dict() == other.config.to_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_second_start_is_the_first(name, kind, saved, store, quantizations):
    folder, _ = saved(name)
    plain = load_base(folder, quantize=kind)
    first = load_base(folder, quantize=kind, cache=store)
    assert len(entries(store)) == 1
    second = load_base(folder, quantize=kind, cache=store)
    assert quantizations == [True, True, False]
    same(plain, first)
    same(plain, second)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["as stored", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compute", ["auto", "as stored"])
def test_dtypes(stored, dtype, compute, saved, store, quantizations):
    folder, _ = saved("qwen2", stored)
    options = {"dtype": dtype, "compute": compute, "quantize": "nf4"}
    first = load_base(folder, cache=store, **options)
    same(first, load_base(folder, cache=store, **options))
    assert quantizations == [True, False]


def test_each_way_of_holding_is_its_own(folder, store, quantizations):
    for options in (
        {"quantize": "nf4"},
        {"quantize": "nf4", "double_quant": False},
        {"quantize": "nf4", "dtype": "bf16"},
        {"quantize": "nf4", "dtype": "bf16", "compute": "as stored"},
        {"quantize": "int8"},
    ):
        same(
            load_base(folder, cache=store, **options),
            load_base(folder, cache=store, **options),
        )
    assert quantizations == [True, False] * 5
    assert len(entries(store)) == 5


def test_an_entry_is_an_ordinary_checkpoint(folder, store):
    base = load_base(folder, quantize="nf4", cache=store)
    (entry,) = entries(store)
    again = load_base(entry)
    assert again.quantize == "nf4"
    assert again.fingerprint == base.fingerprint == fingerprint(folder)


def test_what_is_not_quantized_here_is_not_kept(folder, store):
    load_base(folder, cache=store)
    assert not store.exists()
    load_base(folder, quantize="nf4", cache=store)
    (entry,) = entries(store)
    load_base(entry, quantize="nf4", cache=store)
    assert entries(store) == [entry]


def test_off_by_default(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("RANGO_CACHE", str(tmp_path / "users"))
    load_base(folder, quantize="nf4")
    assert not (tmp_path / "users").exists()
    load_base(folder, quantize="nf4", cache=True)
    assert len(entries(tmp_path / "users")) == 1


class TestSources:
    def test_changed_weights_are_quantized_anew(self, folder, store, files, quantizations):
        first = load_base(folder, quantize="nf4", cache=store)
        tensors = files.tensors(folder)
        tensors["model.norm.weight"] += 1
        files.rewrite(folder, tensors)
        second = load_base(folder, quantize="nf4", cache=store)
        assert quantizations == [True, True]
        assert second.fingerprint == fingerprint(folder) != first.fingerprint
        same(second, load_base(folder, quantize="nf4"))
        assert len(entries(store)) == 2

    def test_not_even_with_the_old_size_and_time(self, folder, store, quantizations):
        load_base(folder, quantize="nf4", cache=store)
        path = max(folder.glob("*.safetensors"))
        before, data = path.stat(), bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        changed = load_base(folder, quantize="nf4", cache=store)
        assert changed.fingerprint == fingerprint(folder)
        assert quantizations == [True, True]

    def test_a_touched_or_copied_source_is_found_by_its_content(
        self, folder, store, tmp_path, quantizations
    ):
        load_base(folder, quantize="nf4", cache=store)
        for path in folder.iterdir():
            os.utime(path)
        load_base(folder, quantize="nf4", cache=store)
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        base = load_base(copy, quantize="nf4", cache=store)
        assert quantizations == [True, False, False]
        assert (base.path, base.source) == (copy, str(copy))
        assert len(entries(store)) == 1

    def test_a_known_source_is_not_hashed(self, folder, store, monkeypatch):
        load_base(folder, quantize="nf4", cache=store)
        monkeypatch.setattr(cache, "digest_files", None)
        load_base(folder, quantize="nf4", cache=store)
        for path in folder.iterdir():
            os.utime(path)
        with pytest.raises(TypeError):
            load_base(folder, quantize="nf4", cache=store)

    def test_another_configuration_is_another_base(self, folder, store, files, quantizations):
        load_base(folder, quantize="nf4", cache=store)
        files.edit_json(folder / "config.json", rms_norm_eps=0.5)
        base = load_base(folder, quantize="nf4", cache=store)
        assert quantizations == [True, True]
        same(base, load_base(folder, quantize="nf4"))

    def test_one_that_changes_while_it_is_read_is_not_kept(self, folder, store, monkeypatch):
        stream = load.stream_model

        def changing(*arguments, **options):
            found = stream(*arguments, **options)
            os.utime(next(folder.glob("*.safetensors")))
            return found

        monkeypatch.setattr(load, "stream_model", changing)
        load_base(folder, quantize="nf4", cache=store)
        assert entries(store) == []

    def test_a_missing_source_is_an_error_all_the_same(self, folder, store):
        load_base(folder, quantize="nf4", cache=store)
        next(folder.glob("*.safetensors")).unlink()
        with pytest.raises(CheckpointError, match="missing"):
            load_base(folder, quantize="nf4", cache=store)


def spoil_a_bit(entry):
    path = entry / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(entry):
    os.truncate(entry / "model.safetensors", 1000)


def empty(entry):
    for path in entry.iterdir():
        path.unlink()


def another_fingerprint(entry):
    facts = json.loads((entry / "rango.json").read_text())
    facts["base"]["fingerprint"] = "blake3:" + "0" * 64
    (entry / "rango.json").write_text(json.dumps(facts))


def no_facts(entry):
    (entry / "rango.json").unlink()


def another_kind(entry):
    config = json.loads((entry / "config.json").read_text())
    del config["quantization_config"]
    (entry / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage", [spoil_a_bit, truncate, empty, another_fingerprint, no_facts, another_kind]
)
def test_a_damaged_entry_is_made_anew(damage, folder, store, quantizations, caplog):
    first = load_base(folder, quantize="nf4", cache=store)
    (entry,) = entries(store)
    damage(entry)
    with caplog.at_level(logging.WARNING, "rango"):
        second = load_base(folder, quantize="nf4", cache=store)
    same(first, second)
    assert quantizations[-1] is True
    assert f"{entry}: damaged" in caplog.text
    assert entries(store) == [entry]
    load_base(folder, quantize="nf4", cache=store)
    assert quantizations[-1] is False


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {}}', '{"fingerprint": "blake3:x"}'])
def test_a_damaged_note_about_a_source_is_not_believed(text, folder, store, quantizations):
    load_base(folder, quantize="nf4", cache=store)
    (path,) = (store / "sources").iterdir()
    noted = json.loads(path.read_text())
    path.write_text(text)
    load_base(folder, quantize="nf4", cache=store)
    assert quantizations == [True, False]
    assert json.loads(path.read_text()) == noted


class TestBound:
    def test_the_least_recently_used_goes_first(self, folder, store):
        held = [{"quantize": "nf4"}, {"quantize": "int8"}, {"quantize": "nf4", "dtype": "bf16"}]
        names = []
        for number, options in enumerate(held[:2]):
            load_base(folder, cache=store, **options)
            names += [path for path in entries(store) if path not in names]
            os.utime(names[-1], (number, number))
        load_base(folder, cache=store, **held[0])  # used just now
        two = sum(path.stat().st_size for name in names for path in name.iterdir())
        load_base(folder, cache=store, cache_gb=two / 1e9, **held[2])
        assert names[0].is_dir()
        assert not names[1].exists()
        left = [path for entry in entries(store) for path in entry.iterdir()]
        assert sum(path.stat().st_size for path in left) <= two

    def test_one_over_the_bound_is_not_kept(self, folder, store):
        load_base(folder, quantize="nf4", cache=store, cache_gb=1e-6)
        assert entries(store) == []

    def test_nothing_else_in_the_folder_is_removed(self, folder, store):
        (store / "photos").mkdir(parents=True)
        (store / "photos" / "cat").write_bytes(bytes(100_000))
        (store / ".other.tmp").mkdir()
        store.chmod(0o700)
        load_base(folder, quantize="nf4", cache=store, cache_gb=1e-4)
        assert (store / "photos" / "cat").is_file()
        assert (store / ".other.tmp").is_dir()

    def test_notes_about_sources_are_bounded(self, folder, store, monkeypatch):
        monkeypatch.setattr(cache, "_MOST_SOURCES", 2)
        for name in "abc":
            link = folder.parent / f"other-{name}"
            folder.rename(link)
            load_base(link, quantize="nf4", cache=store)
            link.rename(folder)
        assert len(list((store / "sources").iterdir())) == 2


class TestFolder:
    def test_is_for_the_user_alone(self, folder, store):
        load_base(folder, quantize="nf4", cache=store)
        assert store.stat().st_mode & 0o777 == 0o700
        assert not list(store.rglob("*.bin"))
        assert not list(store.rglob("*.pt"))

    def test_one_that_others_can_write_to_is_not_used(self, folder, store, caplog):
        load_base(folder, quantize="nf4", cache=store)
        store.chmod(0o777)
        assert open_cache(store) is None
        assert "others than you can write" in caplog.text
        load_base(folder, quantize="nf4", cache=store)

    def test_one_that_cannot_be_made(self, folder, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        base = load_base(folder, quantize="nf4", cache=tmp_path / "file" / "cache")
        assert base.quantize == "nf4"
        assert "cannot be kept" in caplog.text

    @pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), PermissionError(13)])
    def test_a_disk_that_refuses(self, fault, folder, store, monkeypatch, caplog):
        def refuse(*arguments, **options):
            raise fault

        monkeypatch.setattr("rango.base.save.save_file", refuse)
        base = load_base(folder, quantize="nf4", cache=store)
        assert base.quantize == "nf4"
        assert "not kept" in caplog.text
        assert entries(store) == []
        assert not [path for path in store.iterdir() if path.name.startswith(".")]

    def test_a_lock_that_cannot_be_taken(self, folder, store, monkeypatch, caplog):
        store.mkdir(mode=0o700)
        (store / "lock").mkdir()
        assert load_base(folder, quantize="nf4", cache=store).quantize == "nf4"
        assert "not kept" in caplog.text

    def test_too_little_space(self, folder, store, monkeypatch, caplog):
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: _Usage)
        load_base(folder, quantize="nf4", cache=store)
        assert "too little space" in caplog.text
        assert entries(store) == []

    def test_what_bitsandbytes_could_not_read_is_not_kept(self, saved, store):
        base = load_base(saved("falcon")[0], quantize="nf4", cache=store)
        assert base.quantize == "nf4"
        assert entries(store) == []

    def test_ctrl_c_while_it_is_written(self, folder, store, monkeypatch):
        def interrupted(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr("rango.base.save.save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_base(folder, quantize="nf4", cache=store)
        assert entries(store) == []
        assert not [path for path in store.iterdir() if path.name.startswith(".")]


class _Usage:
    free = 0


_LOAD = """
    import os, sys, time
    from pathlib import Path
    import rango.base.save as save
    from rango.base.load import load_base

    folder, store, ready = sys.argv[1:4]
    write = save.save_file

    def slow(*arguments, **options):
        write(*arguments, **options)
        Path(ready).touch()
        while Path(ready).exists():
            time.sleep(0.01)

    if ready:
        save.save_file = slow
    print(load_base(folder, quantize="nf4", cache=store).fingerprint)
"""


def loading(folder, store, ready=""):
    command = [sys.executable, "-c", textwrap.dedent(_LOAD), str(folder), str(store), str(ready)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


class TestProcesses:
    def test_a_second_writer_goes_without(self, folder, store, tmp_path, quantizations):
        ready = tmp_path / "ready"
        first = loading(folder, store, ready)
        wait_for(ready)
        base = load_base(folder, quantize="nf4", cache=store)  # neither waits nor disturbs
        assert entries(store) == [path for path in entries(store) if path.name.endswith(".tmp")]
        ready.unlink()
        assert first.communicate(timeout=60)[0].strip() == base.fingerprint
        assert first.returncode == 0
        same(base, load_base(folder, quantize="nf4", cache=store))
        assert quantizations == [True, False]

    def test_two_at_once(self, folder, store):
        both = [loading(folder, store) for _ in range(2)]
        printed = {process.communicate(timeout=60)[0].strip() for process in both}
        assert [process.returncode for process in both] == [0, 0]
        assert printed == {fingerprint(folder)}
        assert len(entries(store)) == 1

    def test_a_killed_writer_leaves_no_entry(self, folder, store, tmp_path, quantizations):
        ready = tmp_path / "ready"
        process = loading(folder, store, ready)
        wait_for(ready)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert all(path.name.startswith(".") for path in entries(store))
        load_base(folder, quantize="nf4", cache=store)
        load_base(folder, quantize="nf4", cache=store)
        assert quantizations == [True, False]
        assert [path.name.startswith(".") for path in entries(store)] == [False]

    def test_an_entry_removed_while_in_use_still_computes(self, folder, store):
        load_base(folder, quantize="nf4", cache=store)
        base = load_base(folder, quantize="nf4", cache=store)
        for path in entries(store):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        same(base, load_base(folder, quantize="nf4"))
