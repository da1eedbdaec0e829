"""Kill a small sweep at random moments, start it again by the same command, and count.

The sweep runs in a copy of the project in a temporary folder. Each kill is SIGKILL for Snakemake
and all that it has started, as when a machine goes down, at a random moment after the first job has
begun. At the end each record must be there once,
as it was first written, and nothing else. Takes minutes; needs Linux.

usage: python tools/kill_sweep.py [--kills 20] [--longest SECONDS] [--draw N]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
RECORDS = 6


def copy_project(root: Path) -> None:
    """Copy what a sweep needs."""
    quiet = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("hessinit_lib", "hessinit_book", "notebooks", "profiles", "tools"):
        shutil.copytree(ROOT / name, root / name, ignore=quiet)
    shutil.copyfile(ROOT / "Snakefile", root / "Snakefile")
    (root / "book").mkdir()
    (root / "runs.yaml").write_text(RUNS, encoding="utf-8")


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="kill_sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many")
    parser.add_argument(
        "--longest", type=float, default=30.0, help="seconds before a kill, at most"
    )
    parser.add_argument("--draw", type=int, default=0, help="which moments")
    given = parser.parse_args()
    draw, seen, rewritten, ended = random.Random(given.draw), {}, 0, None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_project(root)
        results = root / "results"
        print("kill  after [s]  processes  records  parts  .part files")
        for number in range(1, given.kills + 2):
            process, last = start(root), number > given.kills
            after = draw.uniform(0, given.longest)
            try:
                wait_for_a_job(process)
                begin = time.monotonic()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(None if last else after)
            finally:
                ended = process.poll()
                killed = kill(process) if ended is None else 0
            files = [path for path in results.rglob("*") if path.is_file()]
            records = [path for path in files if path.match("*/*/seed-*.json")]
            records = [path for path in records if "parts" not in path.parts]
            parts = [path for path in files if "parts" in path.parts and path.suffix == ".json"]
            unfinished = [path for path in files if path.suffix == ".part"]
            for path in records:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                rewritten += seen.setdefault(path, content) != content
            how = f"{number:4}" if killed else (" end" if last else f"{number:3}*")
            print(
                f"{how}  {time.monotonic() - begin:9.1f}  {killed:9}  {len(records):7}  "
                f"{len(parts):5}  {len(unfinished):11}",
                flush=True,
            )
        left = [path for path in results.rglob("*") if path.is_file() and path not in seen]
        folders = list(results.rglob("parts"))
        print(f"the last run ended with {ended}; *: had ended before it was to be killed")
        print(f"records: {len(seen)} of {RECORDS}, written again: {rewritten}")
        print(f"left over: {len(left)} files, {len(folders)} folders of parts")
        good = ended == 0 and len(seen) == RECORDS and not (rewritten or left or folders)
        if not good:
            print((root / "said.txt").read_text(encoding="utf-8")[-3000:])
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
