"""Samples are made once for the same data, tokenizer and options; what is damaged is made again."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rango.data.samples import Example, Message, Origin
from rango.data.tokens import cache as token_cache
from rango.data.tokens import tokenize as module
from rango.data.tokens.cache import (
    cache_key,
    examples_digest,
    open_token_cache,
    token_cache_folder,
    tokenizer_digest,
    unkept,
)
from rango.data.tokens.chunk import TokenOptions
from rango.data.tokens.store import FACTS
from rango.data.tokens.tokenize import tokenize
from rango.errors import DataError, StorageError


def chat(question: str, answer: str, line: int = 1) -> Example:
    messages = (Message("user", question), Message("assistant", answer))
    return Example("chat", messages, Origin("data.jsonl", line))


EXAMPLES = [chat(f"Question {n}", "Paris " * (n % 9 + 1), n) for n in range(1, 30)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def runs(monkeypatch):
    """How many examples each call of tokenize has encoded; nothing for a call that made none."""
    found = []
    encode = module.encode_chunks

    def counted(chunks, *arguments, **options):
        chunks = list(chunks)
        found.append(sum(len(chunk) for chunk in chunks))
        return encode(chunks, *arguments, **options)

    monkeypatch.setattr(module, "encode_chunks", counted)
    return found


def entries(folder):
    return sorted(path for path in folder.iterdir() if path.name != "lock")


def test_the_second_run_is_the_first(make_tokenizer, folder, runs):
    lengths = sorted(tokenize(EXAMPLES, make_tokenizer()).samples.lengths.tolist())
    runs.clear()
    options = {"max_length": lengths[14], "too_long": "skip"}
    plain = tokenize(EXAMPLES, make_tokenizer(), **options)
    first = tokenize(EXAMPLES, make_tokenizer(), cache=folder, **options)
    told = []
    second = tokenize(
        iter_once(EXAMPLES),
        make_tokenizer(),
        cache=folder,
        data=examples_digest(EXAMPLES),
        progress=lambda *a, **k: told.append(a),
        **options,
    )
    assert runs == [29, 29]
    assert plain == first == second
    assert plain.skipped
    assert (first.tokens, first.supervised) == (second.tokens, second.supervised)
    assert told == [("tokenize", *[len(first.samples)] * 2, "samples", "kept from an earlier run")]
    assert len(entries(folder)) == 1


def iter_once(examples):
    """An iterator whose reading is a fault."""
    raise AssertionError("the data was read")
    yield from examples


def test_an_iterator_is_kept_under_the_digest_that_is_given(make_tokenizer, folder, runs):
    tokenizer = make_tokenizer()
    first = tokenize(iter(EXAMPLES), tokenizer, cache=folder)
    assert entries(folder) == []
    for _ in range(2):
        assert tokenize(iter(EXAMPLES), tokenizer, cache=folder, data="sha256:1") == first
    assert tokenize(iter(EXAMPLES), tokenizer, cache=folder, data="sha256:2") == first
    assert runs == [29, 29, 29]


def test_everything_that_decides_is_in_the_key(make_tokenizer, monkeypatch):
    tokenizer, options = make_tokenizer(), TokenOptions()
    other = make_tokenizer(template="{{ messages[0].content }}")
    more = make_tokenizer()
    more.add_tokens(["niño"])
    left, split = make_tokenizer(), make_tokenizer()
    left.truncation_side = "left"
    split.split_special_tokens = True
    keys = {
        cache_key("sha256:1", tokenizer, options),
        cache_key("sha256:2", tokenizer, options),
        cache_key("sha256:1", other, options),
        cache_key("sha256:1", more, options),
        cache_key("sha256:1", left, options),
        cache_key("sha256:1", split, options),
        cache_key("sha256:1", make_tokenizer("llama-3"), options),
        cache_key("sha256:1", tokenizer, TokenOptions(max_length=10)),
        cache_key("sha256:1", tokenizer, TokenOptions(too_long="skip")),
        cache_key("sha256:1", tokenizer, TokenOptions(loss_on="last")),
        cache_key("sha256:1", tokenizer, TokenOptions(labels=("a", "b"))),
        cache_key("sha256:1", tokenizer, TokenOptions(labels=("b", "a"))),
    }
    monkeypatch.setattr(token_cache, "_MAKING", (Path(token_cache.__file__),))
    keys.add(cache_key("sha256:1", tokenizer, options))
    monkeypatch.undo()
    monkeypatch.setattr(token_cache, "version", lambda name: "0")
    keys.add(cache_key("sha256:1", tokenizer, options))
    assert len(keys) == 14


def test_the_code_that_decides_is_in_the_key():
    names = {path.name for path in token_cache._MAKING}
    assert names >= {"chunk.py", "encode.py", "labelled.py", "render.py", "store.py", "tokenize.py"}
    assert all(path.is_file() for path in token_cache._MAKING)
    assert len(names) == len(token_cache._MAKING)


def test_a_tokenizer_is_the_same_before_and_after_use_and_saving(make_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer("mistral")
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "b c"], padding=False, truncation=True, max_length=1)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == before


@given(st.lists(st.text(), min_size=2, max_size=2), st.integers(1, 3))
def test_examples_with_other_words_or_places_have_other_digests(words, line):
    example = chat(*words, line)
    digests = {
        examples_digest([example]),
        examples_digest([chat(words[0] + "x", words[1], line)]),
        examples_digest([chat(words[0], words[1], line + 1)]),
        examples_digest([Example("completion", example.messages, example.origin)]),
        examples_digest([Example("chat", example.messages[::-1], example.origin)]),
        examples_digest([example, example]),
        examples_digest([]),
    }
    assert len(digests) == 7
    assert examples_digest(iter([chat(*words, line)])) in digests


@pytest.mark.parametrize("name", ["ids", "flags", "ends", "origins", FACTS])
@pytest.mark.parametrize("damage", [b"", b"{}", b'{"facts": 3}', b"[]", None])
def test_a_damaged_entry_is_made_again(make_tokenizer, folder, runs, caplog, name, damage):
    tokenizer = make_tokenizer()
    first = tokenize(EXAMPLES, tokenizer, cache=folder)
    (entry,) = entries(folder)
    (entry / name).unlink()  # not cut short in place, while the first run's samples are mapped
    if damage is not None:
        (entry / name).write_bytes(damage)
    with caplog.at_level(logging.WARNING, "rango"):
        assert tokenize(EXAMPLES, tokenizer, cache=folder) == first
    assert "damaged" in caplog.text
    assert str(entry) in caplog.text
    assert tokenize(EXAMPLES, tokenizer, cache=folder) == first
    assert runs == [29, 29]


def test_the_least_recently_used_go_first(make_tokenizer, folder, runs):
    tokenizer = make_tokenizer()
    sizes = []
    for number in range(3):
        tokenize(EXAMPLES, tokenizer, cache=folder, data=f"sha256:{number}")
        newest = max(entries(folder), key=lambda path: path.stat().st_mtime_ns)
        sizes.append(sum(path.stat().st_size for path in newest.iterdir()))
    tokenize(EXAMPLES, tokenizer, cache=folder, data="sha256:0")
    assert len(runs) == 3
    gigabytes = (sum(sizes) + 100) / 1e9
    tokenize(EXAMPLES, tokenizer, cache=folder, data="sha256:3", cache_gb=gigabytes)
    assert len(entries(folder)) == 3
    for number in (0, 2, 3):
        tokenize(EXAMPLES, tokenizer, cache=folder, data=f"sha256:{number}")
    assert len(runs) == 4
    tokenize(EXAMPLES, tokenizer, cache=folder, data="sha256:1")
    assert len(runs) == 5


def test_what_is_over_the_bound_is_used_and_not_kept(make_tokenizer, folder):
    found = tokenize(EXAMPLES, make_tokenizer(), cache=folder, cache_gb=1e-7)
    assert found == tokenize(EXAMPLES, make_tokenizer())
    assert entries(folder) == []


def test_faults_leave_nothing(make_tokenizer, folder):
    with pytest.raises(DataError, match="over the limit"):
        tokenize(EXAMPLES, make_tokenizer(), cache=folder, max_length=20)
    assert entries(folder) == []


def test_a_full_disk_leaves_nothing(make_tokenizer, folder, monkeypatch):
    def refuse(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(module.StoreWriter, "finish", refuse)
    with pytest.raises(StorageError):
        tokenize(EXAMPLES, make_tokenizer(), cache=folder)
    assert entries(folder) == []


def test_another_process_may_be_faster(make_tokenizer, folder, monkeypatch):
    tokenizer = make_tokenizer()
    finish = module.StoreWriter.finish

    def meanwhile(writer, notes):
        monkeypatch.setattr(module.StoreWriter, "finish", finish)
        tokenize(EXAMPLES, tokenizer, cache=folder)  # commits first
        return finish(writer, notes)

    monkeypatch.setattr(module.StoreWriter, "finish", meanwhile)
    first = tokenize(EXAMPLES, tokenizer, cache=folder)
    assert len(entries(folder)) == 1
    assert tokenize(EXAMPLES, tokenizer, cache=folder) == first


def test_an_entry_that_appears_just_before_is_used(make_tokenizer, folder, runs):
    tokenizer = make_tokenizer()
    first = tokenize(EXAMPLES, tokenizer, cache=folder)
    cache = open_token_cache(folder)
    assert cache is not None
    key = entries(folder)[0].name
    assert cache.make(key, lambda _: pytest.fail("not needed")) == first.samples
    shutil.rmtree(folder / key)
    (folder / key).write_text("in the way")
    writes = []

    def write(into):
        writes.append(into)
        return unkept(lambda _: first.samples)

    assert cache.make(key, write) == first.samples
    assert not str(writes[0]).startswith(str(folder))


def test_what_a_killed_process_left_is_cleared_unless_another_still_writes(make_tokenizer, folder):
    folder.mkdir(mode=0o700)
    left = folder / f".{'0' * 64}.abc.tmp"
    left.mkdir()
    (left / "ids").write_bytes(b"half")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        tokenize(EXAMPLES, make_tokenizer(), cache=folder)
        assert left.is_dir()
    tokenize(EXAMPLES[1:], make_tokenizer(), cache=folder)
    assert not left.exists()
    assert len(entries(folder)) == 2


_RUN = """
import sys
from pathlib import Path
from rango.data.samples import Origin, Sample
from rango.data.tokens.store import Block, StoreWriter
from rango.data.tokens.cache import TokenCache

