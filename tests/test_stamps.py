"""A stamp follows what an experiment computes, and neither files nor what readers need."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hessinit_lib import stamps
from hessinit_lib.definitions import Key, Sources

EXPERIMENTS = ("one", "two", "three")

# A project of three experiments: what they share, and what is one's own.
PROJECT = {
    "errors.py": "",
    "__init__.py": "",
    "experiments/__init__.py": '"""All."""\n',
    "experiments/one.py": '''
"""The first."""
from typing import ClassVar
import torch
from hessinit_lib import numbers
from hessinit_lib.steps import LIMIT, walk
from hessinit_lib.runs import run_seeds

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
    "experiments/two.py": """
from hessinit_lib.steps import walk as go
from hessinit_lib import tables

def run(parameters):
    def own(start):
        from hessinit_lib.numbers import start as begin
        return go(begin(), start)
    return own(tables.TABLE["a"](parameters))
""",
    "experiments/three.py": """
import hessinit_lib.shapes
import math

def run(parameters):
    walk = math.pi  # not the one of steps.py
    return hessinit_lib.shapes.Square(walk).area()
""",
    "numbers.py": "def start() -> float:\n    # from here\n    return 0.5\n\n\nUNUSED = 1\n",
    "steps.py": '''
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
    "shapes.py": """
class Square:
    SIDES = 4

    def __init__(self, side: float) -> None:
        self.side = side

    def area(self) -> float:
        return self.side**2
""",
    "tables.py": """
from hessinit_lib.registry import TABLE, register

@register("a")
def first(x):
    return x
""",
    "registry.py": """
TABLE = {}

def register(name):
    def keep(function):
        TABLE[name] = function
        return function
    return keep
