"""What a user names as data, and the files that it stands for.

A file; a folder (its data files, those of its subfolders too, sorted by path); a glob; "-" for
standard input; a data set of the Hub (owner/name, with /config and :split where it has several);
or a list of these. What exists on this machine wins over the Hub.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rango.errors import DataError

TEXT_SUFFIXES = (".txt", ".text", ".md")
"""Names of plain text; everything else is recognised by its content."""
CSV_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (
    *(".jsonl", ".json", ".ndjson"),
    *CSV_SUFFIXES,
    *(".parquet", ".arrow", ".feather", ".ipc"),
    *TEXT_SUFFIXES,
)
"""What is read from a folder; .gz may follow each. A file that is named may have any name."""

_ABOUT = ("readme", "license", "licence")
"""Files about the data, left out of folders."""
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside its Arrow files."""
_HUB = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)"
    r"(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?"
)

Named = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class StandardInput:
    """Standard input."""

    def __str__(self) -> str:
        return "<stdin>"


@dataclass(frozen=True)
class HubSet:
    """A data set of the Hub."""

    name: str
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}:{self.split}"


Source = Path | StandardInput | HubSet


def resolve(named: Named) -> list[Source]:
    """The files, in the order in which they are read.

    Raises DataError: nothing there by that name, nothing in it, or a folder with other files.
    """
    if isinstance(named, str | Path):
        return _resolve(named)
    found = [source for each in named for source in _resolve(each)]
    if not found:
        raise DataError("no data was named; expected a file, a folder, a glob or - at least")
    return found


def described(named: Named) -> str:
    """The source as it was named, in a few words."""
    if isinstance(named, str | Path):
        return str(StandardInput()) if named == "-" else str(named)
    words = [described(each) for each in named]
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def suffix_of(name: str) -> str:
    """The suffix of a file, in small letters, without that of its compression."""
    return Path(name.lower().removesuffix(".gz")).suffix


def _resolve(named: str | Path) -> list[Source]:
    if named == "-":
        return [StandardInput()]
    if not str(named).strip():
        raise DataError("the name of the data is empty; expected a file, a folder, a glob or -")
    path = Path(named)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _elsewhere(named)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [*_folder(path)] if path.is_dir() else [path]


def _elsewhere(named: str | Path) -> list[Source]:
    """What a name that is no path stands for."""
    if glob.has_magic(str(named)):
        matches = sorted(glob.glob(str(named), recursive=True))
        found = [source for match in matches for source in _resolve(Path(match))]
        if not found:
            raise DataError(f"{named}: no file matches; check the folder and the pattern")
        return found
    hub = _HUB.fullmatch(named) if isinstance(named, str) else None
    if hub is None or suffix_of(hub[0].partition(":")[0]) in SUFFIXES:
        raise DataError(f"{named}: no such file; check the path to the data")
    return [HubSet(hub["name"], hub["config"], hub["split"] or "train")]


def _folder(folder: Path) -> list[Path]:
    found: list[Path] = []
    unknown: list[str] = []
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [Path(root, name) for name in folders if Path(root, name).is_symlink()]
        unknown += [f"{link.relative_to(folder)}/ (a link)" for link in links]
        saved = any(suffix_of(name) == ".arrow" for name in names)
        for name in names:
            if name.startswith(".") or (saved and name in _SAVED):
                continue
            if Path(name).stem.lower() in _ABOUT:
                continue
            path = Path(root, name)
            if suffix_of(name) in SUFFIXES:
                found.append(path)
            else:
                unknown.append(str(path.relative_to(folder)))
    kinds = f"files that end in {', '.join(SUFFIXES)} (or these with .gz)"
    if unknown:
        unknown.sort()
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"{folder}: a folder with files of unknown kinds: {', '.join(unknown[:5])}{more}; "
            f"expected {kinds}. Take them out, or name the data by a glob such as "
            f"{folder / '*.jsonl'}"
        )
    if not found:
        raise DataError(f"{folder}: a folder without data; expected {kinds}")
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error}") from error
