"""A small project for the tests of `make verify`: one record, and one executed page of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hessinit_book.chapters.word_pair_saddle import run as word_pair_saddle
from hessinit_book.chapters.word_pair_saddle.run import WordPairSaddleParameters
from hessinit_book.records import freshness, records
from hessinit_book.records.definitions import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
NAME = "word_pair_saddle"


def copy_sources(folder: Path) -> Path:
    """Copy the sources of both packages into a folder."""
    quiet = shutil.ignore_patterns("__pycache__", "sample")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=quiet)
    return folder


def compute_otherwise(file: Path) -> None:
    """Change the code of all functions in a file, and not what they give."""
    text = file.read_text(encoding="utf-8")
    assert "\n    return " in text
    file.write_text(text.replace("\n    return ", "\n    assert 1\n    return "), encoding="utf-8")


def make_project(root: Path) -> None:
    """Run the experiment at its smallest, as if that were full scale, and stamp its page."""
    given = WordPairSaddleParameters.check(profile="smoke", device="cpu", results_dir=root / "r")
    (record,) = word_pair_saddle.run(given)
    bearing = {**record.parameters, "profile": "paper"}
    changed = record.model_copy(update={"profile": "paper", "parameters": bearing})
    records.write(changed, record_file(root))
    (root / "runs.yaml").write_text(f"profiles: {{paper: {{{NAME}: {{seeds: [0]}}}}}}\n")
    (root / "notebooks").mkdir()
    source = root / "notebooks" / f"{NAME}.ipynb"
    shutil.copyfile(ROOT / "notebooks" / source.name, source)
    run = json.loads(source.read_bytes())
    tag = {"tags": ["injected-parameters"]}
    run["cells"].insert(2, {"cell_type": "code", "metadata": tag, "source": ["seeds = [0]"]})
    (root / "run.ipynb").write_text(json.dumps(run))
    freshness.stamp_page(source, root / "run.ipynb", root / "_build/src/notebooks" / source.name)


def findings(said: str) -> list[str]:
    """Give what `verify` printed of problems and their count, without the summary after it."""
    lines = said.splitlines()
    return lines[: next(i for i, line in enumerate(lines) if line.startswith("summary: "))]


def record_file(root: Path) -> Path:
    """Give the place of the project's record."""
    return records.record_path(root / "results", "paper", NAME, 0)


def rewrite(path: Path, **changes: Any) -> None:
    """Change a record as code would: its checksum fits again."""
    records.write(records.read(path).model_copy(update=changes), path)
