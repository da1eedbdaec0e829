"""A small project for the tests of `make verify`: one record, and one executed page of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hessinit_lib import freshness, records
from hessinit_lib.experiments import word_pair_saddle
from hessinit_lib.experiments.word_pair_saddle import WordPairSaddleParameters

ROOT = Path(__file__).resolve().parent.parent
NAME = "word_pair_saddle"


def make_project(root: Path) -> None:
    """Run the experiment at its smallest, as if that were full scale, and stamp its page."""
    given = WordPairSaddleParameters.check(profile="smoke", device="cpu", results_dir=root / "r")
    (record,) = word_pair_saddle.run(given)
    bearing = {**record.parameters, "profile": "paper"}
    changed = record.model_copy(update={"profile": "paper", "parameters": bearing})
    records.write(changed, record_file(root))
    (root / "notebooks").mkdir()
    source = root / "notebooks" / f"{NAME}.ipynb"
    shutil.copyfile(ROOT / "notebooks" / source.name, source)
    run = json.loads(source.read_bytes())
    tag = {"tags": ["injected-parameters"]}
    run["cells"].insert(2, {"cell_type": "code", "metadata": tag, "source": ["seeds = [0]"]})
    (root / "run.ipynb").write_text(json.dumps(run))
    freshness.stamp_page(source, root / "run.ipynb", root / "_build/src/notebooks" / source.name)


def record_file(root: Path) -> Path:
    """Give the place of the project's record."""
    return records.record_path(root / "results", "paper", NAME, 0)


def rewrite(path: Path, **changes: Any) -> None:
    """Change a record as code would: its checksum fits again."""
    records.write(records.read(path).model_copy(update=changes), path)
