"""Verify the committed results: whole, made by this code, and the same when computed again.

usage: python -m hessinit_book.verify [--sample N] [--budget SECONDS] [--root FOLDER]
       python -m hessinit_book.verify --confirm EXPERIMENT [--seed N] [--networks NAME ...]
       python -m hessinit_book.verify --confirm EXPERIMENT --same-code COMMIT

Three checks. The first two take seconds; the third computes.

1. There are the records that `runs.yaml` asks for, and no others but of the same seeds on other
   devices. Each matches its own checksum and its place, its experiment accepts its parameters, and
   it was made by the library as it is now or by earlier code that is confirmed to give the same
   (`confirmations.py`).
2. Every executed notebook under `_build/src/notebooks` is a run of its source with the code
   that is there.
3. A random sample of records, as many as fit into the budget, is computed again and compared
   number by number (`sampling.py` and `repeatability.py` say how); those of a GPU, where there is
   one. Nobody can foresee the sample; its number is printed, and with `--sample` it is drawn once
   more.

A checksum shows accidents. Who forges a record can compute it anew: against that help the history
in git, and computing again. The last lines say what was computed again and what was not.

`--confirm` writes a confirmation (`confirm.py`).
"""

from __future__ import annotations

import argparse
import math
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hessinit_book.errors import DataError, ParameterError, RecordError
from hessinit_book.parameters import project_root
from hessinit_book.records import confirmations, expected, records, sampling
from hessinit_book.records.comparison import Comparison, compare
from hessinit_book.records.confirm import (
    confirm_by_code,
    confirm_by_computing,
    parameters_again,
    run_again,
)
from hessinit_book.records.confirmations import Confirmation
from hessinit_book.records.freshness import is_current, page_problems
from hessinit_book.records.machine import is_here
from hessinit_book.records.records import KINDS, Record, home, kind_of, source_of
from hessinit_book.records.stamps import is_made_apart, module_of
from hessinit_lib.errors import UserError


@dataclass
class Found:
    """What a verification found.

    Attributes:
        paths: what lies where records are expected.
        whole: the records that are whole and in their own place.
        problems: one line for each.
        same: records that came out the same when computed again.
        different: records that did not.
        left: why the other whole records were not computed again: the reason of each.
    """

    paths: list[Path]
    whole: dict[Path, Record]
    problems: list[str] = field(default_factory=list)
    same: list[Record] = field(default_factory=list)
    different: list[Record] = field(default_factory=list)
    left: list[tuple[str, Record]] = field(default_factory=list)

    def tell(self, problem: str) -> None:
        """Print a problem and keep it."""
        print(problem)
        self.problems.append(problem)

    @property
    def repeatable(self) -> list[Record]:
        """The records that experiments made, on a device that is here."""
        made = [record for record in self.whole.values() if _can_be_repeated(record)]
        return [record for record in made if _is_here(record)]


def record_problems(path: Path) -> list[str]:
    """Say what is wrong with a committed record; nothing is computed.

    Args:
        path: see `record_path`.

    Returns:
        One line for each problem.
    """
    try:
        record = records.read(path)
    except UserError as error:
        return [str(error)]
    elsewhere = records.misplaced(record, path)
    problems = [elsewhere] if elsewhere else []
    if record.duration_s > sampling.LONGEST_S:
        limit = f"{sampling.LONGEST_S:,} s or less"
        problems.append(f"{path}: duration_s: got {record.duration_s:g}, expected {limit}")
    if module_of(record.experiment) is None:
        problems.append(f"{path}: there is no experiment {record.experiment!r}")
    elif not is_current(record, _confirmation(path.parent)):
        problems.append(f"{path}: the code has changed since it was made; run or confirm it again")
    if _can_be_repeated(record):
        try:
            repeated = parameters_again(record, results_dir=None).bearing()
        except UserError as error:
            problems.append(f"{path}: {error}")
        else:
            if repeated != record.parameters:
                problems.append(f"{path}: its parameters are not those of the experiment now")
    return problems


def verify(root: Path, sample: int, budget: float) -> int:
    """Run the three checks, tell what was found, and count the problems.

    Args:
        root: the project's folder.
        sample: number of the sample that is computed again.
        budget: seconds for that.
    """
    found = _look(root)
    _compute_again(found, sample, budget)
    _sum_up(found)
    return len(found.problems)


def _look(root: Path) -> Found:
    """Check what can be checked without computing, and tell the problems."""
    paths = expected.record_files(root)
    pages = sorted((root / "_build" / "src" / "notebooks").glob("*.ipynb"))
    found = Found(paths, {path: record for path in paths if (record := _read_if_whole(path))})
    if not paths:
        found.tell(f"{root / 'results' / 'paper'}: no records")
    try:
        there_should_be = expected.expected_files(root)
    except ParameterError as error:
        found.tell(str(error))
    else:
        for problem in expected.problems(paths, there_should_be):
            found.tell(problem)
    for path in paths:
        for problem in record_problems(path):
            found.tell(problem)
    for folder in sorted({home(path.parent) for path in paths}):
        there = [record for path, record in found.whole.items() if home(path.parent) == folder]
        for problem in confirmations.problems(folder, there):
            found.tell(problem)
    for page in pages:
        for problem in page_problems(root / "notebooks" / page.name, page):
            found.tell(f"{page}: {problem}")
    print(f"verify: {len(paths)} records, {len(pages)} pages, {len(found.problems)} problems")
    return found


