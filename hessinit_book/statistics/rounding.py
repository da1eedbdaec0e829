"""Rounding of what goes into records: they stay small, and claim no digits that are noise."""

from __future__ import annotations

from collections.abc import Iterable


def rounded(value: float, digits: int = 6) -> float:
    """Keep some significant digits.

    Example:
        >>> rounded(0.123456789), rounded(123456.789, 3), rounded(float("inf"))
        (0.123457, 123000.0, inf)
    """
    return float(f"{value:.{digits}g}")


def all_rounded(values: Iterable[float], digits: int = 6) -> list[float]:
    """Keep some significant digits of each value.

    Example:
        >>> all_rounded([1 / 3, 2.0], digits=2)
        [0.33, 2.0]
    """
    return [rounded(value, digits) for value in values]
