"""Samples that stand more than once, nearly so, or with another answer.

Kept of each sample until the end of the pass: a 128-bit digest of the whole, 64 bits of the prompt
and of the answer (33 bytes in all), and in a temporary file a MinHash signature of 128 bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rango.data.audit.checks import INSTANCES, amount, finding, of_all
from rango.data.audit.drops import Drops
from rango.data.audit.groups import groups
from rango.data.audit.ledger import Ledger
from rango.data.audit.minhash import ALIKE, PERMUTATIONS, Signatures
from rango.data.audit.result import Finding
from rango.data.audit.shingles import U64, Places
from rango.data.audit.view import View, digest
from rango.progress import Progress, silent

_NOTHING = bytes(8)


class Collected:
    """What is kept of the samples during the pass; a context, which closes the file."""

    def __init__(self) -> None:
        self._wholes = bytearray()
        self._prompts = bytearray()
        self._answers = bytearray()
        self._some = bytearray()
        self._signatures = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Collected:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._signatures.close()

    def add(self, views: Sequence[View], signatures: Signatures) -> None:
        """Note the next samples; `signatures` are those of their bodies."""
        for view in views:
            self._wholes += view.whole
            answered = view.answer and view.asked
            self._prompts += view.prompt[:8] if answered else _NOTHING
            self._answers += digest([view.answer])[:8] if answered else _NOTHING
            self._some.append(bool(view.body))
        self._signatures.write(signatures.tobytes())

    def close(self, progress: Progress = silent) -> Copies:
        """Compare all samples, of which there are some."""
        self._signatures.flush()
        # a plain array over the same memory; what is mapped is the system's to take back
        signatures = np.memmap(self._signatures, np.uint8, "r").view(np.ndarray)
        return Copies(
            np.frombuffer(self._wholes, np.uint64).reshape(-1, 2),
            np.frombuffer(self._prompts, np.uint64),
            np.frombuffer(self._answers, np.uint64),
            np.frombuffer(self._some, np.bool_),
            signatures.reshape(-1, PERMUTATIONS),
            progress,
        )


class Copies:
    """Copies, near copies and contradictions, by the samples' indices."""

    def __init__(
        self,
        wholes: U64,
        prompts: U64,
        answers: U64,
        some: NDArray[np.bool_],
        signatures: Signatures,
        progress: Progress = silent,
    ) -> None:
        every = np.arange(len(wholes))
        first = firsts(wholes)
        self.exact: Places = np.flatnonzero(first != every)
        """Copies of an earlier sample."""
        self.first = first
        """For each sample, the first one equal to it."""
        self.head, self.contradictory, self.prompts = _contradictions(prompts, answers)
        rows = np.flatnonzero((first == every) & some)
        group = first.copy()
        group[rows] = rows[groups(signatures, rows, progress)]
        self.group: Places = group[first]
        """For each sample, the first one of its group of near duplicates."""
        heads = group[rows]
        same_prompt = (prompts[rows] == prompts[heads]) & (prompts[rows] != 0)
        self.near: Places = rows[(heads != rows) & ~same_prompt]
        """Near copies of an earlier sample; with the same prompt, they are contradictions."""

    @property
    def distinct(self) -> int:
        """Samples that aren't copies or near copies of an earlier one."""
        return len(np.unique(self.group))

    @property
    def clusters(self) -> tuple[int, int]:
        """(Groups of two samples and more, exact copies counted; size of the largest or 0)."""
        sizes = np.bincount(self.group)
        several = sizes[sizes > 1]
        return len(several), int(several.max(initial=0))

    def findings(self, ledger: Ledger, drops: Drops) -> Iterator[Finding]:
        """What was found; exact copies but the first are dropped."""
        total = len(ledger)
        for index in self.exact.tolist():
            origin = ledger.origin(int(self.first[index]))
            drops.add(index, "exact duplicates", f"the same as {origin}")
        if len(self.exact):
            originals = len(np.unique(self.first[self.exact]))
            yield finding(
                "exact duplicates",
                len(self.exact),
                f"{of_all(len(self.exact), total)} repeat an earlier one exactly (white space and "
                f"Unicode form apart): copies of {amount(originals, 'different sample')}",
                "drop the copies (--fix keeps the first of each): they count several times in the "
                "loss, and may stand on both sides of a split",
                [ledger.instance(i, int(self.first[i])) for i in self.exact[:INSTANCES].tolist()],
            )
        if len(self.near):
            count = len(np.unique(self.group[self.near]))
            yield finding(
                "near duplicates",
                len(self.near),
                f"{of_all(len(self.near), total)} are nearly the same as an earlier one "
                f"(estimated similarity of {ALIKE} or more), in {amount(count, 'group')}",
                "read the pairs: keep one of each, unless the difference is what is to be learnt; "
                "keep a group on one side of the split; --fix leaves them as they are",
                [ledger.instance(i, int(self.group[i])) for i in self.near[:INSTANCES].tolist()],
            )
        if self.contradictory:
            shown = np.flatnonzero(self.head >= 0)[:INSTANCES].tolist()
            yield finding(
                "contradictions",
                self.contradictory,
                f"{of_all(self.contradictory, total)} have the same prompt as another and a "
                f"different answer or label: {amount(self.prompts, 'prompt')}",
                "decide which answer is right, and remove the others; keep several only where the "
                "variety is wanted; --fix leaves them as they are",
                [ledger.instance(i, int(self.head[i])) for i in shown],
            )


def firsts(keys: U64) -> Places:
    """For each row of (N, 2) keys, the first row equal to it."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    new = np.ones(len(keys), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(keys), np.intp)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def _contradictions(prompts: U64, answers: U64) -> tuple[Places, int, int]:
    """(For each sample that answers the prompt of an earlier one otherwise, that one, else −1;
    samples concerned, the earlier ones too; prompts concerned). A prompt of 0 is none."""
    asked = np.flatnonzero(prompts)
    order = asked[np.argsort(prompts[asked], kind="stable")]
    ordered = prompts[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    number = np.cumsum(new) - 1
    heads = order[new][number]
    differs = answers[order] != answers[heads]
    head = np.full(len(prompts), -1, np.intp)
    head[order[differs]] = heads[differs]
    concerned = np.zeros(int(new.sum()), np.bool_)
    concerned[number[differs]] = True
    return head, int(concerned[number].sum()), int(concerned.sum())
