"""Verify the committed results: whole, made by this code, and the same when computed again.

usage: python -m hessinit_lib.verify [--sample N] [--budget SECONDS] [--root FOLDER]

Three checks. The first two take a second; the third computes.

1. Every record under `results/paper` matches its own checksum, its code stamp is that of the
   library now, and its experiment accepts its parameters.
2. Every executed notebook under `_build/src/notebooks` is a run of its source with the code
   that is there.
3. A random sample of records, as many as fit into the budget by the durations that they
   state, is computed again and compared number by number. The sample is that of the day, or
   of the number given.
"""

from __future__ import annotations

import argparse
import importlib
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from hessinit_lib import records
from hessinit_lib.errors import DataError, UserError
from hessinit_lib.experiments import parameters_of
from hessinit_lib.freshness import is_current, module_of, page_problems
from hessinit_lib.parameters import Parameters, project_root
from hessinit_lib.records import Record

# Numbers are equal if they agree to this relative tolerance, or if both are below the floor
# times the largest number of their list. Training in float32 amplifies the last digit, which
# another processor may round otherwise; what is not trained agrees far better.
TOLERANCE = 0.01
FLOOR = 1e-5


class Difference(NamedTuple):
    """A number that came out otherwise: its key in the record, then and now."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.then!r} in the record, {self.now!r} now"


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
    elif not is_current(record):
        problems.append(f"{path}: the code has changed since it was made; run it again")
    if _can_be_repeated(record):
        try:
            repeated = _parameters(record, results_dir=None).bearing()
        except UserError as error:
            problems.append(f"{path}: {error}")
        else:
            if repeated != record.parameters:
                problems.append(f"{path}: its parameters are not those of the experiment now")
    return problems


def differences(then: Any, now: Any, key: str = "values") -> Iterator[Difference]:
    """Compare two records' values number by number, within `TOLERANCE`.

    Example:
        >>> [str(d) for d in differences({"a": [1.0, 2.0]}, {"a": [1.001, 2.5]})]
        ['values.a.1: 2.0 in the record, 2.5 now']
    """
    if isinstance(then, dict) and isinstance(now, dict) and then.keys() == now.keys():
        for name, value in then.items():
            yield from differences(value, now[name], f"{key}.{name}")
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        floor = FLOOR * max((abs(x) for x in then if _is_finite(x)), default=0.0)
        for index, (a, b) in enumerate(zip(then, now, strict=True)):
            if not (_is_finite(a) and _is_finite(b) and max(abs(a), abs(b)) <= floor):
                yield from differences(a, b, f"{key}.{index}")
    elif not _agree(then, now):
        yield Difference(key, then, now)


def recompute(record: Record) -> list[Difference]:
    """Run a record's experiment again, for its seed, and compare.

    Raises:
        DataError: the data set is not at hand.
    """
    experiment = importlib.import_module(f"hessinit_lib.experiments.{record.experiment}")
    with tempfile.TemporaryDirectory() as folder:
        (again,) = experiment.run(_parameters(record, results_dir=Path(folder)))
    return list(differences(record.values, again.values))


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
    problems = [problem for path in paths for problem in record_problems(path)]
    for page in pages:
        found = page_problems(root / "notebooks" / page.name, page)
        problems += [f"{page}: {problem}" for problem in found]
    for problem in problems:
        print(problem)
    print(f"verify: {len(paths)} records, {len(pages)} pages, {len(problems)} problems")

    whole = [record for record in map(_read_if_whole, paths) if record and _can_be_repeated(record)]
    for record in choose(whole, sample, budget):
        name = f"{record.experiment} seed {record.seed}"
        try:
            found = recompute(record)
        except DataError as error:
            print(f"{name}: not computed again: {error}")
            continue
        except UserError as error:
            found = [f"cannot be repeated: {error}"]
        verdict = "differs" if found else f"the same within {TOLERANCE:.0%}"
        print(f"{name}: computed again, {verdict}")
        for line in found[:5]:
            print(f"  {line}")
        if len(found) > 5:
            print(f"  ... and {len(found) - 5} more")
        problems += map(str, found)
    return len(problems)


def _parameters(record: Record, results_dir: Path | None) -> Parameters:
    device = record.device.partition(":")[0]
    return parameters_of(record.experiment).check(
        **record.parameters, seeds=[record.seed], device=device, results_dir=results_dir
    )


def _can_be_repeated(record: Record) -> bool:
    """Tell whether an experiment made the record; timings come out differently each time."""
    return (module_of(record.experiment) or "").startswith("hessinit_lib.experiments.")


def _read_if_whole(path: Path) -> Record | None:
    try:
        return records.read(path)
    except UserError:
        return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _agree(a: Any, b: Any) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if not numbers:
        return a == b
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=TOLERANCE)


def main(arguments: Sequence[str]) -> None:
    """Verify and end with status 1 if there was a problem."""
    parser = argparse.ArgumentParser(prog="verify", description="Verify the committed results.")
    today = date.today().toordinal()
    parser.add_argument("--sample", type=int, default=today, help="which sample; default: today's")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of computing")
    parser.add_argument("--root", type=Path, default=project_root(), help="the project's folder")
    given = parser.parse_args(arguments)
    print(f"verify: sample {given.sample}, {given.budget:g} s")
    sys.exit(1 if verify(given.root, given.sample, given.budget) else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
