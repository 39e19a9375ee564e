"""The build: where there is a compiler, what is tested is compiled, from these sources, and keeps
wide instructions to itself; where there is none, Rango installs without."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from rango.kernels import dispatch

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "src" / "rango" / "kernels" / "csrc"
BUILD = (ROOT / "CMakeLists.txt").read_text()
REMEDY = "`make test` builds it, and shows what fails; see CONTRIBUTING.md"
COMPILER = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler here")


@needs_compiler
def test_the_compiled_module_is_loaded() -> None:
    assert dispatch._native is not None, f"{COMPILER} is here, but {dispatch._missing}; {REMEDY}"
    wish = os.environ.get(dispatch.VARIABLE) or "auto"
    found = dispatch.facts().in_use
    assert found == (dispatch.available()[0] if wish == "auto" else wish)
    assert found in ("reference", dispatch._native.in_use())


@needs_compiler
def test_it_is_not_older_than_its_sources() -> None:
    assert dispatch._native is not None, REMEDY
    module = Path(dispatch._native.__file__)
    built = module.stat().st_mtime
    newer = [path.name for path in CSRC.iterdir() if path.stat().st_mtime > built]
    assert not newer, f"{module} is older than {', '.join(newer)}; {REMEDY}"


@needs_compiler
def test_it_has_avx2_where_the_processor_has() -> None:
    processor = Path("/proc/cpuinfo")
    flags = set(processor.read_text().split()) if processor.exists() else set()
    wide = {"avx2", "fma", "f16c"} <= flags
    assert dispatch.available()[0] == ("avx2" if wide else "portable")


def test_files_compiled_for_an_instruction_set_use_no_cpp_library() -> None:
    """Its templates would be compiled with wide instructions under names that others share."""
    listed = re.search(r"set\(KERNELS\n(.*?)\)", BUILD, re.DOTALL)
    assert listed
    todo = [CSRC / name for name in re.findall(r"\$\{CSRC\}/(\S+)", listed[1])]
    assert todo
    read: set[Path] = set()
    foreign = set()
    while todo:
        path = todo.pop()
        if path in read:
            continue
        read.add(path)
        text = path.read_text()
        todo += [CSRC / name for name in re.findall(r'#include "(\S+)"', text)]
        foreign |= {f"{path.name}: {name}" for name in re.findall(r"#include <(\S+)>", text)}
    assert {use for use in foreign if not re.search(r"\.h$| c(math|string|std\w+)$", use)} == set()


def test_every_source_is_built() -> None:
    assert [
        path.name for path in CSRC.glob("*.cpp") if f"${{CSRC}}/{path.name}\n" not in BUILD
    ] == []


def _checker() -> ModuleType:
    path = ROOT / "scripts" / "kernel_symbols.py"
    spec = importlib.util.spec_from_file_location("kernel_symbols", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_compiler
@pytest.mark.parametrize(
    ("source", "leaks"),
    [
        (
            "namespace rango::avx2 { namespace { int f() { return 1; } } int g() { return f(); } }",
            0,
        ),
        (
            "namespace rango::avx2 { template <class T> void f(T) {} template void f(int); }",
            0,
        ),
        ("namespace rango { int f() { return 1; } }", 1),
        ("namespace rango { inline int f() { return 1; } auto g = f; }", 2),
        ("template <class T> T f(T x) { return x; } template int f(int);", 1),
        ('extern "C" int f() { return 1; }', 1),
        ("namespace rango::portable { int f() { return 1; } }", 1),
    ],
)
def test_the_check_of_symbols_sees_what_could_be_shared(
    source: str, leaks: int, tmp_path: Path
) -> None:
    """CMakeLists.txt runs it on every object before the module is linked."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm here, so that the build does not check either")
    code, built = tmp_path / "a.cpp", tmp_path / "a.o"
    code.write_text(source)
    subprocess.run([str(COMPILER), "-std=c++17", "-c", str(code), "-o", str(built)], check=True)
    assert len(_checker().shared_symbols(nm, "avx2", [str(built)])) == leaks


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, with what a build leaves behind."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src")
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    (copy / "docs").mkdir()
    (copy / "docs" / "page.md").write_text("a page\n")
    (copy / "build").mkdir()
    (copy / "build" / "left.so").write_bytes(b"x")
    return copy


