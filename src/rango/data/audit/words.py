"""Words that a person listed, found as whole words whatever their case and accents.

The tilde of ñ is no accent: "ano" doesn't find "año".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from rango.data.audit.checks import INSTANCES, Tally, of_all
from rango.data.audit.result import Finding
from rango.data.audit.view import View
from rango.errors import ConfigError

_WORD = re.compile(r"\w+")
_ACCENT = re.compile("(?<!n)[\u0300-\u036f]|[\u0300-\u0302\u0304-\u036f]")


class Words:
    """Counts samples with a listed word. Raises ConfigError for an entry without any letter."""

    def __init__(self, listed: Sequence[str]) -> None:
        self._phrases: dict[str, list[tuple[str, ...]]] = {}
        for entry in listed:
            phrase = tuple(_WORD.findall(folded(entry)))
            if not phrase:
                raise ConfigError(f"the word list has an entry without any word: {entry!r}")
            self._phrases.setdefault(phrase[0], []).append(phrase)
        self._tally = Tally("listed words")
        self._counts: Counter[str] = Counter()

    def add(self, view: View) -> None:
        """Look at the next sample."""
        if not self._phrases:
            return
        text = folded(view.text)
        found = _WORD.findall(text)
        if self._phrases.keys().isdisjoint(found):
            return
        hits = {
            phrase
            for place, word in enumerate(found)
            for phrase in self._phrases.get(word, ())
            if tuple(found[place : place + len(phrase)]) == phrase
        }
        if hits:
            self._counts.update(" ".join(phrase) for phrase in sorted(hits))
            places = [re.search(rf"\b{phrase[0]}\b", text) for phrase in hits]
            self._tally.hit(view, min(place.start() for place in places if place))

    def findings(self, total: int) -> Iterator[Finding]:
        """What was found in `total` samples."""
        common = sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))
        names = ", ".join(f"{word} ({count:,})" for word, count in common[:INSTANCES])
        yield from self._tally.finding(
            f"{of_all(self._tally.count, total)} hold words of the list: {names}",
            "read them, and remove those that the model shouldn't learn from",
        )


def folded(text: str) -> str:
    """Text without case and accents, composed; nearly as long."""
    if text.isascii():
        return text.lower()
    plain = _ACCENT.sub("", unicodedata.normalize("NFD", text.casefold()))
    return unicodedata.normalize("NFC", plain)
