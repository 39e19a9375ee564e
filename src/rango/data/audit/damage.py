"""Characters that got damaged on the way: wrong encodings, halves of characters, controls."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from rango.data.audit.checks import Tally, of_all
from rango.data.audit.drops import Drops
from rango.data.audit.result import Finding
from rango.data.audit.view import View
from rango.data.extras import extra

_STRANGE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x01-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_COMBINING = re.compile("[\u0300-\u036f]")
_PAIR = re.compile("[\x80-\u2e7f]{2}")
"""What mojibake consists of, but for a few forms: it saves the costly judgement of most texts."""
_MOST = 1_000_000
"""Characters of a sample searched for mojibake."""


class Damage:
    """Counts damaged samples. Raises ConfigError where ftfy is not installed."""

    def __init__(self) -> None:
        self._is_bad = extra("ftfy.badness", "the audit").is_bad
        self._fix = extra("ftfy", "the audit").fix_encoding
        self._surrogates = Tally("lone surrogates")
        self._nul = Tally("NUL characters")
        self._control = Tally("control characters")
        self._replaced = Tally("replacement characters")
        self._mojibake = Tally("mojibake")
        self._decomposed = Tally("mixed normalisation")
        self._composed = 0

    def add(self, view: View, drops: Drops) -> None:
        """Look at the next sample."""
        text = view.text
        strange = _STRANGE.search(text) is not None
        if text.isascii():
            if strange:
                self._note_strange(view, drops, repaired=False)
            return
        mojibake = self._note_mojibake(view, strange)
        if strange:
            self._note_strange(view, drops, repaired=mojibake)
        if _COMBINING.search(text) and not unicodedata.is_normalized("NFC", text):
            self._decomposed.hit(view, _first_decomposed(text))
        elif not unicodedata.is_normalized("NFD", text):
            self._composed += 1

    def findings(self, total: int) -> Iterator[Finding]:
        """What was found in `total` samples."""
        yield from self._surrogates.finding(
            f"{of_all(self._surrogates.count, total)} hold half of a character (a lone surrogate), "
            "which no tokenizer can read",
            "repair the program that wrote the file, or leave them out (--fix does)",
        )
        yield from self._nul.finding(
            f"{of_all(self._nul.count, total)} hold NUL characters: binary data, or UTF-16 read as "
            "something else",
            "write the file again as UTF-8, or leave them out (--fix does)",
        )
        yield from self._control.finding(
            f"{of_all(self._control.count, total)} hold control characters (terminal colours, "
            "backspaces, rests of binary data)",
            "remove them, unless the model is to write them",
        )
        yield from self._replaced.finding(
            f"{of_all(self._replaced.count, total)} hold the replacement character U+FFFD: what "
            "stood there was lost when the text was decoded",
            "read the original again in its own encoding; the lost characters cannot be got back",
        )
        yield from self._mojibake.finding(
            f"{of_all(self._mojibake.count, total)} look like text that was read in the wrong "
            "encoding (mojibake, such as Ã© for é)",
            "read the original again as UTF-8, or repair the texts with ftfy.fix_text: else the "
            "model learns to write them so",
        )
        if self._composed:
            share = of_all(self._decomposed.count, total)
            yield from self._decomposed.finding(
                f"{share} write accented letters as two characters (NFD), {self._composed:,} as "
                "one (NFC); tokenizers see different words",
                "normalise all texts to NFC, as users type it, before training",
            )

    def _note_strange(self, view: View, drops: Drops, *, repaired: bool) -> None:
        text = view.text
        if found := _SURROGATE.search(text):
            self._surrogates.hit(view, found.start())
            code = f"\\u{ord(found[0]):04x}"
            drops.add(view.index, "lone surrogates", f"holds half of a character ({code})")
        if "\0" in text:
            self._nul.hit(view, text.index("\0"))
            drops.add(view.index, "NUL characters", "holds NUL characters")
        if not repaired and (found := _CONTROL.search(text)):
            self._control.hit(view, found.start())
        if "\ufffd" in text:
            self._replaced.hit(view, text.index("\ufffd"))

    def _note_mojibake(self, view: View, strange: bool) -> bool:
        """Bad by ftfy's judgement, and better after its repair: either alone errs too often."""
        text = view.text[:_MOST]
        if not (strange or "Ã " in text or "Â " in text or _PAIR.search(text)):
            return False
        if self._is_bad(text) and not _SURROGATE.search(text):
            text = unicodedata.normalize("NFC", text)
            fixed = self._fix(text)
            if self._is_bad(text) and fixed != text:
                self._mojibake.hit(view, _first_difference(text, fixed))
                return True
        return False


def _first_decomposed(text: str) -> int:
    found = _COMBINING.search(text)
    return found.start() if found else 0


def _first_difference(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), 0)
