"""Numbers that name a person, an account or a card: found by form, then held to their checksum.

A form that any number may have counts only beside a word that says what it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from rango.data.extras import extra

_CONTEXT = 40
"""Characters before a number in which the word is looked for."""


@dataclass(frozen=True)
class _Kind:
    check: str
    form: str
    module: str
    """Of python-stdnum; its is_valid decides."""
    context: str = ""
    """What must stand before the number."""


_ID = "identity numbers"
_KINDS = (
    # Spain: eight digits and a letter, 12345678-Z, 12.345.678-Z; a foreigner's, X1234567L
    _Kind(_ID, r"(?<![\w.-])\d{8}-?[A-HJ-NP-TV-Z](?!\w)", "es.dni"),
    _Kind(_ID, r"(?<![\w.-])\d{2}\.\d{3}\.\d{3}[ -]?[A-HJ-NP-TV-Z](?!\w)", "es.dni"),
    _Kind(_ID, r"(?<![\w.-])\d{8}[ -]?[A-Za-z](?!\w)", "es.dni", r"\b(?:dni|nif|identidad)\b"),
    _Kind(_ID, r"(?<![\w.-])[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z](?!\w)", "es.nie"),
    _Kind(_ID, r"(?<![\w.-])[XYZxyz][ -]?\d{7}[ -]?[A-Za-z](?!\w)", "es.nie", r"\b(?:nie|nif)\b"),
    # United States, Italy, France, Brazil, Portugal
    _Kind(_ID, r"(?<![\w.-])\d{3}-\d{2}-\d{4}(?![\w-])", "us.ssn"),
    _Kind(_ID, r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z](?!\w)", "it.codicefiscale"),
    _Kind(
        _ID,
        r"(?<![\w.,])[12] \d{2} (?:0[1-9]|1[0-2]) \d[\dAB] \d{3} \d{3} \d{2}(?![\w.,]\d)",
        "fr.nir",
    ),
    _Kind(_ID, r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d{2}(?![\w-])", "br.cpf"),
    _Kind(_ID, r"(?<![\w.,-])\d{9}(?![\w,-])", "pt.nif", r"\b(?:nif|contribuinte)\b"),
)
_CARD = re.compile(
    r"(?<![\w.,-])(?:\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}(?:[ -]?\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{4,5}"
    r"|\d{14,19})(?![\w-])(?![.,]\d)"
)
_ISSUED = re.compile(
    r"4\d{15}|4\d{18}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|62\d{14,17}"
)
"""Visa, Mastercard, American Express, Discover, JCB, Diners Club, UnionPay."""
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ -]?[0-9A-Z]{4}){2,7}(?:[ -]?[0-9A-Z]{1,3})?(?!\w)")
_DIGIT = re.compile(r"\d")


class Numbers:
    """Finds numbers. Raises ConfigError where python-stdnum is not installed."""

    def __init__(self) -> None:
        self._luhn = extra("stdnum.luhn", "the audit").is_valid
        self._iban = extra("stdnum.iban", "the audit").is_valid
        self._kinds = [
            (
                kind.check,
                re.compile(kind.form),
                extra(f"stdnum.{kind.module}", "the audit").is_valid,
                re.compile(kind.context, re.IGNORECASE) if kind.context else None,
            )
            for kind in _KINDS
        ]

    def __call__(self, text: str) -> Iterator[tuple[str, int, int]]:
        """(Check, begin, end) of each number in a text; one may be found twice."""
        for found in _CARD.finditer(text):
            digits = "".join(_DIGIT.findall(found[0]))
            if _ISSUED.fullmatch(digits) and self._luhn(digits):
                yield "payment cards", *found.span()
        for found in _IBAN.finditer(text):
            if end := self._account(found[0]):
                yield "bank accounts", found.start(), found.start() + end
        for check, form, is_valid, context in self._kinds:
            for found in form.finditer(text):
                if context and not context.search(before(text, found.start())):
                    continue
                if is_valid(found[0].replace(".", "")):
                    yield check, *found.span()

    def _account(self, candidate: str) -> int:
        """How much of it is a valid IBAN: capitals that follow look like a part of it."""
        while len(candidate) > 14:
            if self._iban(candidate):
                return len(candidate)
            candidate = candidate[: max(candidate.rfind(" "), candidate.rfind("-"), 0)]
        return 0


def before(text: str, place: int) -> str:
    """What stands before a place, composed."""
    return unicodedata.normalize("NFC", text[max(0, place - _CONTEXT) : place])
