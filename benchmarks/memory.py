"""Peak memory of a training step and of our calls: on the CPU each in a process of its own (Linux).

Freed blocks are given back to the system at once, so that the peak is what is held, and not
what the C library keeps for later. On a GPU torch counts.

usage: python -m benchmarks.memory ROW WHAT
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours, timing
from benchmarks.rows import ROWS, Problem

BOUND_MIB = 256  # max_memory of the bounded call
WHAT: dict[str, dict[str, Any]] = {
    "step": {},
    "exact": {"method": "exact"},
    "bounded": {"method": "exact", "max_memory": BOUND_MIB * 2**20},
}


def peaks(row: str, device: torch.device) -> dict[str, float]:
    """Measure a row's peaks above what was held before [MiB]; nothing where none can be had."""
    if device.type == "cuda":
        problem = ROWS[row].problem().to(device)
        found = {}
        for what in WHAT:
            action = action_of(problem, what)
            action()  # what libraries keep for good
            found[what] = timing.cuda_peak(action)
        return found
    if not Path("/proc/self/clear_refs").exists():
        return {}
    command = [sys.executable, "-m", "benchmarks.memory", row]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    found = {}
    for what in WHAT:
        done = subprocess.run([*command, what], check=True, capture_output=True, env=environment)
        found[what] = float(done.stdout)
    return found


def action_of(problem: Problem, what: str) -> Callable[[], object]:
    """Make the training step, or the call, whose memory is measured."""
    if what == "step":
        return ours.training_step(problem)
    return partial(ours.call, problem, **WHAT[what])


def main() -> None:
    """Run one action on one row, and print its peak."""
    row, what = sys.argv[1:]
    action = action_of(ROWS[row].problem(), what)
    ours.training_step(ROWS["mlp30_b32"].problem())()  # libraries load what they need
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _kib("VmRSS")
    action()
    print(round((_kib("VmHWM") - before) / 1024, 1))


def _kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
