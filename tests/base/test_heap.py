"""Freed memory, in a process of its own: the settings last as long as it does."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest
import torch

from rango.base.heap import zero_

_TAKE_AND_FREE = """
    import resource, sys
    from rango.base.heap import keep_freed_memory, return_freed_memory

    def faults_of_taking():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pieces = [bytearray(2**22) for _ in range(2)]
        del pieces
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    return_freed_memory()  # what the imports have left
    faults_of_taking()
    if sys.argv[1] == "return":
        return_freed_memory()
    print(faults_of_taking())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_kept_is_not_fetched_again() -> None:
    pages = 2 * 2**22 // 4096
    assert _faults("keep") < pages / 10
    assert _faults("return") > pages / 2


def _faults(word: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(_TAKE_AND_FREE), word]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("count", [0, 1000, 2**24 + 3, 2**24 + 2**20])  # from 64 MB on by pages
@pytest.mark.parametrize("offset", [0, 5])
def test_zero_is_zero_and_touches_nothing_else(count: int, offset: int) -> None:
    memory = torch.ones(offset + count + 7)
    zero_(memory[offset : offset + count])
    assert not memory[offset : offset + count].any()
    assert bool((memory[:offset] == 1).all())
    assert bool((memory[offset + count :] == 1).all())


def test_zeros_take_no_memory_until_they_are_written() -> None:
    table = torch.ones(2**25)  # 128 MB
    before = _resident()
    zero_(table)
    assert before - _resident() > 100 * 2**20
    table += 1
    assert bool((table == 1).all())


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
