"""A chapter stands by itself: its folder is named like its notebook, and imports no other."""

from __future__ import annotations

import re
from pathlib import Path

from hessinit_book.chapters.mnist_tracking.run import WIDTHS
from hessinit_book.drawing import explorer_records

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "hessinit_book"
CHAPTERS = {path.name for path in (BOOK / "chapters").iterdir() if (path / "run.py").is_file()}
BUILDS_ON = {"fashion_depth": {"mnist_depth"}}


def imported_chapters(folder: Path) -> set[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    return set(re.findall(r"^ *(?:from|import) hessinit_book\.chapters\.(\w+)", text, re.MULTILINE))


def test_each_notebook_has_its_folder() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == CHAPTERS
    for name in CHAPTERS:
        assert (BOOK / "chapters" / name / "figures.py").is_file(), name


def test_no_chapter_imports_another() -> None:
    for name in CHAPTERS:
        others = imported_chapters(BOOK / "chapters" / name) - {name}
        assert others == BUILDS_ON.get(name, set()), name


def test_what_chapters_share_imports_none() -> None:
    for folder in ("data", "drawing", "networks", "statistics", "training", "word2vec"):
        assert imported_chapters(BOOK / folder) == set(), folder


def test_the_explorer_knows_the_tracked_network() -> None:
    assert explorer_records.WIDTHS == WIDTHS
