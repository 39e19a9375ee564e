"""The house: a package imports only from packages above it, and nothing imports in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import rango

SOURCE = Path(rango.__file__).parent

ORDER = [
    "errors",
    "progress",
    "files",
    "numerics",
    "kernels",
    "base",
    "adapters",
    "data",
    "generation",
    "evaluation",
    "tracking",
    "report",
    "training",
    "serving",
    "export",
    "demo",
    "cli",
]


def _imports(path: Path) -> set[str]:
    """Full names of the rango modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "rango" and [alias.name for alias in node.names] == ["__version__"]:
                continue  # a constant, not the public face
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "rango" or name.startswith("rango.")}


def _modules() -> dict[str, Path]:
    return {
        ".".join(("rango", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in SOURCE.rglob("*.py")
    }


def test_packages_import_only_from_above() -> None:
    for name, path in _modules().items():
        if name == "rango":
            continue
        home = name.split(".")[1]
        assert home in ORDER, f"{name}: in no package of the house"
        for imported in _imports(path):
            if imported == "rango":
                # the public face is for the layers that users see
                assert home in ("demo", "cli"), f"{name} imports the public face"
                continue
            package = imported.split(".")[1]
            if package not in ORDER:
                continue  # a name of the public face, which the line above allows
            assert ORDER.index(package) <= ORDER.index(home), f"{name} imports {imported}"


def test_no_circle_of_imports() -> None:
    modules = _modules()
    graph = {
        name: {imported for imported in _imports(path) if imported in modules} - {name, "rango"}
        for name, path in modules.items()
        if name != "rango"
    }
    # imports under TYPE_CHECKING name types only and do not run
    for name in graph:
        graph[name] -= _for_types(modules[name])
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name in done:
            return
        for imported in graph[name]:
            visit(imported, (*way, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def _for_types(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in node.body:
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    found.add(inner.module)
    return found


def test_public_names_exist() -> None:
    for name in rango.__all__:
        assert getattr(rango, name) is not None
    assert set(rango.__all__) <= set(dir(rango))


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'jsonargparse', 'rich'}"
    code = f"import sys, rango; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_no_pickle_and_no_remote_code() -> None:
    forbidden = ("pickle", "torch.load(", "torch.save(", "trust_remote_code=True", "shell=True")
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        for word in forbidden[1:]:
            assert word not in text, f"{path}: {word}"
        assert "import pickle" not in text
