"""Is what is shown still what the code gives? Stamps of records and of executed notebooks.

A record carries the checksum of the code that made it (`stamps.py`). An executed notebook
gets a stamp of its own: its source's cells, the code of its experiment and figures, and the
full-scale records that it shows. Either is stale once the same stamp, taken now, differs.

usage: python -m hessinit_book.records.freshness SOURCE.ipynb EXECUTED.ipynb PAGE.ipynb
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hessinit_book.chapters import parameters_of
from hessinit_book.errors import RecordError
from hessinit_book.records import confirmations, records, sealed
from hessinit_book.records.confirmations import Confirmation
from hessinit_book.records.planned import read_planned
from hessinit_book.records.records import Record
from hessinit_book.records.stamps import code_stamp, module_of, module_stamp

STAMP = "hessinit"  # the stamp's place in a notebook's metadata
_INJECTED = "injected-parameters"  # papermill's tag of the cell that it adds

_WHAT_CHANGED = {
    "cells": "the notebook's cells have changed since it ran",
    "experiment": "the experiment's code has changed since it ran",
    "figures": "the code of its figures has changed since it ran",
    "records": "the full-scale records have changed since it ran",
}


def is_current(record: Record, confirmation: Confirmation | None = None) -> bool:
    """Tell whether the code that is there made a record, or was seen to give the same.

    A record of an experiment that is not in this package cannot be told to be stale.

    Args:
        record: the record.
        confirmation: the one that lies beside it, if any.
    """
    if module_of(record.experiment) is None:
        return True
    now = code_stamp(record.experiment)
    confirmed = confirmation is not None and confirmation.covers(record, now)
    return record.code == now or confirmed


def stale(profile: str) -> list[str]:
    """List the records of a profile that are there and do not hold any more.

    Raises:
        ParameterError: see `read_planned`.
    """
    from hessinit_book.records.machine import device_kind  # it imports torch

    found = []
    for experiment, chosen in read_planned("runs.yaml").get(profile, {}).items():
        bearing = parameters_of(experiment).check(profile=profile, **chosen).bearing()
        for seed in chosen["seeds"]:
            kind = device_kind(chosen["device"])
            path = records.record_path("results", profile, experiment, seed, kind)
            if path.is_file() and not _holds(path, bearing):
                found.append(str(path))
    return found


def _holds(path: Path, bearing: dict[str, Any]) -> bool:
    try:
        record = records.read_in_place(path)
        confirmation = confirmations.read(path.parent)
    except RecordError:
        return False  # the run says why
    return record.parameters == bearing and is_current(record, confirmation)


def page_stamp(source: Path) -> dict[str, str]:
    """Compute the stamp of a notebook as it is now.

    Args:
        source: `notebooks/<experiment>.ipynb`, in the project's folder.

    Returns:
        Checksums: "cells" of its cells, "experiment" and "figures" of the code behind it,
        "records" of the full-scale records that it shows.
    """
    experiment = source.stem
    shown = records.record_path(source.parents[1] / "results", "paper", experiment, 0).parent
    return {
        "cells": _cells_digest(json.loads(source.read_bytes())),
        "experiment": code_stamp(experiment),
        "figures": module_stamp(f"hessinit_book.chapters.{experiment}.figures"),
        "records": _files_digest(shown, records.files_in(shown)),
    }


def stamp_page(source: Path, executed: Path, page: Path) -> None:
    """Write an executed notebook as a page of the book, with its stamp in the metadata.

    Raises:
        ValueError: the executed notebook is not a run of that source.
    """
    notebook = json.loads(executed.read_bytes())
    stamp = page_stamp(source)
    if _cells_digest(notebook) != stamp["cells"]:
        raise ValueError(f"{executed} is not a run of {source} as it is now: run it again")
    notebook["metadata"][STAMP] = stamp
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    sealed.write_atomically(page, text)


def page_problems(source: Path, page: Path) -> list[str]:
    """Say why an executed notebook is stale.

    Args:
        source: the notebook that it is a run of.
        page: the executed notebook.

    Returns:
        One line for each reason; none if it is current.
    """
    if not source.is_file():
        return [f"its source {source.name} is gone"]
    notebook = json.loads(page.read_bytes())
    stated = notebook["metadata"].get(STAMP)
    if stated is None:
        return ["it carries no stamp of the code that ran it"]
    now = page_stamp(source)
    problems = [said for part, said in _WHAT_CHANGED.items() if stated.get(part) != now[part]]
    if _cells_digest(notebook) != stated.get("cells"):
        problems.append("its cells were edited after it ran")
    return problems


def _cells_digest(notebook: dict[str, Any]) -> str:
    """Sum up the cells of a notebook, without outputs and without papermill's own cell."""
    digest = hashlib.sha256()
    for cell in notebook["cells"]:
        if _INJECTED not in cell["metadata"].get("tags", []):
            source = cell["source"]  # a text, or its lines
            text = source if isinstance(source, str) else "".join(source)
            digest.update(f"{cell['cell_type']}\0{text}\0".encode())
    return digest.hexdigest()


def _files_digest(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Stamp one executed notebook: its source, the run, and where the page goes."""
    source, executed, page = map(Path, arguments)
    stamp_page(source, executed, page)


if __name__ == "__main__":
    main(sys.argv[1:])
