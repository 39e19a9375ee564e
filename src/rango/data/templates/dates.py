"""Templates that print today's date print one fixed day, so that the same data stay the same.

Such templates (Llama 3's among them) ask transformers for the date with ``strftime_now(format)``. A
macro of that name before the template answers in its place. It is part of the template's text from
then on: whoever renders the template that lies beside an adapter prints the day it was trained
with.
"""

from __future__ import annotations

import re
from datetime import datetime

DAY = datetime(2024, 7, 26)
"""The day printed: the one that Llama 3's template falls back to."""

_CODES = (
    *("-d", "-e", "-m", "-H", "-I", "-M", "-S", "-j", "-y"),
    *"aAwdebBhmyYCHIMSpfjUWGuVDFTRcxX",
)
_CALL = re.compile(r"\bstrftime_now\s*\(")
_MACRO = re.compile(r"\{%[-+]?\s*macro\s+strftime_now\b")
_NOTE = re.compile(r"\{# the day is always ([0-9-]{10}) #\}")


def pinned(template: str, day: datetime = DAY) -> str:
    """The template with its day fixed; one that asks for no date, or is fixed already, as it is."""
    if not _CALL.search(template) or _MACRO.search(template):
        return template
    answers = "".join(f" | replace('%{code}', '{day.strftime('%' + code)}')" for code in _CODES)
    note = f"{{# the day is always {day:%Y-%m-%d} #}}"
    body = f"{note}{{{{ format{answers} | replace('%%', '%') }}}}"
    return f"{{% macro strftime_now(format) %}}{body}{{% endmacro %}}\n{template}"


def printed_day(template: str) -> str | None:
    """The day that a template was fixed to, as YYYY-MM-DD; None for one that asks for no date."""
    found = _NOTE.search(template)
    return found[1] if found else None
