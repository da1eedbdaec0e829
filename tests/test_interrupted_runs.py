"""Runs that were killed go on, keep what they had, and leave nothing behind."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from hessinit_book.errors import RecordError
from hessinit_book.parameters import Parameters
from hessinit_book.records import machine, runs
from hessinit_book.records.records import DatasetInfo, Record
from hessinit_book.records.runs import Parts, clear_parts, run_seeds

DATASET = DatasetInfo(name="MNIST", kind="sample", train_size=20, test_size=5, sha256="ab")
PARTS = ("one", "two", "three")


class Sleepy(Parameters):
    """An experiment of three parts that do little."""

    EXPERIMENT: ClassVar[str] = "mnist_tracking"
    BY_PROFILE = {p: {"seeds": (0, 1, 2)} for p in ("smoke", "quick", "paper")}  # noqa: RUF012


def parameters(results: Path, **given: Any) -> Sleepy:
    return Sleepy.check(profile="smoke", device="cpu", results_dir=str(results), **given)


def run(chosen: Sleepy, work: Callable[[int, str], None]) -> list[Record]:
    """Run as a chapter does."""

    def run_one(seed: int, device: torch.device, bar: Any) -> dict[str, Any]:
        parts = Parts(chosen, DATASET, seed, device)

        def compute(name: str) -> dict[str, Any]:
            work(seed, name)
            return {"name": name, "seed": seed}

        return {name: parts.get(name, lambda name=name: compute(name)) for name in PARTS}

    found = run_seeds(chosen, DATASET, run_one, ticks=1)
    clear_parts(chosen)
    return found


def stop_at(stop: tuple[int, str], done: list[tuple[int, str]]) -> Callable[[int, str], None]:
    def work(seed: int, name: str) -> None:
        if (seed, name) == stop:
            raise KeyboardInterrupt
        done.append((seed, name))

    return work


def files(results: Path) -> list[str]:
    return sorted(str(path.relative_to(results)) for path in results.rglob("*") if path.is_file())


ALL = [f"smoke/mnist_tracking/seed-{seed}.json" for seed in (0, 1, 2)]


@pytest.fixture(autouse=True)
def known_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "code_stamp", lambda _: "cd")
    monkeypatch.setattr(runs, "current_commit", lambda: None)
    for module in (machine, runs):
        monkeypatch.setattr(module, "library_versions", lambda: {**VERSIONS})


VERSIONS = machine.library_versions()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that shows what the test says."""
    now = [100.0]
    with monkeypatch.context() as patch:
        patch.setattr(runs.time, "perf_counter", lambda: now[0])
        yield now


def test_duration_is_the_sum_of_the_parts(tmp_path: Path, clock: list[float]) -> None:
    chosen = parameters(tmp_path, seeds=[0, 1])
    seconds = {"one": 5.0, "two": 7.0, "three": 11.0}

    def work(seed: int, name: str) -> None:
        if (seed, name, clock[0] < 1000) == (0, "three", True):
            raise KeyboardInterrupt
        clock[0] += seconds[name] * (1 + seed)

    with pytest.raises(KeyboardInterrupt):
        run(chosen, work)
    clock[0] = 2000.0
    assert [record.duration_s for record in run(chosen, work)] == [23.0, 46.0]
    assert files(tmp_path) == ALL[:2]


def test_parts_of_other_versions_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, done = parameters(tmp_path, seeds=[0]), []
    with pytest.raises(KeyboardInterrupt):
        run(chosen, stop_at((0, "three"), done))
    assert done == [(0, "one"), (0, "two")]
    for module in (machine, runs):
        monkeypatch.setattr(module, "library_versions", lambda: {**VERSIONS, "torch": "2.0"})
    with pytest.raises(KeyboardInterrupt):
        run(chosen, stop_at((0, "two"), done))
    assert done[2:] == [(0, "one")]  # again; a part that holds is not
    (record,) = run(chosen, stop_at((9, ""), done))
    assert done[3:] == [(0, "two"), (0, "three")]
    assert record.versions["torch"] == "2.0"