def _built(sources: Path, hook: str, **environment: str) -> Path:
    """What the build backend makes of the sources, as pip calls it."""
    code = f"import scikit_build_core.build as b; print('made', b.{hook}('dist'))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=sources,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return sources / "dist" / ended.stdout.splitlines()[-1].removeprefix("made ")


def test_a_wheel_without_a_compiler(sources: Path) -> None:
    """The build fails; what is installed then is Python, typed, with its demo and no sources."""
    wheel = _built(sources, "build_wheel", CXX="/bin/false", CC="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name.removeprefix("rango/") for name in names if name.startswith("rango/")}
    assert {name for name in names if not name.startswith("rango")} == set()
    assert {"py.typed", "kernels/dispatch.py", "kernels/_native.pyi"} <= packaged
    for folder in ("demo/base", "demo/data"):
        held = {f"{folder}/{path.name}" for path in (ROOT / "src" / "rango" / folder).iterdir()}
        assert held
        assert held <= packaged
    assert not [name for name in packaged if "csrc" in name or name.endswith((".so", ".pyc"))]


def test_the_source_distribution_holds_what_is_compiled(sources: Path) -> None:
    distribution = _built(sources, "build_sdist")
    with tarfile.open(distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kernels = {f"src/rango/kernels/csrc/{path.name}" for path in CSRC.iterdir()}
    assert {"CMakeLists.txt", "scripts/kernel_symbols.py", "docs/page.md"} | kernels <= names
    assert not [name for name in names if name.startswith(("build/", "dist/")) or ".pyc" in name]


@needs_compiler
def test_the_check_of_symbols_reads_objects_in_a_folder_with_spaces(tmp_path: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm here, so that the build does not check either")
    folder = tmp_path / "a folder"
    folder.mkdir()
    code, objects = folder / "a.cpp", [str(folder / f"{name}.o") for name in "ab"]
    code.write_text("namespace rango::avx2 { int f() { return 1; } }")
    for built in objects:
        subprocess.run([str(COMPILER), "-std=c++17", "-c", str(code), "-o", built], check=True)
    assert _checker().shared_symbols(nm, "avx2", objects) == []


THROWS = """
#define RANGO_ISA portable
#include "parallel.h"
#include <cstdio>
#include <new>
int main() {
  static int ended[4];
  const auto body = [](void*, int thread) {
    ended[thread] = 1;
    if (thread) throw std::bad_alloc();
  };
  for (int i = 0; i < 100; i++) {
    try {
      rango::run_threads(4, body, nullptr);
      return 1;
    } catch (const std::bad_alloc&) {
    }
  }
  return ended[0] + ended[1] + ended[2] + ended[3] == 4 ? 0 : 2;
}
"""


@needs_compiler
@pytest.mark.parametrize("pool", ["threads of its own", "OpenMP"])
def test_what_a_thread_throws_reaches_the_caller(pool: str, tmp_path: Path) -> None:
    code, built = tmp_path / "a.cpp", tmp_path / "a"
    code.write_text(THROWS)
    flags = ["-fopenmp", "-Wl,--no-as-needed"] if pool == "OpenMP" else []
    command = [str(COMPILER), "-std=c++17", "-pthread", *flags, f"-I{CSRC}", str(code)]
    command += [str(CSRC / "parallel.cpp"), "-ldl", "-o", str(built)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode and pool == "OpenMP":
        pytest.skip("this compiler has no OpenMP")
    assert made.returncode == 0, made.stderr
    assert subprocess.run([str(built)], timeout=60).returncode == 0
