"""Results of a long run's parts, kept until its record is written: what is done stays done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from hessinit_book.parameters import Parameters
from hessinit_book.records import records
from hessinit_book.records.machine import current_commit, describe_device, library_versions
from hessinit_book.records.records import DatasetInfo, Record
from hessinit_book.records.stamps import code_stamp


class Parts:
    """The parts of one seed's run, each a record of its own in a folder beside the seed's.

    Args:
        parameters: of the experiment.
        dataset: what the run trains on.
        seed: of the run.
        device: of the run.
    """

    def __init__(
        self, parameters: Parameters, dataset: DatasetInfo, seed: int, device: torch.device
    ) -> None:
        self._folder = _folder(parameters, seed)
        self._seed = seed
        self._common = {
            "experiment": parameters.EXPERIMENT,
            "profile": parameters.profile,
            "parameters": parameters.bearing(),
            "dataset": dataset,
            "device": describe_device(device),
            "code": code_stamp(parameters.EXPERIMENT),
        }

    def get(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Read a part that is there and still holds, else compute it and keep it.

        Args:
            name: of the part; the file is called so.
            compute: gives the part's values.

        Raises:
            RecordError: a part that is in the way is damaged.
        """
        path = self._folder / f"{name}.json"
        if path.exists():
            old = records.read(path)
            if old.seed == self._seed and all(
                getattr(old, key) == value for key, value in self._common.items()
            ):
                return old.values
        begin = datetime.now(timezone.utc)
        values = compute()
        end = datetime.now(timezone.utc)
        record = Record(
            **self._common,
            seed=self._seed,
            versions=library_versions(),
            commit=current_commit(),
            finished=end.isoformat(timespec="seconds"),
            duration_s=round((end - begin).total_seconds(), 3),
            values=values,
        )
        return records.read(records.write(record, path)).values


def clear_parts(parameters: Parameters) -> None:
    """Remove the parts of all seeds of a run, once their records are written."""
    for seed in parameters.seeds:
        folder = _folder(parameters, seed)
        for path in folder.glob("*.json"):
            path.unlink()
        for empty in (folder, folder.parent):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()


def _folder(parameters: Parameters, seed: int) -> Path:
    path = records.record_path(parameters.results, parameters.profile, parameters.EXPERIMENT, seed)
    return path.parent / "parts" / path.stem
