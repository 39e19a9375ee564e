"""Processes that encode chunks of examples, in Python as fast as there are cores.

Rendering a template and building masks is Python, so threads would wait for one another. A worker
is `python -m rango.data.tokens.workers`, apart from the caller's own main module, which need not be
fit to be imported. It reads the tokenizer from a folder, then chunks from its standard input, and
answers each with a block. A chunk whose worker fails is encoded here, where its fault then shows.

Both ways go frames: 8 bytes of length, little-endian, and a JSON text; a block's arrays follow its
text in a frame of their own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from rango.data.samples import Example, Message, Origin
from rango.data.tokens.cache import tokenizer_digest
from rango.data.tokens.chunk import ChunkEncoder, Encoded, TokenOptions
from rango.data.tokens.store import Block

_ALONE = 20_000
"""Examples that are encoded here before workers are worth the seconds that they take to start."""
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # the cores are the processes'
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_MODULE = "rango.data.tokens.workers"
_LOG = logging.getLogger("rango")


def encode_chunks(
    chunks: Iterable[Sequence[Example]],
    tokenizer: Any,
    options: TokenOptions,
    *,
    workers: int | None = None,
    total: int | None = None,
) -> Generator[Encoded, None, None]:
    """Each chunk encoded, in order; whatever the number of workers, the result is the same.

    workers None: one a core where there is more than a little to do (total: all examples, if that
    is known); 0 or 1: all is done in this process. So it is with a tokenizer that is Python alone:
    whether a worker's is the same cannot be told.
    """
    own, stream = ChunkEncoder(tokenizer, options), iter(chunks)
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    if not tokenizer.is_fast:
        count = 1
    if count < 2 or (workers is None and total is not None and total < 2 * _ALONE):
        yield from map(own.encode, stream)
        return
    done = 0
    while workers is None and done < _ALONE:
        chunk = next(stream, None)
        if chunk is None:
            return
        yield own.encode(chunk)
        done += len(chunk)
    with WorkerPool(own, tokenizer, options, count) as pool:
        while workers is None and not pool.ready:
            chunk = next(stream, None)
            if chunk is None:
                return
            yield own.encode(chunk)
        yield from pool.encode(stream)


class WorkerPool:
    """Some workers, each with a thread here that talks to it; a context, which ends them."""

    def __init__(
        self, own: ChunkEncoder, tokenizer: Any, options: TokenOptions, count: int
    ) -> None:
        """own: encodes what a worker fails on."""
        self._own, self._tokenizer, self._options = own, tokenizer, options
        self._count = count
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._ending = False
        self.encoded = 0
        """Chunks that workers have encoded."""

    def __enter__(self) -> Self:
        expected = tokenizer_digest(self._tokenizer)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rango-tokenizer-"))
            self._tokenizer.save_pretrained(folder)
            self._folder = stack.pop_all()
        setup = json.dumps({"tokenizer": folder, "options": asdict(self._options)}).encode()
        self._threads = ThreadPoolExecutor(self._count, "rango-tokens")
        self._starting = [
            self._threads.submit(self._start, setup, expected) for _ in range(self._count)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending = True
        for worker in list(self._workers):
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._folder.close()

    @property
    def ready(self) -> bool:
        """Whether all workers have started, or failed to."""
        return all(future.done() for future in self._starting)

    def encode(self, chunks: Iterable[Sequence[Example]]) -> Iterator[Encoded]:
        """Each chunk encoded, in order."""
        started = sum(future.result() for future in self._starting)
        if started < self._count:
            _LOG.info("%d of %d tokenizing processes could be used", started, self._count)
        if not started:
            yield from map(self._own.encode, chunks)
            return
        pending: deque[tuple[Sequence[Example], Future[Encoded]]] = deque()
        for chunk in chunks:
            pending.append((chunk, self._threads.submit(self._ask, chunk)))
            if len(pending) > 2 * started:
                yield self._taken(*pending.popleft())
        while pending:
            yield self._taken(*pending.popleft())

    def _start(self, setup: bytes, expected: str) -> bool:
        """Start a worker; use it only if it has read the very tokenizer that is used here."""
        try:
            worker = _Worker()
            self._workers.append(worker)
            if self._ending:
                worker.kill()
            _send(worker.input, setup)
            if json.loads(_received(worker.output)) != expected:
                return False
        except (OSError, _Gone):
            return False
        self._idle.put(worker)
        return True

    def _ask(self, chunk: Sequence[Example]) -> Encoded:
        worker = self._idle.get()
        try:
            _send(worker.input, _written(chunk))
            return _read(_received(worker.output), _received(worker.output))
        except OSError as broken:
            raise _Gone from broken
        finally:
            self._idle.put(worker)

    def _taken(self, chunk: Sequence[Example], future: Future[Encoded]) -> Encoded:
        try:
            encoded = future.result()
        except _Gone:
            return self._own.encode(chunk)
        self.encoded += 1
        return encoded


class _Gone(Exception):
    """A worker has ended."""


class _Worker:
    """A worker's process and its two pipes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT,
        )
        self.input: Any = self._process.stdin
        self.output: Any = self._process.stdout

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Wait for its end, of a process that was killed."""
        self._process.wait()
        for pipe in (self.input, self.output):
            with contextlib.suppress(OSError):
                pipe.close()


def _send(pipe: BinaryIO, frame: bytes) -> None:
    """Write one frame."""
    pipe.write(len(frame).to_bytes(8, "little"))
    pipe.write(frame)
    pipe.flush()


def _received(pipe: BinaryIO) -> bytes:
    length = pipe.read(8)
    if len(length) < 8:
        raise _Gone
    frame = pipe.read(int.from_bytes(length, "little"))
    if len(frame) < int.from_bytes(length, "little"):
        raise _Gone
    return frame


def _written(chunk: Sequence[Example]) -> bytes:
    """Examples as JSON."""
    entries = [
        [
            example.kind,
            example.origin.file,
            example.origin.line,
            [[message.role, message.content] for message in example.messages],
            example.label,
        ]
        for example in chunk
    ]
    return json.dumps(entries).encode()


def _examples(frame: bytes) -> list[Example]:
    return [
        Example(
            kind,
            tuple(Message(role, content) for role, content in turns),
            Origin(file, line),
            label,
        )
        for kind, file, line, turns, label in json.loads(frame)
    ]


def _text_of(encoded: Encoded) -> bytes:
    """What became of a chunk as JSON, but for the block's arrays."""
    values = {
        "examples": encoded.examples,
        "tokens": len(encoded.block.ids),
        "samples": len(encoded.block.lengths),
        "files": encoded.block.files,
        "skipped": [[o.file, o.line, reason] for o, reason in encoded.skipped],
        "refused": [[o.file, o.line, length] for o, length in encoded.refused],
        "truncated": encoded.truncated,
        "faults": encoded.faults,
    }
    return json.dumps(values).encode()


