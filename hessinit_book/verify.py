"""Verify the committed results: whole, made by this code, and the same when computed again.

usage: python -m hessinit_book.verify [--sample N] [--budget SECONDS] [--root FOLDER]
       python -m hessinit_book.verify --confirm EXPERIMENT [--seed N | --same-code COMMIT]

Three checks. The first two take seconds; the third computes.

1. Every record under `results/paper` matches its own checksum, its experiment accepts its
   parameters, and it was made by the library as it is now or by earlier code that is confirmed
   to give the same (`confirmations.py`).
2. Every executed notebook under `_build/src/notebooks` is a run of its source with the code
   that is there.
3. A random sample of records, as many as fit into the budget by the durations that they
   state, is computed again and compared number by number (`repeatability.py` says how). The
   sample is that of the day, or of the number given.

`--confirm` writes such a confirmation (`confirm.py`).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from hessinit_book.errors import DataError, RecordError
from hessinit_book.parameters import project_root
from hessinit_book.records import confirmations, records
from hessinit_book.records.comparison import Comparison, compare
from hessinit_book.records.confirm import (
    confirm_by_code,
    confirm_by_computing,
    parameters_again,
    run_again,
)
from hessinit_book.records.confirmations import Confirmation
from hessinit_book.records.freshness import is_current, page_problems
from hessinit_book.records.records import Record
from hessinit_book.records.stamps import is_made_apart, module_of
from hessinit_lib.errors import UserError


def record_problems(path: Path) -> list[str]:
    """Say what is wrong with a committed record; nothing is computed.

    Args:
        path: `.../<profile>/<experiment>/seed-<seed>.json`.

    Returns:
        One line for each problem.
    """
    try:
        record = records.read(path)
    except UserError as error:
        return [str(error)]
    stated = records.record_path("", record.profile, record.experiment, record.seed)
    problems = []
    if path.parts[-3:] != stated.parts:
        problems.append(f"{path}: is the record of {stated.as_posix()}")
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


def choose(found: Sequence[Record], sample: int, budget: float) -> list[Record]:
    """Draw records to compute again, until the budget is spent.

    Args:
        found: all records.
        sample: number of the sample; the same number draws the same records.
        budget: seconds, by the durations that the records state.
    """
    order = sorted(found, key=lambda r: (r.experiment, r.seed))
    random.Random(sample).shuffle(order)
    chosen, spent = [], 0.0
    for record in order:
        if spent + record.duration_s <= budget:
            chosen.append(record)
            spent += record.duration_s
    return chosen


def verify(root: Path, sample: int, budget: float) -> int:
    """Run the three checks, tell what was found, and count the problems."""
    paths = sorted((root / "results" / "paper").glob("*/seed-*.json"))
    pages = sorted((root / "_build" / "src" / "notebooks").glob("*.ipynb"))
    whole = {path: record for path in paths if (record := _read_if_whole(path))}
    problems = [problem for path in paths for problem in record_problems(path)]
    for folder in sorted({path.parent for path in paths}):
        there = [record for path, record in whole.items() if path.parent == folder]
        problems += confirmations.problems(folder, there)
    for page in pages:
        found = page_problems(root / "notebooks" / page.name, page)
        problems += [f"{page}: {problem}" for problem in found]
    for problem in problems:
        print(problem)
    print(f"verify: {len(paths)} records, {len(pages)} pages, {len(problems)} problems")

    repeatable = [record for record in whole.values() if _can_be_repeated(record)]
    for record in choose(repeatable, sample, budget):
        try:
            again = run_again(record)
        except DataError as error:
            print(f"{record.experiment} seed {record.seed}: not computed again: {error}")
            continue
        except UserError as error:
            problems.append(f"{record.experiment} seed {record.seed}: cannot be repeated: {error}")
            print(problems[-1])
            continue
        seeds = [other for other in repeatable if other.experiment == record.experiment]
        comparison = compare(record, again, seeds)
        tell(record, comparison)
        problems += map(str, comparison.differences)
    return len(problems)


def confirm(root: Path, experiment: str, seed: int | None, commit: str | None) -> int:
    """Confirm the records of an experiment (`confirm.py`), tell, and count the problems."""
    try:
        if commit is not None:
            confirm_by_code(root / "results", experiment, commit)
            print(f"{experiment}: confirmed; the code computes as it did at {commit}")
            return 0
        record, comparison = confirm_by_computing(root / "results", experiment, seed)
    except UserError as error:
        print(f"not confirmed: {error}")
        return 1
    tell(record, comparison)
    print(f"{experiment}: {'not confirmed' if comparison.differences else 'confirmed'}")
    return len(comparison.differences)


def tell(record: Record, comparison: Comparison) -> None:
    """Print how a record that was computed again compares."""
    differ = comparison.differences
    verdict = f"{len(differ)} numbers differ" if differ else "the same"
    print(f"{record.experiment} seed {record.seed}: computed again, {verdict}")
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


def _read_if_whole(path: Path) -> Record | None:
    try:
        return records.read(path)
    except UserError:
        return None


def main(arguments: Sequence[str]) -> None:
    """Verify and end with status 1 if there was a problem."""
    parser = argparse.ArgumentParser(prog="verify", description="Verify the committed results.")
    today = date.today().toordinal()
    parser.add_argument("--sample", type=int, default=today, help="which sample; default: today's")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of computing")
    parser.add_argument("--root", type=Path, default=project_root(), help="the project's folder")
    parser.add_argument("--confirm", metavar="EXPERIMENT", help="confirm records of earlier code")
    parser.add_argument("--seed", type=int, help="which record to compute again; default: shortest")
    parser.add_argument("--same-code", metavar="COMMIT", help="its code made them, and is the same")
    given = parser.parse_args(arguments)
    if given.confirm:
        sys.exit(1 if confirm(given.root, given.confirm, given.seed, given.same_code) else 0)
    print(f"verify: sample {given.sample}, {given.budget:g} s")
    sys.exit(1 if verify(given.root, given.sample, given.budget) else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
