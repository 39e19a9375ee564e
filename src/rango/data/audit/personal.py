"""Likely personal data, masked wherever the audit shows a text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rango.data.audit.checks import Tally, of_all
from rango.data.audit.numbers import Numbers
from rango.data.audit.phones import Phones
from rango.data.audit.result import Finding
from rango.data.audit.secrets import secrets
from rango.data.audit.view import View

_ADDRESS = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
_DIGITS = re.compile(r"\d(?:(?:[ .()/-]{0,3}\d){6}|\d[A-Z]\d\d[A-Z]\d{3}[A-Z])")
"""Without seven digits in a row there is no number of any kind (but an Italian tax code)."""
_KEPT = {"API keys": 4, "payment cards": 4, "bank accounts": 4, "phone numbers": 3}
_KEPT_ELSE = 2
"""Characters left to see."""
_WHAT = {
    "API keys": "API keys, tokens or private keys",
    "payment cards": "payment card numbers (valid checksum, issued prefix)",
    "bank accounts": "bank account numbers (IBAN, valid checksum)",
    "identity numbers": "national identity numbers (valid checksum or form)",
    "e-mail addresses": "e-mail addresses",
    "phone numbers": "telephone numbers",
}
_ADVICE = {
    "API keys": "revoke them at once, then remove them: a model can repeat what it has learnt",
}
_ADVICE_ELSE = (
    "replace them by made-up ones, or leave the samples out, unless you may use them: a model can "
    "repeat what it has learnt"
)

Span = tuple[str, int, int]


class Personal:
    """Counts samples with personal data, and masks it in what they show."""

    def __init__(self) -> None:
        self._numbers = Numbers()
        self._phones = Phones()
        self._tallies = {check: Tally(check) for check in _WHAT}

    def add(self, view: View) -> None:
        """Look at the next sample; `view.shown` is masked from here on."""
        spans = self.find(view.text)
        if not spans:
            return
        view.shown = masked(view.text, spans)
        noted = set()
        for check, begin, _ in spans:
            if check not in noted:
                noted.add(check)
                self._tallies[check].hit(view, begin)

    def find(self, text: str) -> list[Span]:
        """(Check, begin, end) of all personal data of a text in its order, none overlapping."""
        found: list[Span] = [("API keys", *span) for span in secrets(text)]
        if _DIGITS.search(text):
            found += self._numbers(text)
            found += [("phone numbers", *span) for span in self._phones(text)]
        if "@" in text:
            for match in _ADDRESS.finditer(text):
                if not match[0].startswith("git@"):
                    found.append(("e-mail addresses", *match.span()))
        if len(found) < 2:
            return found
        # of two that overlap the one found first is kept: keys, then numbers with a checksum
        kept: list[Span] = []
        for span in found:
            if all(span[2] <= other[1] or other[2] <= span[1] for other in kept):
                kept.append(span)
        return sorted(kept, key=lambda span: span[1])

    def hide(self, text: str) -> str:
        """The text with its personal data masked."""
        return masked(text, self.find(text))

    def findings(self, total: int) -> Iterator[Finding]:
        """What was found in `total` samples."""
        for check, tally in self._tallies.items():
            yield from tally.finding(
                f"{of_all(tally.count, total)} hold what look like {_WHAT[check]}",
                _ADVICE.get(check, _ADVICE_ELSE),
            )


def masked(text: str, spans: list[Span]) -> str:
    """The text with stars for all but the first few characters of each span; as long as it was."""
    pieces, done = [], 0
    for check, begin, end in spans:
        seen = min(_KEPT.get(check, _KEPT_ELSE), (end - begin) // 3)
        hidden = text[begin + seen : end]
        stars = "".join("@" if char == "@" else "*" for char in hidden)
        pieces += [text[done : begin + seen], stars]
        done = end
    return "".join([*pieces, text[done:]])
