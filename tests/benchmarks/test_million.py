"""Many short chats: none twice, the same each time; what a process and its workers hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rango.data.reading.read import read_examples

Module = Callable[[str], Any]


def test_chats_are_distinct_and_the_same_each_time(module: Module, tmp_path: Path) -> None:
    million = module("million")
    for name in ("a.jsonl", "b.jsonl"):
        million.write_chats(tmp_path / name, 500)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    prompts = {one.messages[0].content for one in read_examples(tmp_path / "a.jsonl")}
    assert len(prompts) == 500


def test_memory_is_that_of_a_process_and_those_it_started(module: Module) -> None:
    million = module("million")
    code = "import sys; held = bytearray(b'x') * 50_000_000; print(flush=True); sys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in list(million.tree(os.getpid()))
        assert 50e6 < million.held(process.pid) < 80e6
        process.communicate()
    assert million.held(process.pid) == 0


@pytest.mark.slow
def test_both_works_through_its_own_command(module: Module, tmp_path: Path) -> None:
    million = module("million")
    output = tmp_path / "found.json"
    assert million.main(["--samples", "300", "--output", str(output)]) == 0
    check, tokenize = json.loads(output.read_text())["results"]
    assert check["samples"] == tokenize["samples"] == 300
    assert check["tokens"] == tokenize["tokens"]
    assert 40 < check["tokens"] / 300 < 80
    assert check["peak_above_imports"] > 0
