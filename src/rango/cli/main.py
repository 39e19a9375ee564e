"""`rango`: finds the command, runs it, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from rango import __version__
from rango.errors import INTERRUPTED, RangoError, nearest

COMMANDS = {
    "demo": "train LoRA, QLoRA and full fine-tuning on an embedded model, and compare them",
    "check": "find what is wrong with data before a model learns it",
    "train": "fine-tune a model on a data file, or many at once, and prove the result",
    "sweep": "search for the best learning rate, rank and other options",
    "eval": "measure a model, with and without an adapter, on a data file",
    "chat": "talk with a model and its adapter",
    "generate": "answer a prompt, or every prompt of a file",
    "classify": "label a text, or every text of a file",
    "merge": "write a checkpoint with the adapter merged into it",
    "inspect": "tell what a base, a quantized base or an adapter holds",
    "verify": "check that an adapter belongs to a base and computes what was trained",
}
"""Every command with what it does; each is the module of that name beside this one."""

EXIT_CODES = {
    0: "success",
    1: "an unforeseen fault (RANGO_TRACEBACK=1 shows where)",
    2: "usage or configuration",
    3: "data",
    4: "base checkpoint or tokenizer",
    5: "adapter or its targets",
    6: "the output already exists",
    7: "storage: disk full or not writable",
    8: "training stopped on a loss that is not finite",
    9: "a check failed",
    10: "the data has warnings (rango check --strict)",
    11: "some of many jobs failed, the others were trained",
    INTERRUPTED: "interrupted",
}

EXAMPLE = """  rango train --base.model BASE --data.train chats.jsonl --output runs/first
  rango chat --base BASE --adapter runs/first/adapter --compare"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # threads that wait give their core away: spinning, as is OpenMP's default, makes a machine that
    # does anything else meanwhile several times slower (read when torch is imported)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # whoever read our output has gone (head, less); the descriptor must not be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interruption:
        _say(str(interruption) or "interrupted")
        return INTERRUPTED
    except RangoError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        return _fail(f"unforeseen {type(error).__name__}: {error}", 1)


def help_text() -> str:
    """The page of `rango --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    return (
        "usage: rango COMMAND [options]\n\n"
        "Fine-tunes models with LoRA and QLoRA, proves the result, and talks with it.\n\n"
        f"commands:\n{commands}\n\n"
        f"options:\n  --help     this page; rango COMMAND --help tells of a command\n"
        f"  --version  the version\n\nexample:\n{EXAMPLE}\n\nexit codes:\n{codes}\n"
    )


def _dispatch(words: list[str]) -> int:
    if not words:
        sys.stderr.write(help_text())
        return 2
    name, rest = words[0], words[1:]
    if name in ("--help", "-h", "help"):
        if rest and rest[0] in COMMANDS:
            return _dispatch([rest[0], "--help"])
        sys.stdout.write(help_text())
        return 0
    if name == "--version":
        sys.stdout.write(f"rango {__version__}\n")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        return _fail(
            f"no {kind} {name!r}{nearest(name, COMMANDS)}; rango --help lists the commands", 2
        )
    command = importlib.import_module(f"rango.cli.{name}")
    code = command.main(rest)
    return int(code or 0)


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANGO_TRACEBACK") == "1":
        traceback.print_exc()
    _say(f"error: {message}")
    return code


def _say(message: str) -> None:
    """To standard error; a terminal that has gone changes nothing."""
    try:
        sys.stderr.write(f"rango: {message}\n")
        sys.stderr.flush()
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
