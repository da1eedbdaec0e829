"""A stamp follows the code that an experiment imports, and nothing that computes nothing."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from hessinit_lib import stamps
from hessinit_lib.stamps import bare_code

EXPERIMENT = "hessinit_lib.experiments.mnist_tracking"
SOURCES = sorted(stamps.PACKAGE.rglob("*.py"))
CODE = '''"""A module."""

import os

LIMIT = 3  # as many


def f(x: int) -> str:
    """Say it.

    More.
    """
    text = """# no comment

    nor a docstring"""
    return f"{text} # {x}" * LIMIT
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# as many", "# so many"),
        ("LIMIT = 3  # as many", "# a line of its own\nLIMIT = 3"),
        ('"""A module."""', "'''Another\n\nmodule.'''"),
        ("    More.", "    Less,\n\n    or more."),
        ('    """Say it.\n\n    More.\n    """\n', ""),
        ("\n\n\ndef", "\n\ndef"),
        ("import os\n", "import os  \n"),
        ("\n", "\r\n"),
    ],
)
def test_what_does_not_count(old: str, new: str) -> None:
    assert old in CODE
    assert bare_code(CODE.replace(old, new)) == bare_code(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "# LIMIT = 3"),
        ("# no comment", "# a comment"),
        ("# no comment\n\n", "# no comment\n"),
        ("# no comment\n", "# no comment  \n"),
        ("nor a docstring", "nor another"),
        ("} # {", "} #{"),
        ("    return", "    if x:\n        return"),
    ],
)
def test_what_counts(old: str, new: str) -> None:
    assert old in CODE
    assert bare_code(CODE.replace(old, new)) != bare_code(CODE)


def test_all_that_is_code_stays() -> None:
    """The tokens of each file of the package, docstrings found another way: by the tree."""
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        alone = {
            (node.lineno, node.col_offset)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        }
        expected = [t.string for t in tokens(source) if t.start not in alone]
        assert [t.string for t in tokens(bare_code(source))] == expected, path


def tokens(source: str) -> list[tokenize.TokenInfo]:
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    found = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token for token in found if token.type not in layout]


def test_the_text_is_the_same_under_all_pythons() -> None:
    """The suite runs under each of them; f-strings fall into other tokens from 3.12 on."""
    source = CODE + 'y = f"""a  \n\n{LIMIT:>{LIMIT}} {{#}}  \n"""  # the end\n'
    assert bare_code(source).split("\n") == [
        "import os",
        "LIMIT = 3",
        "def f(x: int) -> str:",
        '    text = """# no comment',
        "",
        '    nor a docstring"""',
        '    return f"{text} # {x}" * LIMIT',
        'y = f"""a  ',
        "",
        "{LIMIT:>{LIMIT}} {{#}}  ",
        '"""',
    ]


def test_source_files_are_what_is_imported() -> None:
    """Python's own account: the package's modules in memory after the import."""
    code = (
        f"import sys, {EXPERIMENT}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'hessinit_lib'))"
    )
    package = stamps.PACKAGE
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True
    )
    loaded = {Path(file).resolve() for file in done.stdout.split()}
    assert len(loaded) > 10
    assert {path.resolve() for path in stamps.source_files(EXPERIMENT)} == loaded


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package in its place."""
    copy = tmp_path / "hessinit_lib"
    shutil.copytree(stamps.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.webp"))
    monkeypatch.setattr(stamps, "PACKAGE", copy)
    return copy


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_stamp_follows_what_the_experiment_imports(package: Path) -> None:
    old = stamps.code_stamp(EXPERIMENT)
    append(package / "figures" / "landing.py", "a = 1\n")
    append(package / "hessians" / "lanczos.py", "# a remark\n")
    for name in stamps.BOOKKEEPING:
        append(package / name, "a = 1\n")
    (package / "new.py").touch()
    assert stamps.code_stamp(EXPERIMENT) == old
    seen = {old}
    for file in ("experiments/mnist_tracking.py", "hessians/lanczos.py", "records.py"):
        append(package / file, "a = 1\n")
        seen.add(stamps.code_stamp(EXPERIMENT))
    assert len(seen) == 4
    append(package / "records.py", "from hessinit_lib import new\n")
    assert package / "new.py" in stamps.source_files(EXPERIMENT)


def test_stamp_covers_names_and_not_line_ends(package: Path) -> None:
    old = stamps.code_stamp(EXPERIMENT)
    file = package / "errors.py"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert stamps.code_stamp(EXPERIMENT) == old
    (package / "errors").mkdir()
    file.rename(package / "errors" / "__init__.py")
    assert stamps.code_stamp(EXPERIMENT) != old
