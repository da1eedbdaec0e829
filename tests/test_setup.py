"""`make` with a half-made or moved .venv, or a Python that does not fit: mended, or one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hessinit_book.records.build_lock import take_build_lock
from hessinit_lib.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

_spec = importlib.util.spec_from_file_location("fits", ROOT / "tools" / "fits.py")
assert _spec is not None
assert _spec.loader is not None
fits = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fits)

GOOD = {
    "version": (3, 12),
    "implementation": "CPython",
    "bits": 64,
    "free_threaded": False,
    "system": "Linux",
    "machine": "x86_64",
    "libc": "glibc 2.36",
    "has_venv": True,
}

# Plays Python: it makes a .venv that holds itself, and notes what it is asked to do.
PYTHON = """\
#!/bin/sh
echo "$(basename "$0") $*" >> asked
case "$*" in
  "-c import pip") test -e .venv/has_pip ;;
  "tools/fits.py "*) shift; exec {python} -S tools/fits.py "$@" ;;
  "-m venv .venv")
    mkdir -p .venv/bin && touch .venv/has_pip && cp "{self}" .venv/bin/python
    echo "#!$(pwd -P)/.venv/bin/python" > .venv/bin/pip ;;
esac
"""
OUTER_MAKE = {"MAKELEVEL", "MAKEFLAGS", "MFLAGS", "GNUMAKEFLAGS", "MAKEOVERRIDES"}
MADE = ["python -m venv .venv", "python -m pip install"]


class Checkout:
    """A folder with what `make` looks at, and a Python that installs nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / ".venv" / "bin"
        (root / "tools").mkdir(parents=True)
        for name in ("Makefile", "tools/fits.py", "tools/venv.sh"):
            shutil.copy(ROOT / name, root / name)
        for name in ("pyproject.toml", "constraints.txt"):
            (root / name).touch()
        self.python = root / "usr" / "python"
        self.python.parent.mkdir()
        self.write_python()

    def write_python(self, interpreter: str = sys.executable) -> None:
        text = PYTHON.format(python=interpreter, self=self.python)
        self.python.write_text(text)
        self.python.chmod(0o755)

    def make(self, target: str = "test", **settings: str | None) -> tuple[int, str]:
        """Give the exit code and what was said on the error channel."""
        (self.root / "asked").unlink(missing_ok=True)
        settings = {"PYTHON": str(self.python), **settings}
        # What a `make` that started the tests hands on would name this one `make[1]`.
        inherited = {name: value for name, value in os.environ.items() if name not in OUTER_MAKE}
        environment = {**inherited, **settings}
        done = subprocess.run(
            ["make", target],
            cwd=self.root,
            env={name: value for name, value in environment.items() if value is not None},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
        return done.returncode, "\n".join(lines)

    def installed(self) -> list[str]:
        """List what was asked that changes .venv."""
        asked = (self.root / "asked").read_text().splitlines()
        return [line for line in asked for what in MADE if line.startswith(what)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


def test_a_venv_is_made_once(checkout: Checkout) -> None:
    assert checkout.make() == (0, "")
    assert len(checkout.installed()) == 2
    assert checkout.make("book") == (0, "")
    assert checkout.installed() == []
    future = (checkout.root / "asked").stat().st_mtime + 60
    os.utime(checkout.root / "constraints.txt", (future, future))
    assert checkout.make() == (0, "")
    assert len(checkout.installed()) == 1
    assert checkout.installed()[0].startswith("python -m pip install")


@pytest.mark.parametrize("damage", ["not ready", "no pip", "no python", "dead link", "empty"])
def test_a_broken_venv_is_mended(damage: str, checkout: Checkout) -> None:
    checkout.make()
    python = checkout.bin / "python"
    if damage == "not ready":
        (checkout.bin.parent / ".ready").unlink()
    elif damage == "no pip":
        (checkout.bin.parent / "has_pip").unlink()
    elif damage == "empty":
        shutil.rmtree(checkout.bin)
    else:
        python.unlink()
    if damage == "dead link":
        python.symlink_to("/nonexistent/python")
    assert checkout.make() == (0, "")
    assert len(checkout.installed()) == (1 if damage == "not ready" else 2)
    assert checkout.make() == (0, "")
    assert checkout.installed() == []


def test_a_moved_venv_is_named(checkout: Checkout, tmp_path: Path) -> None:
    checkout.make()
    checkout.root.rename(tmp_path / "moved")
    moved = checkout.root = tmp_path / "moved"
    code, said = checkout.make(PYTHON=str(moved / "usr" / "python"))
    assert code != 0
    assert said == (
        "make: .venv was made for another folder and does not work in this one: "
        "rm -rf .venv, then make again"
    )
    assert not (moved / "asked").exists()


def test_a_missing_python_is_named(checkout: Checkout) -> None:
    code, said = checkout.make(PYTHON="python3.12-nowhere")
    assert code != 0
    assert said == (
        "make: no python3.12-nowhere; expected Python 3.10 to 3.13: make PYTHON=python3.12"
    )


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_a_python_that_does_not_fit_is_named(exists: bool, checkout: Checkout) -> None:
    """In one line, before anything is installed, whether it is given or in .venv."""
    if exists:
        checkout.make()
    tool = checkout.root / "tools" / "fits.py"
    tool.write_text(tool.read_text().replace("sys.version_info[:2]", "(3, 14)"))
    for target in ("book", "test"):
        code, said = checkout.make(target)
        assert code != 0
        todo = "rm -rf .venv, then make" if exists else "make"
        assert said.startswith("make: this is Python 3.14, for which gensim has no wheel; expected")
        assert said.endswith(f"to 3.13: {todo} PYTHON=python3.12")
        assert checkout.installed() == []


@pytest.mark.parametrize(
    ("oldest", "differs", "said"),
    [
        ((3, 10), {}, None),
        ((3, 10), {"version": (3, 10)}, None),
        ((3, 10), {"system": "Darwin", "machine": "arm64", "libc": None}, None),
        ((3, 11), {"version": (3, 10)}, "this is Python 3.10, expected 3.11 to 3.13"),
        ((3, 10), {"version": (2, 7)}, "this is Python 2.7, expected 3.10 to 3.13"),
        ((3, 10), {"version": (3, 14)}, "this is Python 3.14, for which gensim has no wheel"),
        ((3, 10), {"implementation": "PyPy"}, "this is PyPy, for which PyTorch has no wheel"),
        ((3, 10), {"bits": 32}, "this Python has 32 bits"),
        ((3, 10), {"free_threaded": True}, "this Python is free-threaded"),
        ((3, 10), {"system": "Darwin"}, "this is a Python for Intel Macs"),
        ((3, 10), {"libc": None}, "this Linux has no glibc"),
        ((3, 10), {"libc": "glibc 2.17"}, "this Linux has glibc 2.17, expected 2.28 or newer"),
        ((3, 10), {"has_venv": False}, "this Python cannot make a .venv"),
    ],
)
def test_what_does_not_fit(oldest: tuple[int, int], differs: dict[str, Any], said: str) -> None:
    found = fits.misfit(oldest, {**GOOD, **differs})
    assert found == said if said is None else found.startswith(said)


def test_this_python_fits() -> None:
    assert set(fits.facts()) == set(GOOD)
    assert fits.misfit((3, 10), fits.facts()) is None


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
def test_without_a_home_it_is_in_the_build(home: str | None, checkout: Checkout) -> None:
    """Kernels and caches want one: Jupyter, IPython, Matplotlib, Snakemake."""
    said = 'slurm:\n\t@echo "$(origin HOME)" > home; echo "$$HOME" >> home\n'
    text = (checkout.root / "Makefile").read_text()
    (checkout.root / "Makefile").write_text(text.partition("slurm: ##")[0] + said)
    assert checkout.make("slurm", HOME=home) == (0, "")
    found = (checkout.root / "home").read_text().splitlines()
    assert found == ["file", str(checkout.root / "_build" / "home")]
    assert (checkout.root / "_build" / "home").is_dir()
    assert checkout.make("slurm", HOME=str(checkout.root)) == (0, "")
    assert (checkout.root / "home").read_text().splitlines()[1] == str(checkout.root)


# The lock


def test_a_lock_is_taken_once_and_free_when_its_file_is_closed(tmp_path: Path) -> None:
    handle = take_build_lock(tmp_path / "_build")
    assert not os.get_inheritable(handle)  # an orphaned job does not hold it
    with pytest.raises(UserError, match="another build is running in this folder"):
        take_build_lock(tmp_path / "_build")
    os.close(handle)
    os.close(take_build_lock(tmp_path / "_build"))


def test_no_locks_on_a_file_system_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(fcntl, "flock", refuse)
    os.close(take_build_lock(tmp_path))
    assert capsys.readouterr().err.startswith("build: no lock, start no second build here:")