def _arrays_of(block: Block) -> bytes:
    arrays = (block.lengths, block.origins, block.ids, block.labels, block.flags)
    return b"".join(array.tobytes() for array in arrays)


def _read(text: bytes, arrays: bytes) -> Encoded:
    values = json.loads(text)
    tokens, samples = values["tokens"], values["samples"]
    numbers = np.frombuffer(arrays, np.int64, 3 * samples)
    ids = np.frombuffer(arrays, np.int32, tokens, 24 * samples)
    labels = np.frombuffer(arrays, np.int32, samples, 24 * samples + 4 * tokens)
    flags = np.frombuffer(arrays, np.uint8, tokens, 28 * samples + 4 * tokens)
    block = Block(
        ids=ids,
        flags=flags,
        lengths=numbers[:samples],
        origins=numbers[samples:].reshape(-1, 2),
        files=tuple(values["files"]),
        labels=labels,
    )
    return Encoded(
        examples=values["examples"],
        block=block,
        skipped=[(Origin(file, line), reason) for file, line, reason in values["skipped"]],
        refused=[(Origin(file, line), length) for file, line, length in values["refused"]],
        truncated=values["truncated"],
        faults=values["faults"],
    )


def _serve() -> None:
    """The process of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what is interrupted
    source = sys.stdin.buffer
    target = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may write into the answers
    from transformers import AutoTokenizer

    setup = json.loads(_received(source))
    tokenizer = AutoTokenizer.from_pretrained(
        setup["tokenizer"], trust_remote_code=False, local_files_only=True
    )
    options = setup["options"]
    options["labels"] = tuple(options["labels"])
    encoder = ChunkEncoder(tokenizer, TokenOptions(**options))
    _send(target, json.dumps(tokenizer_digest(tokenizer)).encode())
    while True:
        encoded = encoder.encode(_examples(_received(source)))
        _send(target, _text_of(encoded))
        _send(target, _arrays_of(encoded.block))


if __name__ == "__main__":
    with contextlib.suppress(_Gone, OSError):
        _serve()
