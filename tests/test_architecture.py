"""The library stands by itself: what its files import, and what it runs without."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "hessinit_lib"
# Folders of the library by level: a file imports from its own level and from those before.
LEVELS = ({"hessians", "theory"}, {"init"}, {"diagnosis"}, {"adapters"})
BELOW_ALL = ("errors", "tables")
NEEDED = {"torch", "numpy", "jaxtyping", "tqdm"}
OPTIONAL = {"hessinit_lib/adapters/lightning.py": {"lightning"}}
MOST_FILES, MOST_LINES = 105, 17_260
# What a user of the library need not have.
NOT_NEEDED = [
    "PIL",
    "hessinit_book",
    "matplotlib",
    "pandas",
    "platformdirs",
    "pydantic",
    "scipy",
    "torchvision",
]


class Import(NamedTuple):
    module: str  # as written, with the imported name where that is a module, too
    at_top: bool  # when the file is imported, not when one of its functions is called


def imports_of(path: Path) -> Iterator[Import]:
    """List what a file imports, for type checkers alone as well."""
    root = path.parents[len(path.parts) - path.parts.index("hessinit_lib") - 1]

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        match node:
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                # Types of other libraries need not be there; an arrow is an arrow.
                for child in node.body:
                    yield from visit(child, False)
                for child in node.orelse:
                    yield from visit(child, at_top)
                return
            case ast.Import():
                yield from (Import(alias.name, at_top) for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                for alias in node.names:
                    inner = root.joinpath(*module.split("."), alias.name)
                    is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                    yield Import(f"{module}.{alias.name}" if is_module else module, at_top)
            case ast.ImportFrom():
                raise AssertionError(f"{path}: a relative import, which is not looked through")
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_top and not inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def faults_of(library: Path) -> list[str]:
    """Say what is wrong with a library in the folder `hessinit_lib`, a line for each fault."""
    files = {_module(path, library): path for path in sorted(library.rglob("*.py"))}
    found, arrows = [], {}
    for module, path in files.items():
        name = path.relative_to(library.parent).as_posix()
        arrows[module] = set()
        for target, at_top in imports_of(path):
            package = target.partition(".")[0]
            if package == "hessinit_lib":
                arrows[module].add(target)
                if target not in files:
                    found.append(f"{name} imports {target}, which is not there")
                elif not _allowed(module, target):
                    found.append(f"{name} imports {target}, which is above it")
            elif package == "hessinit_book":
                found.append(f"{name} imports {target}")
            elif (
                at_top
                and package not in sys.stdlib_module_names
                and package not in NEEDED | OPTIONAL.get(name, set())
            ):
                found.append(f"{name} imports {package} at its top")
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        found.append(f"circle: {' <- '.join(error.args[1])}")
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in files.values())
    if len(files) > MOST_FILES:
        found.append(f"{len(files)} files, expected {MOST_FILES} at most")
    if lines > MOST_LINES:
        found.append(f"{lines} lines, expected {MOST_LINES} at most")
    return found


def _module(path: Path, library: Path) -> str:
    parts = path.relative_to(library.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _level(module: str) -> int:
    folder = module.split(".")[1] if "." in module else ""
    if folder in BELOW_ALL:
        return -1
    return next((i for i, level in enumerate(LEVELS) if folder in level), len(LEVELS))


def _allowed(module: str, target: str) -> bool:
    return _level(target) <= _level(module)


def test_the_library_keeps_its_order() -> None:
    assert faults_of(LIBRARY) == []


LINES = "x = 0\n" * (MOST_LINES + 1)
GUARDED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\n"


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("init/new.py", "import hessinit_book.data", "init/new.py imports hessinit_book.data"),
        (
            "init/new.py",
            "def f():\n    from hessinit_book.data import load",
            "init/new.py imports hessinit_book.data",
        ),
        (
            "hessians/new.py",
            "class A:\n    def f(self):\n        from hessinit_lib.init.schemes import apply",
            "hessians/new.py imports hessinit_lib.init.schemes, which is above it",
        ),
        (
            "theory/new.py",
            "from hessinit_lib import diagnosis",
            "theory/new.py imports hessinit_lib.diagnosis, which is above it",
        ),
        (
            "diagnosis/new.py",
            "from hessinit_lib import diagnose",
            "diagnosis/new.py imports hessinit_lib, which is above it",
        ),
        ("errors.py", "import hessinit_lib.hessians", "errors.py imports hessinit_lib.hessians"),
        ("init/new.py", "from hessinit_lib.init.gone import f", "init.gone, which is not there"),
        (
            "theory/new.py",
            "from hessinit_lib.theory.new import f",
            "circle: hessinit_lib.th",
        ),
        (
            "init/layers.py",
            "def f():\n    from hessinit_lib.init.schemes import apply",
            "circle: hessinit_lib.init.",
        ),
        ("init/new.py", "import pandas.api", "init/new.py imports pandas at its top"),
        ("init/new.py", "try:\n    import lightning\nexcept E: ...", "new.py imports lightning at"),
        (
            "init/new.py",
            f"{GUARDED}else:\n    import scipy",
            "new.py imports scipy at its",
        ),
        ("init/new.py", LINES, f"lines, expected {MOST_LINES} at most"),
        ("many/x.py", "", f"files, expected {MOST_FILES} at most"),
    ],
)
def test_a_planted_fault_is_found(file: str, text: str, fault: str, tmp_path: Path) -> None:
    library = shutil.copytree(
        LIBRARY, tmp_path / "hessinit_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    planted = library / file
    planted.parent.mkdir(exist_ok=True)
    for i in range(MOST_FILES if file.startswith("many/") else 0):
        (planted.parent / f"{i}.py").touch()
    before = planted.read_text(encoding="utf-8") if planted.is_file() else ""
    planted.write_text(before + text, encoding="utf-8")
    found = faults_of(library)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize(
    "text", [GUARDED, "def f():\n    import pandas", "import json, numpy.linalg"]
)
def test_what_is_allowed_is_no_fault(text: str, tmp_path: Path) -> None:
    library = tmp_path / "hessinit_lib"
    library.mkdir()
    (library / "new.py").write_text(text, encoding="utf-8")
    assert faults_of(library) == []


# What runs


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_library_imports_no_torch() -> None:
    done = python("import hessinit_lib, sys; print({'torch', 'numpy'} & set(sys.modules))")
    assert (done.stdout, done.stderr) == ("set()\n", "")


REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
REST = """
from hessinit_lib import HessianTracker, layer_hessians, model_hessian, spectrum