def _compute_again(found: Found, sample: int, budget: float) -> None:
    """Compute a sample of records again; tell how each compares, or why it could not be done."""
    repeatable, start = found.repeatable, time.monotonic()
    chosen = sampling.choose(repeatable, sample, budget)
    for record in chosen:
        name = f"{source_of(record)} seed {record.seed}"
        if time.monotonic() - start > budget:
            found.left.append(("drawn, but the time was up", record))
            continue
        try:
            again = run_again(record)
        except DataError as error:
            print(f"{name}: not computed again: {error}")
            found.left.append(("its data are not at hand", record))
            continue
        except UserError as error:
            found.tell(f"{name}: cannot be repeated: {error}")
            found.left.append(("it cannot be repeated", record))
            continue
        seeds = [other for other in repeatable if source_of(other) == source_of(record)]
        comparison = compare(record, again, seeds)
        tell(record, comparison)
        found.problems += map(str, comparison.differences)
        (found.different if comparison.differences else found.same).append(record)
    usual = sampling.usual_durations(repeatable)
    for record in found.whole.values():
        if not _can_be_repeated(record):
            found.left.append(("made apart, by make bench or make zoo", record))
        elif not _is_here(record):
            found.left.append(("no GPU here", record))
        elif usual[source_of(record)] > budget:
            found.left.append((f"longer than the budget of {budget:g} s", record))
        elif record not in chosen:
            found.left.append(("not in the sample", record))


def _sum_up(found: Found) -> None:
    """Say what was verified and what was not."""
    current = sum(
        is_current(record, _confirmation(path.parent)) for path, record in found.whole.items()
    )
    print(f"summary: {len(found.paths)} records, {len(found.whole)} whole, {current} current")
    again = len(found.same) + len(found.different)
    print(f"  computed again: {again}, the same: {len(found.same)}")
    usual = sampling.usual_durations([*found.whole.values()])
    for reason in sorted({reason for reason, _ in found.left}):
        names = Counter(source_of(record) for why, record in found.left if why == reason)
        listed = ", ".join(f"{n} {name} ({usual[name]:.0f} s)" for name, n in sorted(names.items()))
        print(f"  not computed again: {names.total()}, {reason}: {listed}")
    print(f"  problems: {len(found.problems)}")


def confirm(
    root: Path,
    experiment: str,
    seed: int | None,
    commit: str | None,
    networks: Sequence[str] = (),
) -> int:
    """Confirm the records of an experiment (`confirm.py`), tell, and count the problems."""
    try:
        if commit is not None:
            confirm_by_code(root / "results", experiment, commit)
            print(f"{experiment}: confirmed; the code computes as it did at {commit}")
            return 0
        results = root / "results"
        record, comparison = confirm_by_computing(results, experiment, seed, networks)
    except UserError as error:
        print(f"not confirmed: {error}")
        return 1
    if networks:
        print(f"of its networks only {', '.join(record.parameters['networks'])}")
    tell(record, comparison)
    print(f"{experiment}: {'not confirmed' if comparison.differences else 'confirmed'}")
    return len(comparison.differences)


def tell(record: Record, comparison: Comparison) -> None:
    """Print how a record that was computed again compares."""
    differ = comparison.differences
    verdict = f"{len(differ)} numbers differ" if differ else "the same"
    print(f"{source_of(record)} seed {record.seed}: computed again, {verdict}")
    print(f"  {comparison.summary()}")
    for line in differ[:5]:
        print(f"  {line}")
    if len(differ) > 5:
        print(f"  ... and {len(differ) - 5} more")


def _confirmation(folder: Path) -> Confirmation | None:
    try:
        return confirmations.read(folder)
    except RecordError:
        return None  # told by `confirmations.problems`


def _can_be_repeated(record: Record) -> bool:
    """Tell whether an experiment made the record: no benchmark, whose timings differ each time."""
    return module_of(record.experiment) is not None and not is_made_apart(record.experiment)


def _is_here(record: Record) -> bool:
    """Tell whether this machine has a device of the kind that made the record."""
    kind = kind_of(record)
    return kind not in KINDS or is_here(kind)


def _read_if_whole(path: Path) -> Record | None:
    try:
        return records.read_in_place(path)
    except UserError:
        return None


def _seconds(text: str) -> float:
    """Read a budget; argparse turns the error into a line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds, 0 or more")
    return value


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected the project's folder")
    return Path(text)


def main(arguments: Sequence[str]) -> None:
    """Verify and end with status 1 if there was a problem, 2 if the arguments are wrong."""
    parser = argparse.ArgumentParser(prog="verify", description="Verify the committed results.")
    parser.add_argument("--sample", type=int, help="which sample; default: one of its own")
    parser.add_argument("--budget", type=_seconds, default=60.0, help="seconds of computing")
    parser.add_argument("--root", type=_folder, default=project_root(), help="the project's folder")
    parser.add_argument("--confirm", metavar="EXPERIMENT", help="confirm records of earlier code")
    parser.add_argument("--seed", type=int, help="which record to compute again; default: shortest")
    parser.add_argument("--networks", nargs="+", default=(), help="some of its networks alone")
    parser.add_argument("--same-code", metavar="COMMIT", help="its code made them, and is the same")
    given = parser.parse_args(arguments)
    if given.confirm:
        how = (given.seed, given.same_code, given.networks)
        sys.exit(1 if confirm(given.root, given.confirm, *how) else 0)
    sample = secrets.randbelow(10**9) if given.sample is None else given.sample
    print(f"verify: sample {sample} (once more by SAMPLE={sample}), {given.budget:g} s")
    sys.exit(1 if verify(given.root, sample, given.budget) else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
