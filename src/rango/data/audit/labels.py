"""How the labels of text+label data are distributed."""

from __future__ import annotations

from collections.abc import Iterator

from rango.data.audit.checks import INSTANCES, amount, finding
from rango.data.audit.result import Finding, Instance, Share
from rango.data.audit.view import View, printable, shorten

_MOST = 100_000
"""Different labels that are told apart; more of them are counted together."""
_OTHERS = "(others)"
_RARE = 20
"""A label is rare if the most frequent one has more than so many times its samples."""
_FEW = 10
"""Or if it has fewer samples than this."""


class Labels:
    """Counts the labels."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, Instance] = {}

    def add(self, view: View) -> None:
        """Note the next sample's label, if it has one."""
        label = view.example.label
        if label is None:
            return
        if label not in self._counts and len(self._counts) >= _MOST:
            label = _OTHERS
        self._counts[label] = self._counts.get(label, 0) + 1
        if label not in self._first:
            self._first[label] = Instance(view.example.origin, view.summary())

    def shares(self, total: int) -> tuple[Share, ...]:
        """The labels, the most frequent first."""
        ordered = sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return tuple(Share(label, count, count / total) for label, count in ordered)

    def findings(self) -> Iterator[Finding]:
        """A single label, or rare ones."""
        shares = self.shares(max(sum(self._counts.values()), 1))
        if len(shares) == 1:
            yield finding(
                "single label",
                shares[0].count,
                f"all {amount(shares[0].count)} have the label {_name(shares[0])}",
                "a classifier needs two labels at least; look whether the right column was read",
                [self._first[shares[0].name]],
            )
            return
        rare = [s for s in shares if s.count < _FEW or s.count * _RARE < shares[0].count]
        if rare:
            names = ", ".join(f"{_name(s)} ({s.count:,})" for s in rare[: -INSTANCES - 1 : -1])
            more = f" and {len(rare) - INSTANCES:,} more" if len(rare) > INSTANCES else ""
            yield finding(
                "label balance",
                sum(share.count for share in rare),
                f"{amount(len(rare), 'label')} of {len(shares):,} have fewer than {_FEW} samples, "
                f"or less than a {_RARE}th of the most frequent one "
                f"({_name(shares[0])}, {shares[0].count:,}): {names}{more}",
                "collect more samples of the rare labels, merge them into others, or weigh them; "
                "measure by label (macro F1), since accuracy hides them",
                [self._first[share.name] for share in rare[: -INSTANCES - 1 : -1]],
            )


def _name(share: Share) -> str:
    return repr(shorten(printable(share.name), 40))
