"""Freed memory, in a process of its own: the settings last as long as it does."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
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
@pytest.mark.skipif(_HUGE.exists() and "[always]" in _HUGE.read_text(), reason="pages of 2 MB")
def test_what_is_kept_is_not_fetched_again() -> None:
    pages = 2 * 2**22 // 4096
    assert _faults("keep") < pages / 10
    assert _faults("return") > pages / 2


def _faults(word: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(_TAKE_AND_FREE), word]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