""",
    "runs.py": "def run_seeds(values):\n    return values\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    for name, text in PROJECT.items():
        file = root / "hessinit_lib" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip("\n"), encoding="utf-8")
    monkeypatch.setattr(stamps, "ROOT", root)
    return root / "hessinit_lib"


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
        ("steps.py", "# as many", "# so many"),
        ("steps.py", '    """Go on.\n\n    More.\n    """\n', '    """Go."""\n'),
        ("steps.py", '    """Go on.\n\n    More.\n    """\n', ""),
        ("steps.py", "x: float, limit=LIMIT) -> float", "x, limit: int = LIMIT)"),
        ("steps.py", "LIMIT = 3", "LIMIT: int = 3"),
        ("steps.py", "    if x > limit:", "\n\n    if (x > limit):"),
        ("steps.py", "_back", "turn"),  # a definition by another name
        ("steps.py", "\n", "\r\n"),
        ("shapes.py", "side: float) -> None", "side)"),
        ("numbers.py", "UNUSED = 1", "UNUSED = 2"),
        ("numbers.py", "def start", "OTHER = 3\n\n\ndef start"),
        ("runs.py", "return values", "return values or []"),  # keeps the books
        ("experiments/one.py", '"quick": 1', '"quick": 2'),  # a value: the record names it
        ("experiments/one.py", "steps: int = 3", "steps: int = 4"),
        ("experiments/two.py", "from hessinit_lib.steps import walk as go", "import torch"),
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
        ("steps.py", "LIMIT = 3", "LIMIT = 4", {"one", "two"}),
        ("steps.py", "STEP = 0.25", "STEP = 0.5", {"one", "two"}),
        ("steps.py", "x > limit", "x >= limit", {"one", "two"}),
        ("steps.py", "walk(-x)", "walk(x)", {"one", "two"}),
        ("steps.py", "return _back(x)", "return walk(x)", {"one", "two"}),
        ("steps.py", '# {x}"', '#{x}"', {"one", "two"}),
        ("numbers.py", "0.5", "0.25", {"one", "two"}),
        ("shapes.py", "side**2", "side**3", {"three"}),
        ("shapes.py", "SIDES = 4", "SIDES = 5", {"three"}),
        ("tables.py", "return x", "return -x", {"two"}),  # enters itself in a table
        ("registry.py", "TABLE = {}", 'TABLE = {"b": 1}', {"two"}),
        ("registry.py", "TABLE = {}", 'TABLE = {}\nTABLE["a"] = 1', {"two"}),
        ("registry.py", "TABLE = {}", "TABLE = {}\nprint(1)", {"two"}),
        ("experiments/one.py", "2 * self.steps", "3 * self.steps", {"one"}),
        ("experiments/one.py", "range(", "list(", {"one"}),
        ("experiments/three.py", "math.pi", "math.e", {"three"}),
        ("experiments/two.py", "own(tables", "go(tables", {"two"}),
    ],
)
def test_what_changes_the_stamps_that_reach_it(
    project: Path, file: str, old: str, new: str, expected: set[str]
) -> None:
    assert changed_by(lambda: replace(project / file, old, new)) == expected


def test_a_moved_file_and_a_moved_definition_change_no_stamp(project: Path) -> None:
    def move_file() -> None:
        (project / "walking").mkdir()
        (project / "walking" / "__init__.py").touch()
        shutil.move(project / "steps.py", project / "walking" / "on_foot.py")
        for name in ("one", "two"):
            replace(
                project / "experiments" / f"{name}.py",
                "hessinit_lib.steps",
                "hessinit_lib.walking.on_foot",
            )

    def move_definition() -> None:
        file = project / "walking" / "on_foot.py"
        replace(file, "STEP = 0.25\n", "")
        replace(file, "LIMIT = 3", "from hessinit_lib.numbers import SIZE as STEP\n\nLIMIT = 3")
        with (project / "numbers.py").open("a", encoding="utf-8") as numbers:
            numbers.write("SIZE = 0.25\n")

    def lead_through_a_front() -> None:
        (project / "walking" / "__init__.py").write_text(
            "from hessinit_lib.walking.on_foot import walk\n"
        )
        replace(project / "experiments" / "two.py", "walking.on_foot", "walking")

    assert changed_by(move_file) == set()
    assert changed_by(move_definition) == set()
    assert changed_by(lead_through_a_front) == set()


def test_a_module_is_all_that_it_defines(project: Path) -> None:
    before = stamps.module_stamp("hessinit_lib.numbers")
    replace(project / "numbers.py", "UNUSED = 1", "UNUSED = 2")
    assert stamps.module_stamp("hessinit_lib.numbers") != before


def test_what_there_is_not(project: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no experiment 'four'"):
        stamps.code_stamp("four")
    with pytest.raises(ModuleNotFoundError, match=r"no module hessinit_lib\.no"):
        stamps.module_stamp("hessinit_lib.no")


# The project's own sources

REACH = {
    "networks/googlenet.py": {"cifar_networks", "cifar_stability"},
    "word2vec/analogies.py": {"word2vec"},
    "theory/word_pairs.py": {"word_pair_saddle", "word2vec_curvature"},
    "figures/contest.py": set(),
}


def test_a_change_of_the_library_reaches_those_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "hessinit_lib"
    quiet = shutil.ignore_patterns("__pycache__", "sample")
    shutil.copytree(stamps.ROOT / "hessinit_lib", copy, ignore=quiet)
    monkeypatch.setattr(stamps, "ROOT", tmp_path)
    files = (copy / "experiments").glob("*.py")
    names = [file.stem for file in files if "EXPERIMENT: ClassVar" in file.read_text()]
    assert len(names) == 16
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
    for path in sorted((stamps.ROOT / "hessinit_lib").rglob("*.py")):
        parts = path.relative_to(stamps.ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        module = sources.module(name)
        assert module is not None
        for number in range(len(module.statements)):
            words = sources.bare(Key(name, number)).words
            assert not [word for word in words if word and word.startswith("outside hessinit_")]


def test_stamps_are_the_same_under_all_pythons() -> None:
    """Those that are at hand; f-strings fall into other trees from 3.12 on."""
    code = "from hessinit_lib.stamps import code_stamp; print(code_stamp('contest'))"
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
