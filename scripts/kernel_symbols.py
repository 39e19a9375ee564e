"""Fails where object files compiled for an instruction set define a symbol that other objects could
share: the linker keeps one definition of each, so wider instructions could reach any processor.

CMakeLists.txt runs it before the module is linked: kernel_symbols.py NM ISA OBJECT…
"""

from __future__ import annotations

import subprocess
import sys


def shared_symbols(nm: str, isa: str, objects: list[str]) -> list[str]:
    """Mangled names of what the objects define for all to see outside namespace rango::ISA."""
    listed = subprocess.run(
        [nm, "-P", "--defined-only", "--extern-only", *objects],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # a line "PATH:" goes before each file's symbols, and the path may hold spaces
    lines = [line.split() for line in listed.splitlines() if not line.endswith(":")]
    names = {line[0] for line in lines if len(line) > 1}
    # a mangled name of ours, or of a template over a type of ours, holds the namespace; DW.ref. is
    # a pointer to the exceptions' handler and holds no code
    own = f"5rango{len(isa)}{isa}"
    return sorted(name for name in names if own not in name and not name.startswith("DW.ref."))


def main() -> int:
    nm, isa, *objects = sys.argv[1:]
    found = shared_symbols(nm, isa, objects)
    if found:
        print(
            f"compiled for {isa}, but not in namespace rango::{isa}: {', '.join(found)}; make them "
            "static or move them there, and use no C++ library in such files",
            file=sys.stderr,
        )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
