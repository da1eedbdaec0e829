"""Run an experiment seed by seed, one record each, resuming where it was interrupted."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hessinit_book.parameters import Parameters, require_writable
from hessinit_book.records import confirmations, records, sealed
from hessinit_book.records.machine import (
    choose_device,
    current_commit,
    describe_device,
    holds_now,
    library_versions,
)
from hessinit_book.records.records import DatasetInfo, Record
from hessinit_book.records.stamps import code_stamp

RunOne = Callable[[int, torch.device, tqdm], dict[str, Any]]

# Seconds that parts took which an earlier, interrupted run has made of the record under way.
_earlier: ContextVar[float] = ContextVar("_earlier", default=0.0)


def run_seeds(
    parameters: Parameters, dataset: DatasetInfo, run_one: RunOne, ticks: int
) -> list[Record]:
    """Give the record of every seed: read if it is there and still holds, else run.

    A record holds if it was made with the same parameters, data, device and library
    sources, or with earlier ones that are confirmed to give the same. Those of a GPU lie beside
    those of the CPU, see `record_path`. Each is written when its seed is done, so an interrupted
    run goes on with the first seed that was not finished.

    Args:
        parameters: what to run.
        dataset: what `run_one` trains on.
        run_one: takes a seed, the device and a progress bar; gives the record's values.
        ticks: how often `run_one` updates the progress bar.

    Raises:
        RecordError: a record that is in the way, or a confirmation, is damaged. This is told
            before the first seed is run.
        ParameterError: the device is not there, or records cannot be written where they go.
    """
    device = choose_device(parameters.device)
    run = _Run(parameters, dataset, device)
    for seed in parameters.seeds:
        sealed.remove_unfinished(_place(parameters, seed, device))
        run.read(_place(parameters, seed, device), seed)
    done = []
    total = len(parameters.seeds) * ticks
    with tqdm(total=total, desc=parameters.EXPERIMENT, unit="step") as bar:
        for seed in parameters.seeds:
            path = _place(parameters, seed, device)
            record = run.read(path, seed)
            if record is None:
                record = run.make(path, seed, partial(run_one, seed, device, bar))
            else:
                bar.update(ticks)
            done.append(record)
    return done


class _Run:
    """What all records of one run have in common."""

    def __init__(self, parameters: Parameters, dataset: DatasetInfo, device: torch.device) -> None:
        self._code = code_stamp(parameters.EXPERIMENT)
        self._common = {
            "experiment": parameters.EXPERIMENT,
            "profile": parameters.profile,
            "parameters": parameters.bearing(),
            "dataset": dataset,
            "device": describe_device(device),
        }

    def read(self, path: Path, seed: int) -> Record | None:
        """Read a record; None if it is not there or does not hold."""
        if not os.path.lexists(path):  # a link to nowhere is in the way, too
            return None
        old = records.read(path)
        confirmed = confirmations.read(path.parent)
        if old.code != self._code and not (confirmed and confirmed.covers(old, self._code)):
            return None
        wanted = {**self._common, "seed": seed}
        same = all(getattr(old, name) == value for name, value in wanted.items())
        return old if same else None

    def make(self, path: Path, seed: int, compute: Callable[[], dict[str, Any]]) -> Record:
        """Compute values and keep them as a record."""
        require_writable(path.parent)  # not after hours of computing
        commit, versions = current_commit(), library_versions()
        around = _earlier.set(0.0)
        start = time.perf_counter()
        try:
            values = compute()
            duration = time.perf_counter() - start + _earlier.get()
        finally:
            _earlier.reset(around)
        record = Record(
            **self._common,
            code=self._code,
            seed=seed,
            versions=versions,
            commit=commit,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            duration_s=round(duration, 3),
            values=values,
        )
        return records.read(records.write(record, path))


def committed_records(parameters: Parameters) -> list[Record]:
    """Read the full-scale records of this experiment that came with the project, if any.

    Returns:
        The records under `results/paper`; none where the project's folder is not at hand
        (on Colab, say). While records of other parameters are replaced one by one, only
        those of the present parameters: the two do not go into one figure.
    """
    folder = records.folder_of(parameters.results, "paper", parameters.EXPERIMENT)
    if not any(folder.glob("seed-*.json")):
        return []
    found = records.read_all(parameters.results, "paper", parameters.EXPERIMENT)
    present = type(parameters).check(profile="paper").bearing()
    return [record for record in found if record.parameters == present] or found


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
        self._folder, self._seed = _folder(parameters, seed, device), seed
        self._run = _Run(parameters, dataset, device)

    def get(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Read a part that is there and still holds, else compute it and keep it.

        A part that holds counts into the duration of the seed's record with the time it took.
        One that other versions of the libraries made is computed again: the record names one
        version of each.

        Args:
            name: of the part; the file is called so.
            compute: gives the part's values.

        Raises:
            RecordError: a part that is in the way is damaged.
        """
        path = self._folder / f"{name}.json"
        sealed.remove_unfinished(path)
        record = self._run.read(path, self._seed)
        if record is None or not holds_now(record.versions):
            return self._run.make(path, self._seed, compute).values
        _earlier.set(_earlier.get() + record.duration_s)
        return record.values


def clear_parts(parameters: Parameters) -> None:
    """Remove the parts of all seeds of a run, once their records are written.

    Other processes may do so at the same time, or keep parts of other seeds.
    """
    device = choose_device(parameters.device)
    for seed in parameters.seeds:
        folder = _folder(parameters, seed, device)
        for pattern in ("*.json", ".*.part"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):  # gone, or in use
                empty.rmdir()


def _place(parameters: Parameters, seed: int, device: torch.device) -> Path:
    names = parameters.profile, parameters.EXPERIMENT
    return records.record_path(parameters.results, *names, seed, device.type)


def _folder(parameters: Parameters, seed: int, device: torch.device) -> Path:
    path = _place(parameters, seed, device)
    return path.parent / "parts" / path.stem
