"""Confirmations: the code has changed since the records were made, and gives the same still.

A record is never rewritten. When the code is changed without meaning to change results, its
stamp changes all the same, and computing all records anew would cost hours. So one of them is
computed again, and a small file beside the records keeps what that showed:

    results/paper/<experiment>/confirmed.json

It vouches for records of the stamps that it names, as long as the code has the stamp that
confirmed; for those of all devices, though one is computed again, on the device that it says.
How it comes about: `confirm.py`. Like a record it carries its own checksum.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hessinit_book.errors import RecordError
from hessinit_book.records import sealed
from hessinit_book.records.records import KINDS, Record, Strict, home

NAME = "confirmed.json"


class Repetition(Strict):
    """One record computed again by the present code.

    Attributes:
        seed: the record's seed.
        record: the record's checksum.
        device: where it was computed again, in words.
        versions: of Python and of the libraries that computed.
        duration_s: how long that took, in seconds.
        compared: how many numbers agreed by each rule of `repeatability.py`.
        tolerance: the largest relative difference allowed to numbers compared as "exact".
        largest: the largest one found among these.
        where: the key of that number; None if all came out the very same.
        networks: which of the record's networks were repeated; None for all of them.
    """

    seed: int
    record: str
    device: str
    versions: dict[str, str]
    duration_s: float
    compared: dict[str, int]
    tolerance: float
    largest: float
    where: str | None
    networks: list[str] | None = None


class Confirmation(Strict):
    """The present code was seen to give what records of earlier code hold.

    Attributes:
        version: version of this layout.
        experiment: name of the experiment.
        codes: the stamps of the code that made the records.
        code: the stamp of the code that confirmed them.
        commit: git commit that confirmed, with "-dirty" if the tree had changes; or None.
        finished: when, UTC, ISO 8601.
        repetition: the record that was computed again, if any was.
        source: the commit whose code made the records, or repeated that one, and differs from
            the present code in nothing that computes; None if the present code repeated it.
    """

    version: Literal[1] = 1
    experiment: str
    codes: list[str]
    code: str
    commit: str | None
    finished: str
    repetition: Repetition | None = None
    source: str | None = None

    def covers(self, record: Record, code: str) -> bool:
        """Tell whether a record of earlier code holds under the code with this stamp."""
        return (
            record.experiment == self.experiment and code == self.code and record.code in self.codes
        )


def write(confirmation: Confirmation, folder: Path) -> Path:
    """Write a confirmation atomically into the folder of its experiment; give the path."""
    folder = home(folder)
    sealed.remove_unfinished(folder / NAME)
    return sealed.write(confirmation.model_dump(), folder / NAME)


def read(folder: Path) -> Confirmation | None:
    """Read the confirmation of the records in a folder; None if there is none.

    Args:
        folder: of an experiment, or of one kind of device in it.

    Raises:
        RecordError: it is not whole, of another version, lacks a field, or its content does
            not match its checksum.
    """
    path = home(folder) / NAME
    try:
        body = sealed.read(path)
    except FileNotFoundError:
        return None
    confirmation = sealed.validated(Confirmation, body, path)
    if confirmation.repetition is None and confirmation.source is None:
        raise RecordError(f"{path}: expected a repetition or a source of the same code")
    return confirmation


def problems(folder: Path, found: Sequence[Record]) -> list[str]:
    """Say what is wrong with the confirmation in a folder of records; nothing is computed.

    Args:
        folder: `.../paper/<experiment>`.
        found: the records in it that are whole, of all devices.

    Returns:
        One line for each problem; none if it is well or if there is none.
    """
    path = folder / NAME
    try:
        confirmation = read(folder)
    except RecordError as error:
        return [str(error)]
    if confirmation is None:
        return []
    if confirmation.experiment != folder.name:
        return [f"{path}: confirms records of {confirmation.experiment}"]
    said = []
    if not {record.code for record in found} & set(confirmation.codes):
        said.append(f"{path}: confirms records that are no longer there; delete it")
    again = confirmation.repetition
    if again is not None and again.record != checksum(_repeated(again, folder)):
        said.append(f"{path}: seed {again.seed} is not the record that was computed again")
    return said


def _repeated(again: Repetition, folder: Path) -> Path:
    """Find the record that was computed again: on a device of the kind that had made it."""
    kind = again.device.partition(":")[0]
    return (folder / kind if kind in KINDS else folder) / f"seed-{again.seed}.json"


def checksum(path: Path) -> str | None:
    """Give the checksum that a record's file states; None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