model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
x, y = torch.randn(8, 4), torch.arange(8) % 2
case = model, nn.CrossEntropyLoss(), x, y
print(model_hessian(*case), spectrum(*case), HessianTracker(*case, every=1).step())
print(layer_hessians(*case))
"""
FRAME = """
try:
    report.to_frame()
except ImportError as error:
    print("refused:", error)
"""


def readme_examples() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "hessinit_lib" in block]


def test_the_readme_runs_without_what_is_not_needed() -> None:
    examples = readme_examples()
    told = "\n".join(examples)
    for call in ("layer_hessians(", "diagnose(", "init.apply(", "init.hessian_("):
        assert call in told
    code = REFUSE.format(names=NOT_NEEDED)
    frames = 0
    for example in examples:
        kept = [line for line in example.splitlines() if "to_frame()" not in line]
        code += "\n".join([*kept, ""])
        if "report = " in example:
            frames += 1
            code += f"print(repr(report)){FRAME}"
    done = python(code + REST)
    assert done.returncode == 0, done.stderr  # where a progress bar may show
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    message = 'report.to_frame() needs pandas: pip install "hessinit_lib[report]"'
    assert refused == [f"refused: {message}"] * frames
    assert "Verdict: " in done.stdout


def test_a_figure_says_what_it_needs() -> None:
    code = REFUSE.format(names=NOT_NEEDED) + (
        "from hessinit_lib.diagnosis import Diagnosis\n"
        "found = Diagnosis(layers=(), faults=(), loss=1.0, samples=1, largest_eigenvalue=1.0,\n"
        "    largest_stable_rate=2.0, suggested_rate=1.0, scheme='', notes=())\n"
        "print(Diagnosis.from_json(found.to_json()) == found)\n"
        "found.plot()\n"
    )
    done = python(code)
    last = 'ImportError: diagnosis.plot() needs matplotlib: pip install "hessinit_lib[report]"'
    assert (done.stdout, done.stderr.splitlines()[-1]) == ("True\n", last)


def test_the_refusal_of_modules_refuses() -> None:
    done = python(REFUSE.format(names=NOT_NEEDED) + "import pandas")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'pandas'"