def test_versions_that_hold() -> None:
    now = machine.library_versions()
    assert machine.holds_now(now)
    assert machine.holds_now({"pydantic": machine.version("pydantic")})
    assert not machine.holds_now({**now, "numpy": "1.0"})
    assert not machine.holds_now({"no such library": "1.0"})


@pytest.mark.parametrize("kind", ["empty", "pipe", "folder", "link to nowhere"])
def test_what_lies_in_the_way_is_told_before_work(kind: str, tmp_path: Path) -> None:
    path, done = tmp_path / ALL[2], []
    path.parent.mkdir(parents=True)
    if kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(RecordError, match=r"seed-2\.json"):
        run(parameters(tmp_path), stop_at((9, ""), done))
    assert done == []


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    chosen, done = parameters(tmp_path, seeds=[0]), []
    folder = tmp_path / "smoke" / "mnist_tracking"
    left = [folder / f".seed-{seed}.json.abc.part" for seed in (0, 1)]
    left.append(folder / "parts" / "seed-0" / ".earlier.json.abc.part")
    left.append(folder / "parts" / "seed-0" / "earlier.json")
    left[-1].parent.mkdir(parents=True)
    for path in left:
        path.touch()
    run(chosen, stop_at((9, ""), done))
    # Seed 1 may be running in another process.
    assert files(tmp_path) == ["smoke/mnist_tracking/.seed-1.json.abc.part", ALL[0]]
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    left[0].touch()  # beside a record that holds
    run(chosen, stop_at((0, "one"), done))
    assert files(tmp_path)[-1] == ALL[0]
    assert not left[0].exists()


def test_runs_of_different_seeds_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one removes is in the way of none, however often."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    failures = []

    def repeat(seed: int) -> None:
        chosen = parameters(tmp_path, seeds=[seed])
        parts = Parts(chosen, DATASET, seed, torch.device("cpu"))
        try:
            for _ in range(60):
                parts.get("one", dict)
                clear_parts(chosen)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert files(tmp_path) == []


CHANGES = {"os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "tempfile.mkstemp"}


def killed(chosen: Sleepy, countdown: int) -> bool:
    """Run in a process of its own, killed before one of its changes of files; tell if it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child does nothing with threads
        child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    events = itertools.count(1)

    def kill_at(event: str, _: object) -> None:
        if event in CHANGES and next(events) == countdown:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(kill_at)
        run(chosen, lambda *_: None)
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes by fork here")
def test_killed_runs_go_on(tmp_path: Path) -> None:
    """Wherever the kills come, a record that is there is not written again."""
    chosen, draw = parameters(tmp_path), random.Random(0)
    seen: dict[str, bytes] = {}
    kills, left = 0, set()
    while kills < 12:
        kills += killed(chosen, draw.randint(1, 16))
        names = files(tmp_path)
        left |= {name.rpartition(".")[2] for name in names}
        for name in set(ALL) & set(names):
            content = (tmp_path / name).read_bytes()
            assert seen.setdefault(name, content) == content
    assert left == {"json", "part"}  # also in the middle of writing
    assert seen
    found = run(chosen, lambda *_: None)
    assert [record.values["two"] for record in found] == [
        {"name": "two", "seed": seed} for seed in (0, 1, 2)
    ]
    assert all((tmp_path / name).read_bytes() == content for name, content in seen.items())
    assert files(tmp_path) == ALL
    assert not (tmp_path / "smoke/mnist_tracking/parts").exists()


def test_copied_part_of_another_seed_is_made_again(tmp_path: Path) -> None:
    chosen, done = parameters(tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        run(chosen, stop_at((0, "two"), done))
    folder = tmp_path / "smoke/mnist_tracking/parts"
    shutil.copytree(folder / "seed-0", folder / "seed-1")
    run(chosen, stop_at((9, ""), done))
    assert done.count((1, "one")) == 1
