"""Tokenized samples kept on disk, so that the next run over the same data need not make them again.

    FOLDER/KEY/    a store of samples (rango.data.tokens.store)

KEY is a digest of everything that decides about them: the data, the tokenizer with its chat
template, the options, and the versions of what renders and tokenizes. An entry is believed only if
its files have the digests that were noted when it was written; a damaged one is made again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rango.data.config import DEFAULT_CACHE_GB
from rango.data.samples import Example
from rango.data.templates import dates, parts, render
from rango.data.tokens import chunk, encode, labelled, store
from rango.data.tokens.chunk import TokenOptions
from rango.data.tokens.store import SampleStore
from rango.errors import OutputExistsError
from rango.files.atomic import atomic_directory
from rango.files.cache_folder import cache_folder, make_room, may_keep, remove_leftovers
from rango.files.digests import file_digest, json_digest

_ENTRY = re.compile(r"[0-9a-f]{64}")
_LEFT_OVER = re.compile(r"\.[0-9a-f]{64}\..*\.tmp")
_LIBRARIES = ("transformers", "tokenizers", "jinja2")
_MODULES = (chunk, dates, encode, labelled, parts, render, store)
_MAKING = (
    *(Path(module.__file__ or "") for module in _MODULES),
    Path(__file__).with_name("tokenize.py"),  # it imports this one
)
"""Code that decides about samples: with each change of it they are made again."""
_SETTINGS = ("truncation_side", "split_special_tokens")
"""What a tokenizer heeds besides what its backend holds."""
_LOG = logging.getLogger("rango")

Write = Callable[[Path], SampleStore]
"""Writes samples into the empty folder it is given, and opens them."""


def cache_key(data: str, tokenizer: Any, options: TokenOptions) -> str:
    """What samples are kept under; `data` is the digest of their examples."""
    deciding = {
        "code": [file_digest(path) for path in _MAKING],
        "data": data,
        "tokenizer": tokenizer_digest(tokenizer),
        "options": asdict(options),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    return json_digest(deciding).removeprefix("sha256:")


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what a tokenizer does to a text, its chat template included."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("truncation", None)  # set anew by every call
    backend.pop("padding", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    marked = sorted(tokenizer.all_special_ids)
    settings = [getattr(tokenizer, name, None) for name in _SETTINGS]
    name, template = type(tokenizer).__name__, tokenizer.chat_template
    return json_digest([name, backend, special, marked, settings, template])


def examples_digest(examples: Iterable[Example]) -> str:
    """Digest of what examples say, and of where they stand."""
    state = hashlib.sha256()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        entry = [example.kind, example.origin.file, example.origin.line, turns]
        if example.label is not None:
            entry.append(example.label)
        state.update(json.dumps(entry).encode())
        state.update(b"\n")
    return f"sha256:{state.hexdigest()}"


def token_cache_folder() -> Path:
    """$RANGO_CACHE/tokens, else rango/tokens in the user's cache folder."""
    bases = cache_folder()
    return bases / "tokens" if os.environ.get("RANGO_CACHE") else bases.with_name("tokens")


def open_token_cache(
    cache: bool | str | Path, gigabytes: float = DEFAULT_CACHE_GB
) -> TokenCache | None:
    """The cache in that folder (True: the user's); None where there is to be none, or where the
    folder cannot be used, which is logged."""
    if cache is False:
        return None
    folder = token_cache_folder() if cache is True else Path(cache).expanduser()
    if not may_keep(folder, "samples"):
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        _LOG.warning("%s: samples cannot be kept here: not writable", folder)
        return None
    return TokenCache(folder, int(gigabytes * 1e9))


class TokenCache:
    """A folder of stores, at most `limit` bytes: the least recently used go first."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def find(self, key: str) -> SampleStore | None:
        """The samples kept under `key`. A damaged entry is discarded, which is logged."""
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            found = SampleStore.open(entry)
            os.utime(entry)
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as fault:
            if entry.is_dir():  # else another process has just removed it
                _LOG.warning("%s: damaged (%s); the samples are made again", entry, fault)
                shutil.rmtree(entry, ignore_errors=True)
            return None
        return found

    def make(
        self, key: str, write: Write, unchanged: Callable[[], bool] = lambda: True
    ) -> SampleStore:
        """Have `write` write the samples, and keep them under `key` unless another process has done
        so meanwhile, or `unchanged` then says that their data is no more what `key` stands for.
        Raises what `write` raises; nothing is kept then."""
        made: list[SampleStore] = []
        with self._writing():
            try:
                with atomic_directory(self.folder / key) as working:
                    made.append(write(working))
                    if not unchanged():
                        raise _NotKept("the data changed while it was read; not kept")
                    self._make_room(made[0].nbytes)
            except OutputExistsError:
                found = self.find(key)
                return unkept(write) if found is None else found
            except _NotKept as reason:
                _LOG.info("%s: %s", self.folder, reason)
            except OSError as refused:
                if not made:
                    raise
                if refused.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    _LOG.warning("%s: the samples are not kept: %s", self.folder, refused)
        return made[0]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Share the folder with others who write; the first to come clears up what a process that
        was killed has left. The system lets go of the lock with the process."""
        with open(self.folder / "lock", "w") as lock:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_leftovers(self.folder, _LEFT_OVER)
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def _make_room(self, nbytes: int) -> None:
        """Remove the least recently used until `nbytes` more are within the limit."""
        if nbytes > self.limit:
            raise _NotKept(f"{nbytes} bytes of samples are over its bound, and not kept")
        make_room(self.folder, _ENTRY, nbytes, self.limit)


def unkept(write: Write) -> SampleStore:
    """What `write` writes, in a folder that is gone with the samples."""
    with tempfile.TemporaryDirectory(prefix="rango-samples-") as folder:
        return write(Path(folder))


class _NotKept(Exception):
    """Why samples are not kept."""
