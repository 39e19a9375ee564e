"""Quantized bases kept on disk, so that the next start neither hashes the source nor quantizes it.

    FOLDER/LAYOUT-FINGERPRINT/   what save_base writes: an ordinary checkpoint with its rango.json
    FOLDER/sources/PATH.json     the fingerprint of a checkpoint folder, and what its files were

LAYOUT is a digest of the source's tensor names, types and shapes, of its config.json, and of how
the base is held. An entry is believed only if its tensors have the digest that its rango.json
gives; a source is known only as long as size, times and inode of each of its files are as noted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rango.base.architecture import model_config
from rango.base.checkpoint import INDEX, Checkpoint, read_json
from rango.base.config import DEFAULT_CACHE_GB
from rango.base.fingerprint import FACTS, combine, digest_files, note, resolve, tied_vocabulary
from rango.errors import CheckpointError, OutputExistsError, RangoError
from rango.files.atomic import atomic_directory, write_text
from rango.files.cache_folder import (
    cache_folder,
    last_used,
    make_room,
    may_keep,
    remove_leftovers,
)
from rango.files.digests import json_digest
from rango.progress import Progress, silent

FORMAT = 1
"""Counts up when what is kept changes."""

_ENTRY = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}")
_LEFT_OVER = re.compile(r"\.{1,2}[0-9a-f]{16}-[0-9a-f]{32}\..*\.(tmp|old)")
_MOST_SOURCES = 1000
_LOG = logging.getLogger("rango")


@dataclass(frozen=True)
class Wanted:
    """A base to find or to keep: which source, what its files are just now, how it is held."""

    source: Path
    files: dict[str, list[int]]
    layout: str
    fingerprint: str | None
    """None while it is not known."""


def open_cache(cache: bool | str | Path, gigabytes: float = DEFAULT_CACHE_GB) -> BaseCache | None:
    """The cache in that folder (True: the user's); None where there is to be none, or where the
    folder cannot be used, which is logged."""
    if cache is False:
        return None
    folder = cache_folder() if cache is True else Path(cache).expanduser()
    if not may_keep(folder, "quantized bases"):
        return None
    return BaseCache(folder, int(gigabytes * 1e9))


class BaseCache:
    """A folder of quantized bases, at most `limit` bytes: the least recently used go first."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def wanted(
        self, checkpoint: Checkpoint, held: dict[str, Any], progress: Progress = silent
    ) -> Wanted:
        """What to look for; `held` says how the base is held. A source that is not known is hashed
        if there is something here that it may be."""
        source = checkpoint.folder.resolve()
        files = _state(checkpoint)
        tensors = sorted([e.name, e.dtype, list(e.shape)] for e in checkpoint.entries.values())
        layout = json_digest([FORMAT, tensors, checkpoint.config, held]).removeprefix("sha256:")
        layout = layout[:16]
        fingerprint = self._noted(source, files)
        if fingerprint is None and any(self.folder.glob(f"{layout}-*")):
            digests = digest_files(checkpoint, progress)
            own = combine(digests, tied_vocabulary(model_config(checkpoint)))
            fingerprint = resolve(checkpoint.folder, own)
        return Wanted(source, files, layout, fingerprint)

    def find(self, wanted: Wanted) -> Path | None:
        """The folder of the base, to be checked with `vouches`."""
        if wanted.fingerprint is None:
            return None
        entry = self._entry(wanted, wanted.fingerprint)
        return entry if entry.is_dir() else None

    def vouches(self, entry: Path, wanted: Wanted, own: str) -> bool:
        """Whether tensors of digest `own` are what was kept for this source."""
        facts = read_json(entry / FACTS)
        return (
            wanted.fingerprint is not None
            and isinstance(facts, dict)
            and facts.get("base") == note(wanted.fingerprint, own)["base"]
        )

    def used(self, entry: Path, wanted: Wanted) -> None:
        """Note that it was useful just now."""
        with contextlib.suppress(OSError, RangoError):
            os.utime(entry)
            if wanted.fingerprint is not None:
                self._note(wanted, wanted.fingerprint)

    def discard(self, entry: Path) -> None:
        """Remove a damaged one."""
        _warn(entry, "damaged; the base is quantized again")
        shutil.rmtree(entry, ignore_errors=True)

    def keep(
        self,
        checkpoint: Checkpoint,
        wanted: Wanted,
        fingerprint: str,
        nbytes: int,
        write: Callable[[Path], object],
    ) -> None:
        """Have `write` write the base, of about `nbytes`, into a folder. Whatever the disk has
        against it is logged; nothing is kept of a source that changed meanwhile, nor while another
        process is writing here."""
        if _state(checkpoint) != wanted.files:
            return
        entry = self._entry(wanted, fingerprint)
        try:
            with self._alone() as alone:
                if not alone:
                    return
                remove_leftovers(self.folder, _LEFT_OVER)
                if not entry.is_dir():
                    if not self._make_room(nbytes):
                        return
                    with atomic_directory(entry) as working:
                        write(working)
                self._note(wanted, fingerprint)
        except OutputExistsError:
            return
        except CheckpointError as refused:
            _LOG.info("%s: not kept: %s", wanted.source, refused)
        except OSError as refused:  # a StorageError too
            _warn(self.folder, f"the quantized base is not kept: {refused}")

    def _entry(self, wanted: Wanted, fingerprint: str) -> Path:
        return self.folder / f"{wanted.layout}-{fingerprint.removeprefix('blake3:')[:32]}"

    def _source(self, source: Path) -> Path:
        name = json_digest(os.fspath(source)).removeprefix("sha256:")[:32]
        return self.folder / "sources" / f"{name}.json"

    def _noted(self, source: Path, files: dict[str, list[int]]) -> str | None:
        path = self._source(source)
        try:
            noted = read_json(path) if path.is_file() else None
        except CheckpointError:
            return None
        if not isinstance(noted, dict) or noted.get("files") != files:
            return None
        fingerprint = noted.get("fingerprint")
        known = isinstance(fingerprint, str) and re.fullmatch(r"blake3:[0-9a-f]{64}", fingerprint)
        return fingerprint if known else None

    def _note(self, wanted: Wanted, fingerprint: str) -> None:
        if self._noted(wanted.source, wanted.files) == fingerprint:
            return
        path = self._source(wanted.source)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        noted = {"path": str(wanted.source), "files": wanted.files, "fingerprint": fingerprint}
        write_text(path, json.dumps(noted, indent=2) + "\n", overwrite=True)
        for old in sorted(path.parent.glob("*.json"), key=last_used)[:-_MOST_SOURCES]:
            old.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process writes here; the system ends it with the process."""
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _make_room(self, nbytes: int) -> bool:
        """Remove the least recently used until `nbytes` more fit; False if they never will."""
        if nbytes > self.limit:
            _LOG.info("%s: a base of %d bytes is over its bound", self.folder, nbytes)
            return False
        make_room(self.folder, _ENTRY, nbytes, self.limit)
        if shutil.disk_usage(self.folder).free < nbytes + nbytes // 8:
            _warn(self.folder, "the quantized base is not kept: too little space is free")
            return False
        return True


def _state(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Size, times in ns and inode of each file that decides about the fingerprint."""
    paths = [file.path for file in checkpoint.files]
    paths += [checkpoint.folder / name for name in ("config.json", INDEX, FACTS)]
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            found[path.name] = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    return found


def _warn(path: Path, message: str) -> None:
    _LOG.warning("%s: %s", path, message)