samples = [Sample((n, n + 1), (False, True), (False, True), Origin("a", n)) for n in range(500)]

def write(folder):
    with StoreWriter(folder) as writer:
        for first in range(0, 500, 10):
            writer.add(Block.of(samples[first : first + 10]))
        return writer.finish({})

cache = TokenCache(Path(sys.argv[1]), 10**9)
for key in (str(n % 4) * 64 for n in range(16)):
    found = cache.find(key)
    assert (cache.make(key, write) if found is None else found) == samples
    if key[0] == sys.argv[2]:
        import shutil
        shutil.rmtree(cache.folder / key, ignore_errors=True)
"""


def test_processes_share_a_folder(folder):
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-c", textwrap.dedent(_RUN), str(folder)]
    running = [
        subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(2)
    ]
    for process in running:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert all(len(path.name) == 64 for path in entries(folder))


def test_folders_that_cannot_be_used(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rango"):
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        assert open_token_cache(shared) is None
        assert "others than you can write to it" in caplog.text
        (tmp_path / "file").write_text("")
        assert open_token_cache(tmp_path / "file" / "cache") is None
        assert "cannot be kept here" in caplog.text
    assert open_token_cache(False) is None


def test_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RANGO_CACHE", str(tmp_path / "own"))
    assert token_cache_folder() == tmp_path / "own" / "tokens"
    monkeypatch.delenv("RANGO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert token_cache_folder() == tmp_path / "rango" / "tokens"
    cache = open_token_cache(True)
    assert cache is not None
    assert cache.folder.is_dir()
    assert os.stat(cache.folder).st_mode & 0o077 == 0


def test_faults_that_were_skipped_are_told_again(make_tokenizer, folder, runs):
    tokenizer = make_tokenizer("gemma")
    odd = Example("chat", (Message("system", "a"), *EXAMPLES[0].messages), Origin("data.jsonl", 99))
    told = []
    for _ in range(2):
        heard = []
        found = tokenize([*EXAMPLES, odd], tokenizer, cache=folder, skip=heard.append)
        assert len(found.samples) == len(EXAMPLES)
        told.append([str(error) for error in heard])
    assert told[0] == told[1]
    (message,) = told[0]
    assert message.startswith("data.jsonl:99: ")
    with pytest.raises(DataError, match=r"data\.jsonl:99: "):
        tokenize([*EXAMPLES, odd], tokenizer, cache=folder)
    assert runs == [30]
    with pytest.raises(DataError, match="over the limit"):  # which too_long decides about
        tokenize(EXAMPLES, tokenizer, max_length=5, skip=told.append)
