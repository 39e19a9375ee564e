"""Which chat template a tokenizer renders with, and how it travels with an adapter.

A tokenizer renders with its own template, or with one that was chosen by name or by file, never
with a guess. Beside an adapter lie chat_template.jinja, the text that its training rendered with
(its date fixed), and in rango.json, under "chat_template":

    digest          sha256 of that text
    date            the day it prints, or null where it prints none
    end_of_turn     the token that ends an answer
    special_tokens  the tokenizer's named tokens: bos_token, eos_token, …
    token_ids       those, and the special tokens that the template writes, with their numbers

What uses the adapter renders with exactly these.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rango.data.faults import Faults
from rango.data.samples import Example, Message, Origin
from rango.data.templates.built_in import BUILT_IN, BuiltIn
from rango.data.templates.dates import pinned, printed_day
from rango.data.templates.render import template_of
from rango.data.tokens.encode import Encoder, token_ids
from rango.errors import AdapterError, ConfigError, DataError, RangoError, nearest
from rango.files.atomic import write_text
from rango.files.digests import bytes_digest

TEMPLATE = "chat_template.jinja"
_FACTS, _KEY = "rango.json", "chat_template"
_PADDING = "pad_token"
_MAX_TEMPLATE = 2**20
_MAX_FACTS = 8 * 2**20
"""Bytes; larger files are not what their names say."""
_PROBE = (Message("user", "?"), Message("assistant", "!"))


def use_template(tokenizer: Any, choice: str | None) -> Any:
    """The tokenizer with the chosen chat template; the one given stays as it is.

    choice: a built-in's name, the path to a .jinja file, or None for the tokenizer's own. Where
    that is missing too, chat messages raise TokenizerError later (other data need no template).

    Raises ConfigError: no such template or file; it writes tokens that the tokenizer has not as
    single ones, no end-of-turn token, or no chat at all; the built-in ones that do work are named.
    TokenizerError: a tokenizer without offsets or end token.
    """
    if choice is None:
        text = template_of(tokenizer)
        return tokenizer if text is None else _with(tokenizer, text)
    if choice in BUILT_IN:
        missing = _missing(tokenizer, BUILT_IN[choice])
        if missing:
            raise ConfigError(
                f"data.chat_template {choice}: it writes {', '.join(missing)}, which this "
                f"tokenizer does not have as single tokens; {_working(tokenizer)}"
            )
        text = BUILT_IN[choice].text
    else:
        text = _chosen_file(choice)
    made = _with(tokenizer, pinned(text))
    try:
        _probe(made, choice)
    except DataError as error:
        raise ConfigError(
            f"data.chat_template cannot be used with this tokenizer: {error}; {_working(tokenizer)}"
        ) from error
    return made


def fitting(tokenizer: Any) -> list[str]:
    """The built-in templates whose tokens the tokenizer has."""
    return [name for name, template in BUILT_IN.items() if not _missing(tokenizer, template)]


def template_facts(tokenizer: Any) -> dict[str, Any]:
    """What rango.json tells of the chat template and the special tokens; see above."""
    text = template_of(tokenizer)
    named = _named(tokenizer)
    facts: dict[str, Any] = {
        "digest": None,
        "date": None,
        "end_of_turn": None,
        "special_tokens": named,
        "token_ids": _numbers(tokenizer, named.values()),
    }
    if text is None:
        return facts
    facts |= {"digest": bytes_digest(text.encode()), "date": printed_day(text)}
    try:
        probe = _probe(tokenizer, TEMPLATE)
    except DataError:  # it wants more of a conversation; the data were rendered all the same
        return facts
    written = [*dict.fromkeys(probe.special), probe.end_of_turn]
    facts["end_of_turn"] = probe.end_of_turn
    facts["token_ids"] |= _numbers(tokenizer, written)
    return facts


def save_template(tokenizer: Any, folder: str | Path, *, overwrite: bool = False) -> Path | None:
    """Write chat_template.jinja into the folder; None, and nothing, without a template.

    Raises OutputExistsError, StorageError.
    """
    text = template_of(tokenizer)
    if text is None:
        return None
    path = Path(folder) / TEMPLATE
    write_text(path, text, overwrite)
    return path


def load_template(tokenizer: Any, folder: str | Path) -> tuple[Any, list[str]]:
    """The tokenizer as an adapter's training had it, and in what the base's own differs, as
    sentences. The one given stays as it is; an adapter without a template changes nothing.

    Raises AdapterError where a stored file is malformed, or the tokenizer gives one of the stored
    special tokens another number: it is not the tokenizer that the adapter was trained with.
    """
    folder = Path(folder)
    noted = _noted(folder / _FACTS)
    text = _stored(folder, noted)
    facts = noted if isinstance(noted, Mapping) else {}
    _check_numbers(tokenizer, facts, folder)
    own = template_of(tokenizer)
    differences = []
    if text is not None and own is not None and text != own:
        differences.append(
            f"{folder}: its chat template is not the base's own; the adapter's is used"
        )
    if text is not None and facts.get("digest") not in (None, bytes_digest(text.encode())):
        differences.append(
            f"{folder / TEMPLATE}: not the template that the adapter was trained with (its digest "
            f"in {_FACTS} differs); the file's is used"
        )
    made = tokenizer if text is None else _with(tokenizer, text)
    named = _changed(tokenizer, facts, folder)
    if named:
        made = copy.deepcopy(made)  # a copy shares its table of named tokens
    for name, (found, wanted) in named.items():
        setattr(made, name, wanted)
        differences.append(
            f"{folder}: its {name} is {wanted!r}, the base's {found!r}; the adapter's is used"
        )
    return made, differences


@dataclass(frozen=True)
class _Probe:
    """A short conversation through the template: its special tokens, and the one that ends it."""

    special: tuple[str, ...]
    end_of_turn: str


def _probe(tokenizer: Any, name: str) -> _Probe:
    """Raises DataError where the template refuses the conversation or ends no turn."""
    encoder = Encoder(tokenizer)
    faults = Faults(name)
    sample = encoder.encode([Example("chat", _PROBE, Origin(name, 1))], faults)[0]
    if sample is None:
        faults.raise_any()
        raise DataError(f"{name}: renders nothing")
    marks = set(tokenizer.all_special_ids)
    marks |= {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    special = [token for token in sample.input_ids if token in marks]
    texts = tokenizer.convert_ids_to_tokens([*special, encoder.ends_turn(sample)])
    return _Probe(tuple(texts[:-1]), texts[-1])


def _with(tokenizer: Any, text: str) -> Any:
    """The tokenizer with this chat template; the same object where it is its own already."""
    if tokenizer.chat_template == text:
        return tokenizer
    made = copy.copy(tokenizer)
    made.chat_template = text
    return made


def _missing(tokenizer: Any, template: BuiltIn) -> list[str]:
    added = tokenizer.added_tokens_decoder
    found = {text: token_ids(tokenizer, text) for text in template.tokens}
    return [text for text, ids in found.items() if len(ids) != 1 or ids[0] not in added]


def _working(tokenizer: Any) -> str:
    return f"built-in templates that work with it: {', '.join(fitting(tokenizer))}"


def _chosen_file(choice: str) -> str:
    path = Path(choice)
    if path.suffix == ".jinja" or path.is_file():
        return _read(path, _MAX_TEMPLATE, ConfigError)
    raise ConfigError(
        f"data.chat_template {choice!r}: expected a built-in template ({', '.join(BUILT_IN)}) or "
        f"the path to a .jinja file{nearest(choice, BUILT_IN)}"
    )


def _named(tokenizer: Any) -> dict[str, str]:
    """bos_token, eos_token, …; without the padding, which no template writes and no loss counts."""
    named = tokenizer.special_tokens_map.items()
    return {name: text for name, text in named if name != _PADDING}


def _numbers(tokenizer: Any, texts: Any) -> dict[str, int]:
    return {text: int(tokenizer.convert_tokens_to_ids(text)) for text in texts}


def _noted(path: Path) -> Any:
    """What rango.json says under "chat_template"; None without it."""
    if not path.is_file():
        return None
    content = _read(path, _MAX_FACTS, AdapterError)
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON: {error}") from error
    noted = facts.get(_KEY) if isinstance(facts, dict) else None
    if noted is not None and not isinstance(noted, (str, dict)):
        raise AdapterError(f"{path}: {_KEY}: expected an object, found {noted!r}")
    return noted


def _stored(folder: Path, noted: Any) -> str | None:
    """The adapter's template; the first releases kept its text in rango.json."""
    path = folder / TEMPLATE
    if path.is_file():
        return pinned(_read(path, _MAX_TEMPLATE, AdapterError))
    return pinned(noted) if isinstance(noted, str) else None


