"""Runs one by one or side by side, each in a process of its own and with a limit in time."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

POLL = 0.05  # seconds between two looks at what is running


@dataclass(frozen=True)
class Place:
    """Where and how runs are made.

    Attributes:
        work: folder of what they leave: `records`, `logs`, `done`.
        data: folder of the full data sets.
        device: the parameter `device` of all.
        toy: whether all is as small as can be.
    """

    work: Path
    data: Path
    device: str
    toy: bool

    @property
    def records(self) -> Path:
        """The folder of the records."""
        return self.work / "records"


@dataclass(frozen=True)
class Run:
    """One run of a stage.

    Attributes:
        name: of the run.
        limit: seconds after which it is stopped.
        action: what it does; it raises what goes wrong.
        needs: files of the data folder, not at toy size.
        small: whether it is made at toy size.
    """

    name: str
    limit: float
    action: Callable[[Place], None]
    needs: tuple[str, ...] = ()
    small: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        name: of the run.
        seconds: that it took.
        limit: that it had.
        how: "done", "done before", "stopped", "failed" or "not begun".
        line: the last that it said, or why.
    """

    name: str
    seconds: float
    limit: float
    how: str
    line: str


def make(
    runs: Sequence[Run],
    place: Place,
    limit: float,
    jobs: int = 1,
    keep: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Make runs, in order; one that fails or is stopped does not stop the others.

    What was done before, by what lies in the folder `done`, is not done again.

    Args:
        runs: what to run.
        place: where.
        limit: seconds for all; what is running then is stopped.
        jobs: how many may run at a time.
        keep: called whenever a run has ended.
    """
    end = time.monotonic() + limit
    outcomes: dict[str, Outcome] = {}
    waiting, running = list(runs), dict[int, tuple[Run, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                settled = _settled(run, place, end)
                if settled:
                    outcomes[run.name] = settled
                else:
                    running[_start(run, place)] = run, time.monotonic()
            for process, (run, began) in [*running.items()]:
                ended, status = os.waitpid(process, os.WNOHANG)
                took = time.monotonic() - began
                stopped = not ended and (took > run.limit or time.monotonic() > end)
                if stopped:
                    _kill(process)
                if ended or stopped:
                    del running[process]
                    how = "stopped" if stopped else "failed" if status else "done"
                    outcomes[run.name] = _note(run, place, took, how, status)
                    keep()
            time.sleep(POLL if running else 0)
    finally:
        for process in running:
            _kill(process)
    return [outcomes[run.name] for run in runs]


def _settled(run: Run, place: Place, end: float) -> Outcome | None:
    """Tell how a run went that need not or cannot begin."""
    if (place.work / "done" / f"{run.name}.json").is_file():
        return Outcome(run.name, 0.0, run.limit, "done before", "")
    if time.monotonic() > end:
        return Outcome(run.name, 0.0, run.limit, "not begun", "no time was left")
    absent = [] if place.toy else [n for n in run.needs if not (place.data / n).is_file()]
    if absent:
        some = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        return Outcome(run.name, 0.0, run.limit, "failed", f"not in {place.data}: {some}")
    return None


def _start(run: Run, place: Place) -> int:
    """Start a run in a process of its own, which has all that is imported here."""
    log = place.work / "logs" / f"{run.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgrp()  # so that it can be stopped with all that it starts
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        run.action(place)
        status = 0
    except SystemExit as error:
        status = 0 if error.code in (None, 0) else 1
        if isinstance(error.code, str):
            print(error.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _kill(process: int) -> None:
    """End a process with all that it has started."""
    for kill in (os.killpg, os.kill):
        try:
            kill(process, signal.SIGKILL)
            break
        except ProcessLookupError:  # its group is not there yet
            continue
    os.waitpid(process, 0)


def _note(run: Run, place: Place, took: float, how: str, status: int) -> Outcome:
    log = place.work / "logs" / f"{run.name}.txt"
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    if how == "failed" and (code := os.waitstatus_to_exitcode(status)) < 0:
        line = f"ended by signal {-code}"
    outcome = Outcome(run.name, took, run.limit, how, line)
    if how == "done":
        path = place.work / "done" / f"{run.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """Write how runs went, one a line."""
    width = max((len(outcome.name) for outcome in outcomes), default=3)
    rows = [f"{'run':{width}}  seconds  limit  outcome"]
    for one in outcomes:
        line = f": {one.line}" if one.line and one.how != "done" else ""
        rows.append(
            f"{one.name:{width}}  {one.seconds:7.1f}  {one.limit:5.0f}  {one.how}{line:.150}"
        )
    return "\n".join(rows)
