"""Means over seeds with their 95 % intervals, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % points by degrees of freedom. Between these, that of fewer, which is wider.
_STUDENT = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 15: 2.131, 20: 2.086, 30: 2.042,
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; NaN where there is none.

    Attributes:
        mean: the mean.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Take Student's interval over seeds; none of a single seed.

        Example:
            >>> Interval.of([1.0, 2.0, 3.0])  # doctest: +ELLIPSIS
            Interval(mean=2.0, low=-0.484..., high=4.484...)
        """
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean)
        student = min(point for freedom, point in _STUDENT.items() if freedom < count)
        reach = student * float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(mean, mean - reach, mean + reach)

    @property
    def reach(self) -> float:
        """How far the ends are from the mean."""
        return self.high - self.mean

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0
