"""The table "Where do I find ...?" in CONTRIBUTING.md: each definition is where it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLE = TEXT.split("### Where do I find")[1]
ROWS = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| `(\w+)` \|$", TABLE, re.MULTILINE)


def definitions(path: Path) -> set[str]:
    """Give the functions, classes and constants at the top level of a module."""
    found = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


@pytest.mark.parametrize(("question", "path", "name"), ROWS, ids=[row[0] for row in ROWS])
def test_a_definition_is_where_the_table_says(question: str, path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert name in definitions(ROOT / path)


def test_the_table_is_read_whole() -> None:
    lines = [line for line in TABLE.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(lines) - 2  # without titles and rule
    assert len(ROWS) == 17


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "results/README.md"])
def test_folders_and_files_of_the_text_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    tops = {path.name for path in ROOT.iterdir() if not path.name.startswith((".", "_"))}
    named = set(re.findall(r"`([\w./]+)`", text))
    named = {name for name in named if name.split("/")[0] in tops}
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_version_and_the_types_are_there() -> None:
    """The version without torch, which takes seconds to import."""
    code = "import sys, hessinit_lib; print(hessinit_lib.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, torch_imported = done.stdout.split()
    assert version[0].isdigit()
    assert torch_imported == "False"
    assert (ROOT / "hessinit_lib" / "py.typed").is_file()
