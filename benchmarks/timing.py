"""Time and memory on either device.

A GPU works on its own: it is timed by CUDA's events, between moments at which it has nothing left
to do. Where CUDA is not in use, the clock is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """Give what an action gives, and how long it took [s].

    Example:
        >>> found, took = timed(lambda: 7)
        >>> found, took < 1
        (7, True)
    """
    if not torch.cuda.is_initialized():
        start = time.perf_counter()
        found = action()
        return found, time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    found = action()
    end.record()
    torch.cuda.synchronize()
    return found, begin.elapsed_time(end) / 1e3


def seconds(action: Callable[[], object]) -> float:
    """Time one call [s]."""
    return timed(action)[1]


def warm_up(action: Callable[[], object]) -> None:
    """Run an action once where the first run loads kernels: on a GPU."""
    if torch.cuda.is_initialized():
        action()


def interleave(actions: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Time actions in turns, so that a slow moment of the machine meets them all.

    Args:
        actions: what to time, by name.
        budget: time for all rounds [s]; three rounds are made in any case.

    Returns:
        The least duration of each [s]; of a "step", the one that follows on another, as in
        training: after our calls, which go through more memory, it would start from cold.
    """
    for action in actions.values():
        warm_up(action)
    least = dict.fromkeys(actions, math.inf)
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < budget:
        for name, action in actions.items():
            if name == "step":
                action()
            least[name] = min(least[name], seconds(action))
        rounds += 1
    return least


def cuda_peak(action: Callable[[], object]) -> float:
    """Measure a GPU's peak memory during an action, above what was held before [MiB]."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
