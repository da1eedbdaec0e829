"""Checks that hold for the whole suite."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in annotations are checked at each call, in every module of the library; not on a pretend
# GPU, where that takes most of the time.
if not os.environ.get("HESSINIT_PRETEND_GPU"):
    install_import_hook("hessinit_lib", "beartype.beartype")

# No timings in tests: a slow machine is not a failure. The same examples on every run.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("suite")

os.environ.setdefault("MPLBACKEND", "agg")

# The tensors here are tiny: more threads only wait for each other, most of all on a busy machine.
torch.set_num_threads(1)

HTML = Path(__file__).resolve().parent.parent / "_build" / "html"
FLAGS = [
    # No host but this one can be reached. (Playwright's request routing would do the same,
    # but then Chromium refuses to load fonts on file:// pages.)
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Files that take minutes come first: the other workers need not wait for one of them at the end.
LONG = ("test_notebooks", "test_pipeline", "test_interrupted_runs", "test_setup")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; within a file the order stays."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Start the browser of the system, else playwright's own."""
    if not (HTML / "index.html").is_file():
        pytest.skip("no built book at _build/html: run `make book` first")
    playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with playwright_api.sync_playwright() as playwright:
        found = found or playwright.chromium.executable_path
        if not Path(found).is_file():
            pytest.skip(f"no browser: none of {', '.join(names)}, and playwright has none")
        started = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield started
        finally:
            started.close()


@pytest.fixture
def nothing_made_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `verify` expect no records but those of `runs.yaml`: no benchmarks, no zoo."""
    monkeypatch.setattr("hessinit_book.records.expected.MADE_APART", ())


@pytest.fixture
def own_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let git know of no settings but those of the test."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # set where tests run from a hook
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A. Name")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "name@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator:
    """A kernel's shell, with what a start-up file of the user's put into its namespace."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    from IPython.core.interactiveshell import InteractiveShell

    made = InteractiveShell(history_manager=None, user_ns={"stepz": 3, "steps": 4, "mine": [1]})
    made.history_manager.enabled = False  # no database
    monkeypatch.setattr("IPython.get_ipython", lambda: made)
    yield made
    atexit.unregister(made.atexit_operations)  # it looks for the history
