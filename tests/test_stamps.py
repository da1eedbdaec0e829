"""A stamp follows what an experiment computes, and neither files nor what readers need."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from verify_project import copy_sources

from hessinit_book.records import stamps
from hessinit_book.records.definitions import PACKAGES, Key, Sources

EXPERIMENTS = ("one", "two", "three")
ONE, TWO, THREE = (f"hessinit_book/chapters/{name}/run.py" for name in EXPERIMENTS)
RUNS = "hessinit_book/records/runs.py"

# A project of three experiments: what they share, and what is one's own.
PROJECT = {
    "hessinit_book/__init__.py": "",
    "hessinit_lib/__init__.py": "",
    "hessinit_book/chapters/__init__.py": '"""All."""\n',
    "hessinit_book/chapters/one/run.py": '''
"""The first."""
from typing import ClassVar
import torch
from hessinit_lib import numbers
from hessinit_lib.steps import LIMIT, walk
from hessinit_book.records.runs import run_seeds

class OneParameters:
    EXPERIMENT: ClassVar[str] = "one"
    BY_PROFILE = {"quick": 1}
    steps: int = 3

    @property
    def twice(self) -> int:
        return 2 * self.steps

def run(parameters: OneParameters) -> list[int]:
    """Run it."""
    return run_seeds([walk(numbers.start(), LIMIT) for _ in range(parameters.twice)])
''',
    "hessinit_book/chapters/two/run.py": """
from hessinit_lib.steps import walk as go
from hessinit_lib import tables

def run(parameters):
    def own(start):
        from hessinit_lib.numbers import start as begin
        return go(begin(), start)
    return own(tables.TABLE["a"](parameters))
""",
    "hessinit_book/chapters/three/run.py": """
import hessinit_lib.shapes
import math

def run(parameters):
    walk = math.pi  # not the one of steps.py
    return hessinit_lib.shapes.Square(walk).area()
""",
    "hessinit_lib/numbers.py": """
def start() -> float:
    # from here
    return 0.5


UNUSED = 1
""",
    "hessinit_lib/steps.py": '''
LIMIT = 3  # as many

def walk(x: float, limit=LIMIT) -> float:
    """Go on.

    More.
    """
    if x > limit:
        return _back(x)
    return walk(x + STEP, limit)

def _back(x):
    return f"{x:>{LIMIT}} # {x}" and walk(-x)

STEP = 0.25
''',
    "hessinit_lib/shapes.py": """
class Square:
    SIDES = 4

    def __init__(self, side: float) -> None:
        self.side = side

    def area(self) -> float:
        return self.side**2
""",
    "hessinit_lib/tables.py": """
from hessinit_lib.registry import TABLE, register

@register("a")
def first(x):
    return x
""",
    "hessinit_lib/registry.py": """
TABLE = {}

def register(name):
    def keep(function):
        TABLE[name] = function
        return function
    return keep
