"""Means over seeds with their 95 % intervals, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, of 95 % if nothing else is said; NaN where there is none.

    Attributes:
        mean: the mean.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float], level: float = 0.95) -> Interval:
        """Take Student's interval over seeds; none of a single seed.

        Args:
            values: one for each seed.
            level: the probability with which it holds the true mean.

        Example:
            >>> Interval.of([1.0, 2.0, 3.0])  # doctest: +ELLIPSIS
            Interval(mean=2.0, low=-0.484..., high=4.484...)
        """
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean)
        student = float(stats.t.ppf((1 + level) / 2, count - 1))
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
