"""Dispatch, exit codes, and what reaches which stream."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest

from rango import errors
from rango.cli import main as cli
from rango.cli.check import WARNED
from rango.cli.main import COMMANDS, EXIT_CODES, main


def command(monkeypatch: pytest.MonkeyPatch, action: object) -> None:
    """Replace `rango inspect` by `action`."""
    module = types.ModuleType("rango.cli.inspect")
    module.main = action  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rango.cli.inspect", module)


def tree(kind: type[errors.RangoError]) -> list[type[errors.RangoError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


@pytest.mark.parametrize("kind", tree(errors.RangoError), ids=lambda kind: kind.__name__)
def test_every_error_has_a_documented_code(
    kind: type[errors.RangoError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(words: list[str]) -> None:
        raise kind("what, where and what to do")

    command(monkeypatch, fail)
    code = main(["inspect"])
    assert code == kind.exit_code
    assert code in EXIT_CODES
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "rango: error: what, where and what to do\n"


def test_unforeseen_fault_and_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> None:
        raise KeyError("nobody thought of it")

    command(monkeypatch, fail)
    assert main(["inspect"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("RANGO_TRACEBACK", "1")
    assert main(["inspect"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(words: list[str]) -> None:
        raise KeyboardInterrupt("interrupted; to continue: x")

    command(monkeypatch, fail)
    assert main(["inspect"]) == 130
    assert capsys.readouterr().err == "rango: interrupted; to continue: x\n"


def test_a_command_may_return_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, lambda words: 9)
    assert main(["inspect"]) == 9
    command(monkeypatch, lambda words: None)
    assert main(["inspect"]) == 0


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tran"]) == 2
    assert "nearest: train" in capsys.readouterr().err


def test_help_names_all_commands_and_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert all(f"{code:>3}  {meaning}" in out for code, meaning in EXIT_CODES.items())
    assert main([]) == 2
    assert main(["--version"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"example:\n  rango {name} " in capsys.readouterr().out


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, rango\n"
        "from rango.cli.main import COMMANDS\n"
        "import importlib\n"
        "for name in COMMANDS:\n"
        "    importlib.import_module(f'rango.cli.{name}').parser().format_help()\n"
        "slow = {'torch', 'transformers', 'numpy', 'safetensors', 'huggingface_hub'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("write", ["print", "from rango.cli.output import show; show"])
def test_a_reader_that_goes_away_is_no_error(write: str) -> None:
    code = (
        "import sys, types\n"
        "module = types.ModuleType('rango.cli.inspect')\n"
        "def main(words):\n"
        f"    {write.replace('show; show', 'show')}\n"
        f"    for _ in range(3000): {write.split('; ')[-1]}('x' * 100)\n"
        "module.main = main\n"
        "sys.modules['rango.cli.inspect'] = module\n"
        "from rango.cli.main import main\n"
        "sys.exit(main(['inspect']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert complaint == b""


def test_codes_are_those_of_the_errors() -> None:
    used = {kind.exit_code for kind in tree(errors.RangoError)} | {0, WARNED, errors.INTERRUPTED}
    assert used == set(cli.EXIT_CODES)