def _check_numbers(tokenizer: Any, facts: Mapping[str, Any], folder: Path) -> None:
    """Raise AdapterError where a special token has another number than in training."""
    for text, number in _section(facts, "token_ids", folder).items():
        found = tokenizer.convert_tokens_to_ids(text)
        if found != number:
            raise AdapterError(
                f"{folder}: trained with a tokenizer in which {text!r} is token {number}; in this "
                f"one it is {found}; load it over the base, with the tokenizer, that it was "
                "trained on"
            )


def _changed(
    tokenizer: Any, facts: Mapping[str, Any], folder: Path
) -> dict[str, tuple[str | None, str | None]]:
    """Named special tokens that are not as in training: (here, then)."""
    if "special_tokens" not in facts:
        return {}
    then = _section(facts, "special_tokens", folder)
    here = _named(tokenizer)
    names = [name for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if name != _PADDING]
    changed = [name for name in names if here.get(name) != then.get(name)]
    return {name: (here.get(name), then.get(name)) for name in changed}


def _section(facts: Mapping[str, Any], key: str, folder: Path) -> dict[str, Any]:
    found = facts.get(key) or {}
    kinds = {"token_ids": int, "special_tokens": str}
    if not isinstance(found, dict) or not all(
        isinstance(value, kinds[key]) for value in found.values()
    ):
        raise AdapterError(f"{folder / _FACTS}: {_KEY}.{key}: malformed: {found!r}")
    return found


def _read(path: Path, limit: int, error: type[RangoError]) -> str:
    """A file as text; raises `error` where it is missing, too large or not UTF-8."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as refused:
        raise error(f"{path}: cannot be read: {refused.strerror}") from refused
    if len(content) > limit:
        raise error(f"{path}: larger than {limit} bytes, which is not what its name says")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{path}: not UTF-8 text: {fault.reason} at byte {fault.start}") from fault
