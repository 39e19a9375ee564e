"""Every error a user can meet, in one tree, with the exit code the command line returns for it.

A message says what was expected, what was found, where (file:line, tensor, flag) and what to do.
Each error is also the standard exception a caller would expect to catch.

Exit codes: 0 success, 1 unforeseen fault, 2 usage or configuration, 3 data, 4 base checkpoint or
tokenizer, 5 adapter or targets, 6 output exists, 7 storage (disk full, not writable), 8 training
stopped on a non-finite loss, 9 a check failed (proof or verification), 10 warnings in the data
(`rango check --strict`), 11 some of many jobs failed, 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RangoError(Exception):
    """Base of all errors that Rango raises on purpose."""

    exit_code = 1


class ConfigError(RangoError, ValueError):
    """A flag, a configuration key or a combination of them makes no sense."""

    exit_code = 2


class DataError(RangoError, ValueError):
    """A data file is missing, empty, malformed, or holds a sample that cannot be used."""

    exit_code = 3


class CheckpointError(RangoError, ValueError):
    """A base checkpoint is missing, truncated, or not what its configuration says."""

    exit_code = 4


class TokenizerError(CheckpointError):
    """A tokenizer is missing or lacks something the task needs (end token, chat template)."""


class AdapterError(RangoError, ValueError):
    """An adapter is malformed, or does not belong to this base."""

    exit_code = 5


class TargetError(AdapterError):
    """A target names no module of the model."""


class OutputExistsError(RangoError, FileExistsError):
    """The output is already there, and nothing is overwritten without being asked."""

    exit_code = 6


class StorageError(RangoError, OSError):
    """The disk refused: full, read-only, or not writable."""

    exit_code = 7


class NonFiniteLossError(RangoError, ArithmeticError):
    """The loss became NaN or infinite; the weights are those before that step."""

    exit_code = 8


class VerificationError(RangoError, RuntimeError):
    """A check of the result failed: what is on disk does not compute what was trained."""

    exit_code = 9


class JobsFailedError(RangoError, RuntimeError):
    """Some of many jobs failed; the others were trained."""

    exit_code = 11


INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase naming the known words most like `word`, or nothing: ``; nearest: a, b``."""
    names = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f"; nearest: {', '.join(names)}" if names else ""