""",
    "hessinit_book/records/runs.py": "def run_seeds(values):\n    return values\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    for name, text in PROJECT.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip("\n"), encoding="utf-8")
    monkeypatch.setattr(stamps, "ROOT", root)
    return root


def all_stamps() -> dict[str, str]:
    return {name: stamps.code_stamp(name) for name in EXPERIMENTS}


def changed_by(act: Callable[[], object]) -> set[str]:
    before = all_stamps()
    act()
    after = all_stamps()
    return {name for name in EXPERIMENTS if before[name] != after[name]}


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("hessinit_lib/steps.py", "# as many", "# so many"),
        ("hessinit_lib/steps.py", '    """Go on.\n\n    More.\n    """\n', '    """Go."""\n'),
        ("hessinit_lib/steps.py", '    """Go on.\n\n    More.\n    """\n', ""),
        ("hessinit_lib/steps.py", "x: float, limit=LIMIT) -> float", "x, limit: int = LIMIT)"),
        ("hessinit_lib/steps.py", "LIMIT = 3", "LIMIT: int = 3"),
        ("hessinit_lib/steps.py", "    if x > limit:", "\n\n    if (x > limit):"),
        ("hessinit_lib/steps.py", "_back", "turn"),  # a definition by another name
        ("hessinit_lib/steps.py", "\n", "\r\n"),
        ("hessinit_lib/shapes.py", "side: float) -> None", "side)"),
        ("hessinit_lib/numbers.py", "UNUSED = 1", "UNUSED = 2"),
        ("hessinit_lib/numbers.py", "def start", "OTHER = 3\n\n\ndef start"),
        (
            "hessinit_book/records/runs.py",
            "return values",
            "return values or []",
        ),  # keeps the books
        (
            "hessinit_book/chapters/one/run.py",
            '"quick": 1',
            '"quick": 2',
        ),  # a value: the record names it
        (ONE, "steps: int = 3", "steps: int = 4"),
        (
            "hessinit_book/chapters/two/run.py",
            "from hessinit_lib.steps import walk as go",
            "import torch",
        ),
    ],
)
def test_what_changes_no_stamp(project: Path, file: str, old: str, new: str) -> None:
    if "import torch" in new:  # another way to name the same
        act = [
            (old, "from hessinit_lib import steps"),
            ("go(begin()", "steps.walk(begin()"),
        ]
        assert changed_by(lambda: [replace(project / file, *pair) for pair in act]) == set()
    else:
        assert changed_by(lambda: replace(project / file, old, new)) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("hessinit_lib/steps.py", "LIMIT = 3", "LIMIT = 4", {"one", "two"}),
        ("hessinit_lib/steps.py", "STEP = 0.25", "STEP = 0.5", {"one", "two"}),
        ("hessinit_lib/steps.py", "x > limit", "x >= limit", {"one", "two"}),
        ("hessinit_lib/steps.py", "walk(-x)", "walk(x)", {"one", "two"}),
        ("hessinit_lib/steps.py", "return _back(x)", "return walk(x)", {"one", "two"}),
        ("hessinit_lib/steps.py", '# {x}"', '#{x}"', {"one", "two"}),
        ("hessinit_lib/numbers.py", "0.5", "0.25", {"one", "two"}),
        ("hessinit_lib/shapes.py", "side**2", "side**3", {"three"}),
        ("hessinit_lib/shapes.py", "SIDES = 4", "SIDES = 5", {"three"}),
        ("hessinit_lib/tables.py", "return x", "return -x", {"two"}),  # enters itself in a table
        ("hessinit_lib/registry.py", "TABLE = {}", 'TABLE = {"b": 1}', {"two"}),
        ("hessinit_lib/registry.py", "TABLE = {}", 'TABLE = {}\nTABLE["a"] = 1', {"two"}),
        ("hessinit_lib/registry.py", "TABLE = {}", "TABLE = {}\nprint(1)", {"two"}),
        (ONE, "2 * self.steps", "3 * self.steps", {"one"}),
        (ONE, "range(", "list(", {"one"}),
        (THREE, "math.pi", "math.e", {"three"}),
        (TWO, "own(tables", "go(tables", {"two"}),
    ],
)
def test_what_changes_the_stamps_that_reach_it(
    project: Path, file: str, old: str, new: str, expected: set[str]
) -> None:
    assert changed_by(lambda: replace(project / file, old, new)) == expected


def test_a_moved_file_and_a_moved_definition_change_no_stamp(project: Path) -> None:
    def move_file() -> None:
        (project / "hessinit_lib/walking").mkdir()
        (project / "hessinit_lib/walking" / "__init__.py").touch()
        shutil.move(
            project / "hessinit_lib/steps.py", project / "hessinit_lib/walking" / "on_foot.py"
        )
        for name in ("one", "two"):
            replace(
                project / f"hessinit_book/chapters/{name}/run.py",
                "hessinit_lib.steps",
                "hessinit_lib.walking.on_foot",
            )

    def move_definition() -> None:
        file = project / "hessinit_lib/walking" / "on_foot.py"
        replace(file, "STEP = 0.25\n", "")
        replace(file, "LIMIT = 3", "from hessinit_lib.numbers import SIZE as STEP\n\nLIMIT = 3")
        with (project / "hessinit_lib/numbers.py").open("a", encoding="utf-8") as numbers:
            numbers.write("SIZE = 0.25\n")

    def lead_through_a_front() -> None:
        (project / "hessinit_lib/walking" / "__init__.py").write_text(
            "from hessinit_lib.walking.on_foot import walk\n"
        )
        replace(project / "hessinit_book/chapters/two/run.py", "walking.on_foot", "walking")

    assert changed_by(move_file) == set()
    assert changed_by(move_definition) == set()
    assert changed_by(lead_through_a_front) == set()


def test_a_module_is_all_that_it_defines(project: Path) -> None:
    before = stamps.module_stamp("hessinit_lib.numbers")
    replace(project / "hessinit_lib/numbers.py", "UNUSED = 1", "UNUSED = 2")
    assert stamps.module_stamp("hessinit_lib.numbers") != before


def test_what_there_is_not(project: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no experiment 'four'"):
        stamps.code_stamp("four")
    with pytest.raises(ModuleNotFoundError, match=r"no module hessinit_lib\.no"):
        stamps.module_stamp("hessinit_lib.no")


# The project's own sources

REACH = {
    "hessinit_book/networks/googlenet.py": {"cifar_networks", "cifar_stability"},
    "hessinit_book/chapters/word2vec/analogies.py": set(),  # the last one there is for figures
    "hessinit_book/word2vec/by_gensim.py": {"word2vec", "word2vec_curvature"},
    "hessinit_book/word2vec/skip_gram_hessian.py": {
        "word_pair_saddle",
        "word2vec_curvature",
    },
    "hessinit_book/chapters/contest/figures.py": set(),
}


def test_a_change_of_the_library_reaches_those_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_sources(tmp_path)
    monkeypatch.setattr(stamps, "ROOT", copy)
    names = [file.parent.name for file in (copy / "hessinit_book/chapters").glob("*/run.py")]
    assert len(names) == 19
    before = {name: stamps.code_stamp(name) for name in names}
    for file, expected in REACH.items():
        text = (copy / file).read_text(encoding="utf-8")
        last = [*re.finditer(r"^( +)return ", text, re.MULTILINE)][-1]
        added = f"{last[1]}assert 1\n"
        (copy / file).write_text(text[: last.start()] + added + text[last.start() :])
        now = {name: stamps.code_stamp(name) for name in names}
        assert {name for name in names if now[name] != before[name]} == expected
        before = now


def test_every_definition_of_the_project_can_be_written_out() -> None:
    """Each name in it is found: nothing of this project passes for a library's."""
    sources = Sources(stamps.ROOT)
    for path in sorted(p for name in PACKAGES for p in (stamps.ROOT / name).rglob("*.py")):
        parts = path.relative_to(stamps.ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        module = sources.module(name)
        assert module is not None
        for number in range(len(module.statements)):
            words = sources.bare(Key(name, number)).words
            assert not [word for word in words if word and word.startswith("outside hessinit_")]


def test_stamps_are_the_same_under_all_pythons() -> None:
    """Those that are at hand; f-strings fall into other trees from 3.12 on."""
    code = "from hessinit_book.records.stamps import code_stamp; print(code_stamp('contest'))"
    found = {sys.executable}
    for minor in range(10, 15):
        found |= {path} if (path := shutil.which(f"python3.{minor}")) else set()
    printed = set()
    for python in sorted(found):
        done = subprocess.run(
            [python, "-c", code], cwd=stamps.ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:  # a launcher without a Python behind it
            printed.add(done.stdout)
    assert len(printed) == 1
