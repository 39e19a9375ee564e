"""Freed memory, in a process of its own: the settings last as long as it does."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from rango.base.heap import zero

_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TAKE_AND_FREE = """
    import resource, sys
    from transformers import LlamaConfig
    from rango.base.heap import return_freed_memory, settle_freed_memory

    def faults_of_taking():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pieces = [bytearray(2**22) for _ in range(2)]
        del pieces
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    settle_freed_memory(LlamaConfig(hidden_size=int(sys.argv[1])))
    return_freed_memory()  # what the imports have left
    faults_of_taking()
    if sys.argv[2:]:
        return_freed_memory()
    print(faults_of_taking())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.skipif(_HUGE.exists() and "[always]" in _HUGE.read_text(), reason="pages of 2 MB")
def test_a_narrow_model_keeps_what_a_wide_one_gives_back() -> None:
    pages = 2 * 2**22 // 4096
    assert _faults("512") < pages / 10
    assert _faults("512", "return") > pages / 2
    assert _faults("4096") > pages / 2


@pytest.mark.parametrize("size", [1000, 2**25 + 1001])
def test_zeroes_a_table_whole_and_nothing_beside_it(size: int) -> None:
    memory = torch.ones(size + 2)
    zero(memory[1:-1])
    assert not memory[1:-1].any()
    assert memory[0] == memory[-1] == 1
    memory[1:-1] += 2
    assert memory.sum() == 2 * size + 2


def test_zeroes_a_table_that_processes_share() -> None:
    memory = torch.ones(2**25).share_memory_()
    zero(memory)
    assert not memory.any()


def _faults(*words: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(_TAKE_AND_FREE), *words]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
