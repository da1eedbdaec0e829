"""Confirm records of earlier code: compute one again, or find the code to be the same.

`python -m hessinit_book.verify --confirm EXPERIMENT` computes one record again by the present
code and, if all its numbers come out the same by the rules of `repeatability.py`, writes the
confirmation (`confirmations.py`). With `--same-code COMMIT` nothing is computed: the records are
of the sources at that commit (which say so by their own rule), and these differ from the
present ones in nothing that computes (`stamps.py`).

Where an experiment takes hours because it has many networks, `--networks` repeats some of them; the
confirmation says which.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

from hessinit_book.chapters import parameters_of
from hessinit_book.errors import RecordError
from hessinit_book.parameters import Parameters
from hessinit_book.records import confirmations, records, stamps
from hessinit_book.records.comparison import Comparison, compare
from hessinit_book.records.confirmations import Confirmation, Repetition
from hessinit_book.records.definitions import PACKAGES
from hessinit_book.records.machine import current_commit, is_here
from hessinit_book.records.records import Record, home, kind_of, record_path, source_of
from hessinit_book.records.repeatability import TOLERANCE
from hessinit_book.statistics.rounding import rounded


def parameters_again(record: Record, results_dir: Path | None) -> Parameters:
    """Give the parameters that repeat a record, on the kind of device that it names.

    Raises:
        UserError: the experiment no longer takes them, or the device is not there.
    """
    return parameters_of(record.experiment).check(
        **record.parameters, seeds=[record.seed], device=kind_of(record), results_dir=results_dir
    )


def run_again(record: Record) -> Record:
    """Run a record's experiment again, for its seed.

    Raises:
        DataError: the data set is not at hand.
    """
    experiment = importlib.import_module(f"hessinit_book.chapters.{record.experiment}.run")
    with tempfile.TemporaryDirectory() as folder:
        (again,) = experiment.run(parameters_again(record, results_dir=Path(folder)))
    return again


def of_networks(record: Record, networks: Sequence[str]) -> Record:
    """Give a record as it would be, had it been run for some of its networks only.

    Args:
        record: of an experiment with a parameter `networks`, whose values for each are its own.
        networks: which to keep.

    Raises:
        RecordError: the record has no such parameter, or one of them is not among its networks.
    """
    known = record.parameters.get("networks")
    if not isinstance(known, list | tuple):
        raise RecordError(f"{record.experiment}: its records are not of several networks")
    if unknown := sorted(set(networks) - set(known)):
        raise RecordError(f"networks: got {unknown[0]}, expected some of {', '.join(known)}")

    def kept(values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: kept(v) for k, v in values.items() if k in networks or k not in known}

    parameters = {**record.parameters, "networks": [n for n in known if n in networks]}
    return record.model_copy(update={"parameters": parameters, "values": kept(record.values)})


def confirm_by_computing(
    results: Path, experiment: str, seed: int | None = None, networks: Sequence[str] = ()
) -> tuple[Record, Comparison]:
    """Compute a record again; if it comes out the same, confirm all of its experiment's records.

    Args:
        results: folder of the records.
        experiment: name of the experiment.
        seed: which record; by default the one that states the shortest duration.
        networks: which of the record's networks; all of them if none is named.

    Returns:
        The record, or the part that was repeated, and how the numbers compare. The confirmation
        is written only if there are no differences.

    Raises:
        RecordError: there are no records, none of that seed or of such networks, or all of them
            are of the present code; or the devices that made them are not here.
        DataError: the data set is not at hand.
    """
    found = _read_every(results, experiment)
    codes = _earlier_codes(found)
    chosen = [record for record in found if seed in (None, record.seed)]
    if not chosen:
        raise RecordError(f"{experiment}: no record of seed {seed}")
    devices = sorted({record.device for record in chosen})
    chosen = [record for record in chosen if is_here(kind_of(record))]
    if not chosen:
        raise RecordError(f"{experiment}: no device here as in its records: {', '.join(devices)}")
    record = min(chosen, key=lambda r: (r.duration_s, r.seed))
    seeds = [other for other in found if source_of(other) == source_of(record)]
    if networks:
        record, *seeds = (of_networks(one, networks) for one in (record, *seeds))
    again = run_again(record)
    comparison = compare(record, again, seeds)
    if not comparison.differences:
        path = record_path(results, "paper", experiment, record.seed, kind_of(record))
        repetition = Repetition(
            seed=record.seed,
            record=confirmations.checksum(path) or "",
            device=again.device,
            versions=again.versions,
            duration_s=again.duration_s,
            compared=dict(comparison.counts),
            tolerance=TOLERANCE,
            largest=rounded(comparison.largest, 2),
            where=comparison.where,
            networks=record.parameters["networks"] if networks else None,
        )
        _write(path.parent, codes, again.code, repetition=repetition)
    return record, comparison


def confirm_by_code(results: Path, experiment: str, commit: str) -> None:
    """Confirm records of sources that compute the same as the present ones.

    Args:
        results: folder of the records, in a checkout with its history.
        experiment: name of the experiment.
        commit: any commit whose sources made the records, or for which they were confirmed.

    Raises:
        RecordError: there are no records, all of them are of the present code, the commit is
            not there, the records are not of its sources, or these compute otherwise.
    """
    codes = _earlier_codes(_read_every(results, experiment))
    folder = record_path(results, "paper", experiment, 0).parent
    earlier = confirmations.read(folder)
    now = stamps.code_stamp(experiment)
    with tempfile.TemporaryDirectory() as made:
        full = _sources_at(commit, Path(made))
        stated = _own_stamp(Path(made), experiment)
        confirmed = earlier is not None and earlier.code == stated
        if not set(codes) <= {stated, *(earlier.codes if earlier and confirmed else [])}:
            raise RecordError(
                f"{experiment}: the sources at {commit} are not what made the records"
            )
        if stamps.code_stamp(experiment, Path(made)) != now:
            raise RecordError(
                f"{experiment}: the code has changed since {commit}; compute a record again"
            )
    repetition = earlier.repetition if earlier and confirmed else None
    _write(folder, codes, now, source=full, repetition=repetition)


def _read_every(results: Path, experiment: str) -> list[Record]:
    """Read the full-scale records of an experiment, of all devices.

    Raises:
        RecordError: there is none, or one is not valid.
    """
    folder = record_path(results, "paper", experiment, 0).parent
    found = [records.read_in_place(path) for path in records.files_in(folder)]
    if not found:
        raise RecordError(f"no records in {folder}")
    return found


def _write(folder: Path, codes: list[str], code: str, **how: object) -> None:
    folder = home(folder)
    confirmation = Confirmation.model_validate(
        {
            "experiment": folder.name,
            "codes": codes,
            "code": code,
            "commit": current_commit(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **how,
        }
    )
    confirmations.write(confirmation, folder)


def _earlier_codes(found: Sequence[Record]) -> list[str]:
    """List the stamps of the code that made records, but for the present one."""
    experiment = found[0].experiment
    if stamps.module_of(experiment) is None or stamps.is_made_apart(experiment):
        raise RecordError(f"{experiment} is no experiment that can be run again")
    codes = sorted({record.code for record in found} - {stamps.code_stamp(experiment)})
    if not codes:
        raise RecordError(f"{experiment}: all records were made by the present code")
    return codes


def _sources_at(commit: str, folder: Path) -> str:
    """Unpack the packages' sources at a commit into a folder; give the commit's full name."""
    git = ["git", "-C", str(stamps.ROOT)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--verify", f"{commit}^{{commit}}"], capture_output=True, check=True
        )
        packed = subprocess.run(
            [*git, "archive", "--format=zip", commit], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise RecordError(f"no commit {commit} of these sources") from None
    with zipfile.ZipFile(BytesIO(packed.stdout)) as archive:
        sources = [
            name
            for name in archive.namelist()
            if name.endswith(".py") and name.partition("/")[0] in PACKAGES
        ]
        archive.extractall(folder, sources)
    return name.stdout.decode().strip()


def _own_stamp(root: Path, experiment: str) -> str:
    """Compute the stamp of an experiment as sources of an earlier commit themselves would."""
    asked = (
        f"from hessinit_book.records.stamps import code_stamp; print(code_stamp({experiment!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RecordError(
            f"{experiment}: its sources cannot tell their stamp: {done.stderr[-200:]}"
        )
    return done.stdout.strip()
