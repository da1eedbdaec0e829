"""The choice of a learning rate, with no end of the grid left to be best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

FACTOR = 3.0  # from a grid of one rate to the next


def choose_rate(
    train: Callable[[Sequence[float]], dict[str, list[Any]]],
    rates: Sequence[float],
    extensions: int,
) -> dict[str, Any]:
    """Try learning rates; while the best one is the smallest or largest, try one beyond it.

    Args:
        train: takes rates; gives the "final" loss at each, and whether it "diverged".
        rates: to begin with.
        extensions: how many more may be tried.

    Returns:
        "rates" in order, "final" and "diverged" at each, and "rate", the best: of the lowest
        final loss, runs that diverged last.

    Example:
        >>> def train(rates):
        ...     return {"final": [abs(r - 9) for r in rates], "diverged": [r > 50 for r in rates]}
        >>> choose_rate(train, [1.0, 3.0], 5)["rates"]
        [1.0, 3.0, 9.0, 27.0]
    """
    tried: dict[float, tuple[float, bool]] = {}

    def extend(more: Sequence[float]) -> None:
        found = train(more)
        tried.update(zip(more, zip(found["final"], found["diverged"], strict=True), strict=True))

    def best() -> float:
        return min(sorted(tried), key=lambda r: math.inf if tried[r][1] else tried[r][0])

    extend(rates)
    ordered = sorted(rates)
    factor = ordered[1] / ordered[0] if len(ordered) > 1 else FACTOR
    for _ in range(extensions):
        if best() == max(tried) and not tried[best()][1]:
            extend([float(f"{max(tried) * factor:.3g}")])
        elif best() == min(tried):
            extend([float(f"{min(tried) / factor:.3g}")])
        else:
            break
    ordered = sorted(tried)
    return {
        "rate": best(),
        "rates": ordered,
        "final": [tried[rate][0] for rate in ordered],
        "diverged": [tried[rate][1] for rate in ordered],
    }
