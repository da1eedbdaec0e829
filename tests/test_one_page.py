"""The page "All of hessinit_lib" runs from top to bottom and prints what it shows.

Its convention: a block of Python, then a block of text with what it prints. A block whose first
line is a comment that names a file is written to that file; a block of bash is run beside it.
`python tests/test_one_page.py` writes the present output into the page.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "all_of_hessinit_lib.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def outputs(text: str, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run the page's blocks in one namespace; give each with its output, shown and real."""
    blocks = [match.groups() for match in BLOCK.finditer(text)]
    namespace: dict[str, object] = {"__name__": "page"}
    for (language, code), (following, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "text":
            continue
        if named := re.match(r"# (\w+\.py)\n", code):
            (folder / named[1]).write_text(code)
            continue
        real = run(code, folder) if language == "bash" else execute(code, namespace)
        yield code, shown if following == "text" else "", real


def execute(code: str, namespace: dict[str, object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, PAGE.name, "exec"), namespace)
    return printed.getvalue()


def run(command: str, folder: Path) -> str:
    program, *arguments = command.split()
    assert program == "python"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout


def same(shown: str, real: str) -> bool:
    """Compare text but for white space, and numbers to three significant digits."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", real).split():
        return False
    return all(map(close, NUMBER.findall(shown), NUMBER.findall(real)))


def close(shown: str, real: str) -> bool:
    digits = shown.partition("e")[0].partition(".")[2]
    if not digits:
        return shown == real
    # Where fewer digits are shown, the last one may be rounded the other way.
    exponent = int(shown.partition("e")[2] or 0)
    last = 1.001 * 10.0 ** (exponent - len(digits))
    few = len(digits.lstrip("0") if abs(float(shown)) < 1 else digits) < 3
    return math.isclose(float(shown), float(real), rel_tol=5e-3, abs_tol=last if few else 0)


def test_the_page_prints_what_it_shows(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    differ = [
        f"{code}\nshown:\n{shown}\nreal:\n{real}"
        for code, shown, real in outputs(text, tmp_path)
        if not same(shown, real)
    ]
    assert not differ, "\n".join([*differ, "python tests/test_one_page.py writes what is real"])


def test_every_output_has_its_code() -> None:
    languages = [language for language, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]
    assert set(languages) == {"python", "bash", "text"}
    assert languages[0] == "python"
    assert ("text", "text") not in itertools.pairwise(languages)


@pytest.mark.parametrize(
    ("shown", "real", "expected"),
    [
        ("0.weight: 1.234", "0.weight:   1.236\n", True),
        ("0.weight: 1.234", "0.weight: 1.254", False),
        ("0.weight: 1.234", "2.weight: 1.234", False),
        ("size 5632", "size 5633", False),
        ("exact: True", "exact: False", False),
        ("rate 0.37", "rate 0.38", True),
        ("rate 0.37", "rate 0.40", False),
        ("9.0e-03", "9.1e-03", True),
        ("9.0e-03", "9.0e-04", False),
        ("-0.65", "0.65", False),
        ("", "1", False),
    ],
)
def test_a_changed_output_is_seen(shown: str, real: str, expected: bool) -> None:
    assert same(shown, real) is expected


def test_blocks_share_names_and_lack_of_output_is_seen(tmp_path: Path) -> None:
    text = "```python\na = 2\n```\n\n```python\nprint(a)\n```\n\n```text\n3\n```\n\n"
    text += "```python\nprint(a)\n```\n"
    found = [same(shown, real) for _, shown, real in outputs(text, tmp_path)]
    assert found == [True, False, False]


def write() -> None:
    """Put the present output into the page."""
    import tempfile

    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        reals = [real for _, _, real in outputs(text, Path(folder)) if real]

    def filled(match: re.Match[str]) -> str:
        if match[1] != "text":
            return match[0]
        lines = [line.rstrip() for line in reals.pop(0).splitlines()]
        return "```text\n" + "\n".join(lines) + "\n```"

    PAGE.write_text(BLOCK.sub(filled, text), encoding="utf-8")


if __name__ == "__main__":
    write()
