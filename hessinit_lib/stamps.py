"""Which source files an experiment rests on, and a checksum of what they compute.

A record carries the checksum, so that it can be told whether the code that made it is
still the code that is there. It covers just the files that the experiment imports, and of
them only what can change a result: comments, docstrings and blank lines do not count, nor do
the files that keep the books of results without computing any.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parent

# They decide which records hold and what these say about themselves, or name what users
# import; they compute no value.
BOOKKEEPING = (
    "__init__.py",
    "confirmations.py",
    "parts.py",
    "provenance.py",
    "runs.py",
    "stamps.py",
)

# Between two statements, tokens of these kinds only; at the end of a file, too.
_BETWEEN = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def source_files(module: str, package: Path | None = None) -> list[Path]:
    """List the files of this package that a module imports, itself included.

    Imports at the top of the files are read from the sources without running them.

    Args:
        module: dotted name, "hessinit_lib.experiments.mnist_tracking".
        package: the package's folder, where it is another copy than the one that runs.

    Returns:
        Paths, sorted by their place in the package.

    Example:
        >>> [path.name for path in source_files("hessinit_lib.errors")]
        ['__init__.py', 'errors.py']
    """
    package = package or PACKAGE
    found: set[Path] = set()
    _collect(module, package, found)
    return sorted(found, key=lambda path: path.relative_to(package).as_posix())


def code_stamp(module: str, package: Path | None = None) -> str:
    """Compute the SHA-256 checksum of the names and the code of `source_files(module)`."""
    package = package or PACKAGE
    digest = hashlib.sha256()
    for path in source_files(module, package):
        name = path.relative_to(package).as_posix()
        if name not in BOOKKEEPING:
            text = bare_code(path.read_text(encoding="utf-8"))
            digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1024)  # the records of one experiment ask for the same files
def bare_code(source: str) -> str:
    r"""Cut out of a source what Python passes over, the same under every version of Python.

    That is comments, statements that are nothing but a string (docstrings), blank lines and
    spaces at line ends, outside of strings. The rest is kept letter by letter, not parsed and
    written anew, since how Python writes a tree differs between its versions.

    Example:
        >>> bare_code("'Say what.'\n\nx = '#'  # why\n")
        "x = '#'"
    """
    lines = source.replace("\r\n", "\n").split("\n")
    tokens = [*tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline)]
    cuts = [(t.start, t.end) for t in tokens if t.type == tokenize.COMMENT]
    code = [t for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)]
    in_string: set[int] = set()  # lines that end inside of a string: they stay as they are
    begun: list[int] = []
    for before, token, after in zip([code[-1], *code], code, [*code[1:], code[-1]], strict=False):
        kind = tokenize.tok_name[token.type]
        plain = kind == "STRING" and token.string.lstrip("rRuU")[0] in "'\""
        if plain and before.type in _BETWEEN and after.type == tokenize.NEWLINE:
            cuts.append((token.start, token.end))  # a statement that is nothing but a string
        elif kind == "STRING":
            in_string.update(range(token.start[0], token.end[0]))
        elif kind == "FSTRING_START":  # from Python 3.12 on, an f-string is many tokens
            begun.append(token.start[0])
        elif kind == "FSTRING_END":
            in_string.update(range(begun.pop(), token.end[0]))
    for (first, left), (last, right) in sorted(cuts, reverse=True):
        rest = lines[first - 1][:left] + lines[last - 1][right:]
        lines[first - 1 : last] = [rest] + [""] * (last - first)
    numbered = enumerate(lines, start=1)
    kept = (line if number in in_string else line.rstrip() for number, line in numbered)
    return "\n".join(line for n, line in enumerate(kept, start=1) if line or n in in_string)


def _collect(module: str, package: Path, found: set[Path]) -> None:
    if module.split(".")[0] != package.name:
        return
    # Importing a.b.c runs a and a.b as well.
    if "." in module:
        _collect(module.rpartition(".")[0], package, found)
    path = _path_of(module, package)
    if path is None or path in found:
        return
    found.add(path)
    for name in _imported(path.read_bytes()):
        _collect(name, package, found)


@lru_cache(maxsize=1024)
def _imported(source: bytes) -> tuple[str, ...]:
    """Name what a source imports; of what it imports from a module, each name may be one, too."""
    names: list[str] = []
    # Top level only: what stands in a function or under TYPE_CHECKING is there for callers who
    # want it (the lazy names of the package), not for the module's own work.
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _path_of(module: str, package: Path) -> Path | None:
    base = package.parent.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None
