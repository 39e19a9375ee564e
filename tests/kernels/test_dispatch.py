"""Which kernels run, for every mode, and what compiled kernels are given to work on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rango.errors import ConfigError
from rango.kernels import dispatch


class Compiled:
    """In the place of the compiled module, on a processor that has `widest`."""

    def __init__(self, widest: str) -> None:
        self._widest = widest
        self.used: list[str] = []

    def widest(self) -> str:
        return self._widest

    def use(self, name: str) -> None:
        self.used.append(name)


@pytest.fixture(autouse=True)
def _undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before the first kernel, and without the environment's wish."""
    monkeypatch.setattr(dispatch, "_choice", None)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    module = Compiled("avx2")
    monkeypatch.setattr(dispatch, "_native", module)
    monkeypatch.setattr(dispatch, "_missing", "")
    return module


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "_native", None)
    monkeypatch.setattr(dispatch, "_missing", "the compiled kernels are not installed")
    return


@pytest.mark.parametrize(
    ("wish", "used"), [(None, "avx2"), ("", "avx2"), ("auto", "avx2"), ("avx2", "avx2")]
)
def test_the_widest_is_the_default(
    wish: str | None, used: str, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wish is not None:
        monkeypatch.setenv(dispatch.VARIABLE, wish)
    assert dispatch.facts() == dispatch.KernelFacts(used, "", torch.get_num_threads())
    assert compiled.used == [used]
    assert dispatch.native(torch.ones(3)) is compiled


def test_a_narrower_build_can_be_asked_for(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "portable")
    assert dispatch.native(torch.ones(3)) is compiled
    assert compiled.used == ["portable"]
    assert dispatch.facts().in_use == "portable"


def test_the_reference_can_be_asked_for(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.native(torch.ones(3)) is None
    assert compiled.used == []
    assert dispatch.facts().reason == "RANGO_KERNELS=reference"


def test_the_environment_is_read_once(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch.facts()
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.facts().in_use == "avx2"


def test_a_narrower_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_native", Compiled("portable"))
    assert dispatch.available() == ("portable", "reference")
    assert dispatch.facts().in_use == "portable"
    with pytest.raises(ConfigError, match=r"no avx2 kernels; found portable, reference"):
        dispatch.choose("avx2")
    assert dispatch.facts().in_use == "portable"


@pytest.mark.usefixtures("missing")
def test_without_the_compiled_module() -> None:
    assert dispatch.available() == ("reference",)
    assert dispatch.native(torch.ones(3)) is None
    found = dispatch.facts()
    assert (found.in_use, found.reason) == ("reference", "the compiled kernels are not installed")
    for mode in ("avx2", "portable"):
        with pytest.raises(ConfigError, match="install a C\\+\\+ compiler and then Rango again"):
            dispatch.choose(mode)
    with dispatch.using("reference"):
        assert dispatch.facts().reason == "RANGO_KERNELS=reference"
    assert dispatch.facts() == found


def test_an_unknown_mode_changes_nothing(compiled: Compiled) -> None:
    dispatch.choose("portable")
    with pytest.raises(ConfigError, match=r"one of auto, .*; found 'portabel'; nearest: portable"):
        dispatch.choose("portabel")
    assert dispatch.facts().in_use == "portable"
    assert compiled.used == ["portable"]


def test_using_restores_what_was_in_use(compiled: Compiled) -> None:
    def fail() -> None:
        with dispatch.using("reference"):
            assert dispatch.native() is None
            raise KeyError

    with dispatch.using("portable"):
        with pytest.raises(KeyError):
            fail()
        assert dispatch.facts().in_use == "portable"
    assert dispatch.facts().in_use == "avx2"
    assert compiled.used == ["avx2", "portable", "portable", "avx2"]


def test_threads_that_come_together_see_one_whole_choice(compiled: Compiled) -> None:
    threads = 8
    together, found = threading.Barrier(threads), []

    def first_kernel() -> None:
        together.wait()
        found.append((dispatch.native(torch.ones(3)), dispatch.facts()))

    started = [threading.Thread(target=first_kernel) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert len(found) == threads
    assert all(module is compiled and facts.in_use == "avx2" for module, facts in found)
    assert compiled.used == ["avx2"]


class Shard(Tensor):
    """A tensor whose address says nothing."""


UNSUITABLE = {
    "another dtype": lambda: torch.ones(3, dtype=torch.float64),
    "gaps between the rows": lambda: torch.ones(4, 4)[:, :3],
    "transposed": lambda: torch.ones(4, 3).T,
    "elsewhere": lambda: torch.ones(3, device="meta"),
    "sparse": lambda: torch.ones(3, 3).to_sparse(),
    "a subclass": lambda: torch.ones(3).as_subclass(Shard),
    "to be traced": lambda: torch.ones(3, requires_grad=True),
    "a parameter to be traced": lambda: nn.Parameter(torch.ones(3)),
}


@pytest.mark.parametrize("kind", UNSUITABLE)
def test_what_compiled_kernels_cannot_work_on(kind: str, compiled: Compiled) -> None:
    good = torch.ones(3)
    assert dispatch.native(good, UNSUITABLE[kind](), good) is None
    assert dispatch.native(good, None, good) is compiled


def test_what_compiled_kernels_can_work_on(compiled: Compiled) -> None:
    parameter = nn.Parameter(torch.ones(3))
    assert dispatch.native() is compiled
    assert dispatch.native(torch.ones(0, 3), torch.tensor(1.0)) is compiled
    assert dispatch.native(torch.ones(3, dtype=torch.bfloat16), dtype=torch.bfloat16) is compiled
    assert dispatch.native(nn.Parameter(torch.ones(3), requires_grad=False)) is compiled
    with torch.no_grad():
        assert dispatch.native(parameter) is compiled
    with torch.inference_mode():
        assert dispatch.native(torch.ones(3)) is compiled


def _loaded(monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[Any, str]:
    """What loading the module gives where importing it raises."""

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(dispatch, "importlib", SimpleNamespace(import_module=fail))
    return dispatch._load()


def test_why_the_module_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ModuleNotFoundError("No module", name="rango.kernels._native")
    assert _loaded(monkeypatch, absent) == (None, "the compiled kernels are not installed")
    module, reason = _loaded(monkeypatch, ImportError("undefined symbol: x"))
    assert module is None
    assert reason == "the compiled kernels cannot be loaded: undefined symbol: x"
    with pytest.raises(ModuleNotFoundError):  # a fault of ours, which nothing may hide
        _loaded(monkeypatch, ModuleNotFoundError("No module", name="rango.other"))


def test_a_process_without_the_module() -> None:
    """Rango imports and says why; the real import machinery, as on an install with no compiler."""
    code = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'rango.kernels._native':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from rango.kernels.dispatch import facts\n"
        "print(facts().in_use, '|', facts().reason)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != dispatch.VARIABLE}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "reference | the compiled kernels are not installed\n"
