"""Kill a small sweep at random moments, start it again by the same command, and count.

The sweep runs in a copy of the project in a temporary folder. Each kill is SIGKILL for Snakemake
and all that it has started, as when a machine goes down, at a random moment after the first job has
begun. At the end each record must be there once, as it was first written, and nothing else. A sweep
that ends before the last kill is followed by another. Takes minutes; needs Linux.

usage: python tools/kill_sweep.py [--kills 20] [--longest SECONDS] [--draw N]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "tools/build.py", "records", "--config", "profile=smoke", "--cores", "1"]
# The contest keeps parts: each network that is done.
RUNS = """\
profiles:
  smoke:
    word_pair_saddle: {seeds: [0, 1, 2]}
    contest: {seeds: [0, 1, 2]}
"""
RECORDS = [
    f"smoke/{name}/seed-{seed}.json"
    for name in ("contest", "word_pair_saddle")
    for seed in range(3)
]


def copy_project(root: Path, runs: str = RUNS) -> Path:
    """Copy what a sweep needs; give the folder."""
    quiet = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("hessinit_lib", "hessinit_book", "notebooks", "profiles", "tools"):
        shutil.copytree(ROOT / name, root / name, ignore=quiet)
    shutil.copyfile(ROOT / "Snakefile", root / "Snakefile")
    (root / "book").mkdir()
    (root / "runs.yaml").write_text(runs, encoding="utf-8")
    return root


def start(root: Path) -> subprocess.Popen[bytes]:
    """Start the sweep, or go on with it."""
    with (root / "said.txt").open("ab") as said:
        return subprocess.Popen(
            COMMAND,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def descendants(process: int) -> list[int]:
    """List a process and all that come from it, kernels in sessions of their own, too."""
    found = [process]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, tasks.read_text().split())
    return found


def wait_for_a_job(process: subprocess.Popen[bytes]) -> None:
    """Wait until Snakemake has started a job, papermill and its kernel, or has ended."""
    while process.poll() is None and len(descendants(process.pid)) < 4:
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a process with all that come from it; give how many there were."""
    stopped: list[int] = []
    while new := [one for one in descendants(process.pid) if one not in stopped]:
        for one in new:  # stopped first, so that none has a child unseen
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)
        stopped += new
    for one in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()
    return len(stopped)


class Count:
    """What lies under `results`, counted after each kill.

    Attributes:
        first: the checksum with which each record was first seen.
        rewritten: how often a record was seen with another.
    """

    def __init__(self, results: Path) -> None:
        self._results, self.first, self.rewritten = results, dict[Path, str](), 0

    def look(self) -> str:
        """Count records, parts and files that were being written, in columns."""
        files = [path for path in self._results.rglob("*") if path.is_file()]
        parts = [path for path in files if "parts" in path.parts and path.suffix == ".json"]
        unfinished = [path for path in files if path.suffix == ".part"]
        records = set(files) - set(parts) - set(unfinished)
        for path in records:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            self.rewritten += self.first.setdefault(path, content) != content
        return f"{len(records):7}  {len(parts):5}  {len(unfinished):11}"

    def faults(self) -> list[str]:
        """Say what is wrong once the sweep has ended."""
        there = sorted(str(path.relative_to(self._results)) for path in self._results.rglob("*.*"))
        said = [] if there == RECORDS else [f"expected {RECORDS}, found {there}"]
        said += [f"records written again: {self.rewritten}"] if self.rewritten else []
        return said + [f"left over: {path}" for path in self._results.rglob("parts")]


def kill_one_sweep(root: Path, draw: random.Random, longest: float, kills: int) -> int:
    """Start a sweep again and again, killing it, until it ends by itself; give how many kills.

    Args:
        root: the copy of the project; records of an earlier sweep are removed.
        draw: gives the moments.
        longest: seconds before a kill, at most.
        kills: at most; then it may end.
    """
    for name in ("results", "_build", ".snakemake"):
        shutil.rmtree(root / name, ignore_errors=True)
    count = Count(root / "results")
    for number in itertools.count(1):
        process, begin = start(root), time.monotonic()
        try:
            wait_for_a_job(process)
            begin = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, longest) if number <= kills else None)
        finally:
            ended = process.poll()
            killed = kill(process) if ended is None else 0
        shown = f"{number:4}" if killed else " end"
        print(f"{shown}  {time.monotonic() - begin:9.1f}  {killed:9}  {count.look()}", flush=True)
        if ended is not None:
            faults = ([f"status {ended}"] if ended else []) + count.faults()
            if faults:
                said = (root / "said.txt").read_text(encoding="utf-8")[-3000:]
                sys.exit("\n".join([*faults, said]))
            return number - 1
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(prog="kill_sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many")
    parser.add_argument(
        "--longest", type=float, default=30.0, help="seconds before a kill, at most"
    )
    parser.add_argument("--draw", type=int, default=0, help="which moments")
    given = parser.parse_args()
    draw, done, sweeps = random.Random(given.draw), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        print("kill  after [s]  processes  records  parts  .part files")
        while done < given.kills:
            done += kill_one_sweep(Path(folder), draw, given.longest, given.kills - done)
            sweeps += 1
    print(f"{done} kills, {done} restarts, {sweeps} sweeps of {len(RECORDS)} records: each record")
    print("was written once, and nothing else was left")


if __name__ == "__main__":
    main()
