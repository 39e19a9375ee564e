"""Jobs as they are written down: a YAML file, or a folder with a data set for each.

    base: {model: ../base, quantize: nf4}
    rows: 16
    defaults:                       # of every job
      adapter: {r: 8}
      data: {valid: "held-out/{name}.jsonl"}
      training: {epochs: 2}
    customers: data/*.jsonl         # a job for each file, named after it
    jobs:                           # and others, which say what is different
      - {name: special, data: {train: special.jsonl}, training: {learning_rate: 1e-3}}

Paths of data, of a template and of the base are relative to the file; {name} in those of data and
template is the job's name. A folder holds such a file,
many.yaml, or nothing but data.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rango.data.reading.sources import resolve
from rango.errors import ConfigError, nearest

FILE = "many.yaml"

_PLACES = ("train", "valid", "general", "chat_template")
_KEYS = ("name", "data", "adapter", "training")
_RUN = (
    "base",
    "output",
    "rows",
    "round_tokens",
    "micro_tokens",
    "gradient_checkpointing",
    "snapshot_seconds",
)

Values = dict[str, Any]


def read_many(path: Path) -> Values:
    """The values of a ManyConfig, as far as they are written down; each job with the defaults
    filled in.

    Raises ConfigError: no such file, no YAML, keys that are not known. DataError: a folder, or a
    pattern, without data.
    """
    if path.is_dir() and not (path / FILE).is_file():
        return {"jobs": [*_of_files(path)]}
    file = path / FILE if path.is_dir() else path
    values = _read(file)
    _check_keys(file, "", values, (*_RUN, "defaults", "customers", "jobs"))
    home = file.parent
    defaults = _mapping(file, "defaults", values.pop("defaults", None))
    _check_keys(file, "defaults.", defaults, _KEYS[1:])
    jobs: list[Values] = []
    customers = values.pop("customers", None)
    if customers is not None:
        jobs += _of_files(home / str(customers))
    listed = values.pop("jobs", None) or []
    if not isinstance(listed, list):
        raise ConfigError(f"{file}: jobs: expected a list, found {type(listed).__name__}")
    for number, job in enumerate(listed, 1):
        job = _mapping(file, f"job {number}", job)
        _check_keys(file, f"job {number}: ", job, _KEYS)
        jobs.append(_at(file, job, job.get("name")))
    values["jobs"] = [overlaid(_at(file, defaults, job.get("name")), job) for job in jobs]
    model = _mapping(file, "base", values.get("base")).get("model")
    if isinstance(model, str) and (home / model).is_dir():
        values["base"]["model"] = _plain(home / model)
    return values


def overlaid(under: Values, over: Values) -> Values:
    """Both, nested ones too; where they differ, `over`."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = overlaid(below, value) if both else value  # type: ignore[arg-type]
    return merged


def named_data(data: Values, name: Any) -> Values:
    """The values of a job's data with the job's name in place of {name}."""
    filled = dict(data)
    for key in _PLACES:
        if isinstance(filled.get(key), str):
            filled[key] = filled[key].replace("{name}", str(name))
    return filled


def _of_files(named: Path) -> Iterator[Values]:
    """A job for each data file."""
    for source in resolve(str(named)):
        if isinstance(source, Path):
            yield {"name": source.name.partition(".")[0], "data": {"train": str(source)}}


def _at(file: Path, job: Values, name: Any) -> Values:
    """The job with the places of its data, where they lie by the file, seen from where the command
    runs; other words may be names (of a data set of the Hub, of a chat template)."""
    written = _mapping(file, "data", job.get("data"))
    data = named_data(written, name)
    for key in _PLACES:
        value = data.get(key)
        if not isinstance(value, str):
            continue
        by_name = value != written[key]  # no name of the Hub, though the file be missing
        if by_name or glob.has_magic(value) or (file.parent / value).exists():
            # absolute, so that it cannot be taken for a name of the Hub
            data[key] = str((file.parent / value).absolute() if by_name else file.parent / value)
    return job | {"data": data}


def _plain(path: Path) -> str:
    """The path without its `..`, where that is the same folder (links may make it another)."""
    plain = Path(os.path.normpath(path))
    return str(plain if plain.exists() and plain.samefile(path) else path)


def _read(file: Path) -> Values:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{file}: cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    return _mapping(file, "the file", values)


def _mapping(file: Path, what: str, value: Any) -> Values:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {what}: expected keys and values, found {value!r}")
    return value


def _check_keys(file: Path, where: str, values: Values, known: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{file}: {where}unknown key {key!r}{nearest(str(key), known)}; known: "
                f"{', '.join(known)}"
            )
