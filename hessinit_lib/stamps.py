"""Which source files an experiment rests on, and a checksum of them.

A record carries the checksum, so that it can be told whether the code that made it is
still the code that is there. It covers just the files that the experiment imports, so
that an edit elsewhere leaves its records valid.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent


def source_files(module: str) -> list[Path]:
    """List the files of this package that a module imports, itself included.

    Imports at the top of the files are read from the sources without running them.

    Args:
        module: dotted name, "hessinit_lib.experiments.mnist_tracking".

    Returns:
        Paths, sorted by their place in the package.

    Example:
        >>> [path.name for path in source_files("hessinit_lib.errors")]
        ['__init__.py', 'errors.py']
    """
    found: set[Path] = set()
    _collect(module, found)
    return sorted(found, key=lambda path: path.relative_to(PACKAGE).as_posix())


def code_stamp(module: str) -> str:
    """Compute the SHA-256 checksum of the names and contents of `source_files(module)`."""
    digest = hashlib.sha256()
    for path in source_files(module):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0")
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def _collect(module: str, found: set[Path]) -> None:
    if module.split(".")[0] != PACKAGE.name:
        return
    # Importing a.b.c runs a and a.b as well.
    if "." in module:
        _collect(module.rpartition(".")[0], found)
    path = _path_of(module)
    if path is None or path in found:
        return
    found.add(path)
    # Top level only: what stands in a function or under TYPE_CHECKING is there for callers who
    # want it (the lazy names of the package), not for the module's own work.
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                _collect(alias.name, found)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            _collect(node.module, found)
            for alias in node.names:  # may be a module, too
                _collect(f"{node.module}.{alias.name}", found)


def _path_of(module: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None
