"""Read a data file: JSON Lines, a JSON list, or plain text; every fault is named by file and line.

Which of them a file is, is seen from its content; only ``.txt``, ``.text`` and ``.md`` are plain
text by their name. Plain text is one sample per paragraph (blank lines separate paragraphs); for
longer documents write ``{"text": …}`` entries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rango.data.faults import Faults
from rango.data.formats import FORMATS, Format, parse_entry, recognise
from rango.data.samples import Example, Origin
from rango.errors import DataError
from rango.progress import Progress, silent

_TEXT_SUFFIXES = (".txt", ".text", ".md")
_UTF8_MARK = b"\xef\xbb\xbf"
_REPORT_EVERY = 10_000
"""Examples between two reports of progress."""
_SPACE = re.compile(r"[ \t\r\n]*")

Entry = tuple[Origin, Any]


def read_examples(path: str | Path, *, progress: Progress = silent) -> list[Example]:
    """The examples of a file, in its order, each with its file and line.

    A byte-order mark and Windows line ends are accepted; blank lines are skipped.
    Raises DataError: a missing, unreadable, empty or malformed file; up to ten faults at once.
    """
    path = Path(path)
    faults = Faults(str(path))
    content = _read_bytes(path)
    total = content.count(b"\n") + 1
    examples: list[Example] = []
    format: Format | None = FORMATS[-1] if _is_text(path) else None
    for origin, entry in _entries(path, content, faults):
        try:
            format = format or recognise(entry, origin)
            examples.append(parse_entry(entry, format, origin))
            if len(examples) % _REPORT_EVERY == 0:
                progress("read", origin.line, total, "lines")
        except DataError as error:
            faults.add(error)
    faults.raise_any()
    if not examples:
        raise DataError(f"{path}: no samples: the file is empty; {_EXPECTED}")
    return examples


_EXPECTED = (
    "expected JSON Lines or a JSON list of entries with 'messages'; 'instruction' and 'output'; "
    "'prompt' and 'completion'; or 'text'"
)


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in _TEXT_SUFFIXES


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path to the data") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: a folder, expected a file of samples; {_EXPECTED}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: encoded as UTF-16; save it as UTF-8")
    return content.removeprefix(_UTF8_MARK)


def _entries(path: Path, content: bytes, faults: Faults) -> Iterator[Entry]:
    if _is_text(path):
        return _paragraphs(path, content, faults)
    start = content.lstrip()[:1]
    if start == b"[":
        return _list_entries(path, content, faults)
    if start == b"{" and (whole := _one_object(content)) is not None:
        return iter([(Origin(str(path), 1), whole)])
    if start in (b"{", b""):
        return _line_entries(path, content, faults)
    line = 1 + content[: len(content) - len(content.lstrip())].count(b"\n")
    raise DataError(
        f"{path}:{line}: neither JSON nor JSON Lines (it starts with {_shown(content)}); "
        f"{_EXPECTED}. Plain text needs a name ending in {', '.join(_TEXT_SUFFIXES)}"
    )


def _line_entries(path: Path, content: bytes, faults: Faults) -> Iterator[Entry]:
    for origin, line in _lines(path, content, faults):
        if line.strip():
            try:
                yield origin, _parse(line, origin)
            except DataError as error:
                faults.add(error)


def _list_entries(path: Path, content: bytes, faults: Faults) -> Iterator[Entry]:
    """The elements of a JSON list, each with the line on which it begins."""
    lines = [line for _, line in _lines(path, content, faults)]
    faults.raise_any()
    text = "\n".join(lines)
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    line, counted = 1, 0
    position = _skip_space(text, _skip_space(text, 0) + 1)
    if text[position : position + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, position), position
        origin = Origin(str(path), line)
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            # what follows a broken element can't be told apart, so the file ends here
            faults.add(_malformed(error, origin, text, line_of_text=1))
            return
        yield origin, value
        position = _skip_space(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "]"):
            line += text.count("\n", counted, position)
            found = repr(mark) if mark else "the end of the file (is it cut short?)"
            faults.add(
                DataError(f"{path}:{line}: expected ',' or ']' in the JSON list, found {found}")
            )
            return
        if mark == "]":
            break
        position = _skip_space(text, position + 1)
    end = _skip_space(text, position + 1)
    if end < len(text):
        line = 1 + text.count("\n", 0, end)
        faults.add(DataError(f"{path}:{line}: text after the end of the JSON list"))


def _paragraphs(path: Path, content: bytes, faults: Faults) -> Iterator[Entry]:
    begin, gathered = 0, list[str]()
    for origin, line in _lines(path, content, faults):
        if line.strip():
            begin = begin if gathered else origin.line
            gathered.append(line)
        elif gathered:
            yield Origin(str(path), begin), {"text": "\n".join(gathered)}
            gathered = []
    if gathered:
        yield Origin(str(path), begin), {"text": "\n".join(gathered)}


def _lines(path: Path, content: bytes, faults: Faults) -> Iterator[tuple[Origin, str]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        origin = Origin(str(path), number)
        try:
            yield origin, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            faults.add(
                DataError(
                    f"{origin}: not UTF-8 (byte 0x{line[error.start]:02x} at column "
                    f"{error.start + 1}); save the file as UTF-8"
                )
            )


def _one_object(content: bytes) -> dict[str, Any] | None:
    """The object that is the whole of a file and spans several lines, if that is what it is."""
    try:
        json.loads(content.lstrip().split(b"\n", 1)[0])
        return None
    except (ValueError, RecursionError):
        pass
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse(text: str, origin: Origin) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed(error, origin, text) from error


def _malformed(
    error: Exception, origin: Origin, text: str, line_of_text: int | None = None
) -> DataError:
    """The fault of broken JSON; `line_of_text` is the file's line on which `text` begins, where
    `text` is the whole file and the fault may be further down than `origin`."""
    if isinstance(error, RecursionError):
        return DataError(f"{origin}: malformed JSON: nested too deeply")
    if not isinstance(error, json.JSONDecodeError):
        return DataError(f"{origin}: {error}")
    if line_of_text is not None:
        origin = Origin(origin.file, line_of_text + error.lineno - 1)
    at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
    cut = " (is it cut short?)" if at_end else ""
    return DataError(f"{origin}: malformed JSON at column {error.colno}: {error.msg}{cut}")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write a string, or null for a value that is missing")


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _shown(content: bytes) -> str:
    return repr(content.lstrip()[:20].decode(errors="replace"))
