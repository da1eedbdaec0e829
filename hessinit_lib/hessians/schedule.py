"""When to record: every so many steps, at given steps, or whenever a function says so."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import SupportsIndex

Schedule = SupportsIndex | Collection[SupportsIndex] | Callable[[int], bool]


def due(every: Schedule) -> Callable[[int], bool]:
    """Make the function that says whether a step is one to record before.

    Args:
        every: steps from one record to the next, at least 1, from step 0 on; or the steps;
            or that function itself.

    Raises:
        ValueError: none of these.

    Example:
        >>> [step for step in range(7) if due(3)(step)]
        [0, 3, 6]
        >>> due(range(2, 4))(3)
        True
    """
    if callable(every):
        return every
    try:
        if isinstance(every, Collection):
            return frozenset(operator.index(step) for step in every).__contains__
        interval = operator.index(every)
    except TypeError:
        interval = 0
    if interval < 1:
        raise ValueError(
            f"every={every!r}: expected a whole number of steps, at least 1, "
            "a collection of steps, or a function of the step"
        )
    return lambda step: step % interval == 0


def log_schedule(total: int, count: int) -> list[int]:
    """Spread steps evenly in their logarithm: training changes most at its beginning.

    Args:
        total: steps of the training.
        count: steps wanted, at least 3; where whole numbers are too few, fewer come back.

    Returns:
        Step 0, then 1 to `total` in a geometric sequence, rounded, each once.

    Raises:
        ValueError: `total` is below 1 or `count` below 3.

    Example:
        >>> log_schedule(1000, 8)
        [0, 1, 3, 10, 32, 100, 316, 1000]
    """
    if total < 1 or count < 3:
        raise ValueError(f"total={total}, count={count}: expected at least 1 and 3")
    gaps = count - 2
    return [0, *sorted({round(total ** (gap / gaps)) for gap in range(gaps + 1)})]
