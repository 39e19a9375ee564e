"""Telephone numbers: valid ones, written so that they can hardly be anything else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rango.data.audit.numbers import before
from rango.data.extras import extra

REGIONS = ("ES", "US", "GB", "FR", "PT", "MX")
"""Where a number without + may be from."""
_FORM = re.compile(r"(?<![\w+.,/#$€£-])(?:\+ ?)?\(?\d(?:[ .()-]{0,2}\d){6,14}(?![\w%])(?![.,/-]\d)")
_DATE = re.compile(r"\b(?:19|20)\d\d-[01]?\d-[0-3]?\d\b|\b[0-3]?\d[.-][01]?\d[.-](?:19|20)\d\d\b")
_SAYS_SO = re.compile(
    r"\b(?:tel(?!l|ev)|tfn|tlf|phone|mobile|m[oó]vil|cell|cel\b|fax|whats?app|call\b|ll[aá]m|"
    r"contact|t[eé]l[eé])",
    re.IGNORECASE,
)


class Phones:
    """Finds telephone numbers. Raises ConfigError where phonenumbers is not installed.

    Counted are valid numbers with their country's code (+34 …); valid ones of the regions beside
    a word that says so (tel., móvil, call …); and those grouped just as their country writes them.
    """

    def __init__(self) -> None:
        self._library: Any = extra("phonenumbers", "the audit")

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        """(Begin, end) of each number in a text."""
        for found in _FORM.finditer(text):
            written = found[0]
            if _DATE.search(written):
                continue
            if written.startswith("+"):
                good = self._valid(written, None) is not None
            elif _SAYS_SO.search(before(text, found.start())):
                good = any(self._valid(written, region) is not None for region in REGIONS)
            else:
                good = self._grouped(written)
            if good:
                yield found.span()

    def _grouped(self, written: str) -> bool:
        groups = re.findall(r"\d+", written)
        sizes = {len(group) for group in groups}
        # groups of three are how any large number is written
        if not 3 <= len(groups) <= 5 or sizes == {3} or not sizes <= {2, 3, 4}:
            return False
        for region in REGIONS:
            number = self._valid(written, region)
            if number is not None:
                usual = self._library.format_number(
                    number, self._library.PhoneNumberFormat.NATIONAL
                )
                if re.findall(r"\d+", usual) == groups:
                    return True
        return False

    def _valid(self, written: str, region: str | None) -> Any | None:
        try:
            number = self._library.parse(written, region)
        except self._library.NumberParseException:
            return None
        return number if self._library.is_valid_number(number) else None
