"""How well one number predicts an outcome: rank correlation, learned intervals, uncertainty.

Uncertainty is a bootstrap over units, which are drawn with replacement: all rows of a unit (of the
networks of one shape, say) come or go together. Each figure is computed anew for every sample, with
what it rests on learned anew, for all samples at once: `counts` says how often each unit is in each
of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

REPETITIONS = 4000
LEVEL = 0.95
_AT_ONCE = 256  # samples: what fits into a cache

Counts = Int[np.ndarray, "samples units"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval.

    Attributes:
        value: from all data.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def signed(self) -> str:
        """Write a difference.

        Example:
            >>> Estimate(0.1, -0.05, 0.25).signed(), Estimate(-0.001, -0.1, 0.1).signed()
            ('+0.10 [-0.05, +0.25]', '+0.00 [-0.10, +0.10]')
        """
        ends = (self.value, self.low, self.high)
        value, low, high = (f"{round(end, 2) + 0.0:+.2f}" for end in ends)  # no -0.00
        return f"{value} [{low}, {high}]"

    @classmethod
    def of(cls, samples: Float[np.ndarray, " samples"], comparisons: int = 1) -> Estimate:
        """Take the figure of all data, the first of the samples, and the interval of the others.

        Args:
            samples: see `resampled`; NaN where a sample says nothing.
            comparisons: how many intervals are read together. Each is widened (Bonferroni), so
                that with 95 % probability all of them hold.

        Example:
            >>> str(Estimate.of(np.array([0.5, 0.0, 1.0, np.nan])))
            '0.50 [0.03, 0.97]'
        """
        if np.isnan(samples[1:]).all():
            return cls(float(samples[0]), math.nan, math.nan)
        tail = 100 * (1 - LEVEL) / 2 / comparisons
        low, high = np.nanpercentile(samples[1:], [tail, 100 - tail])
        return cls(float(samples[0]), float(low), float(high))


class Intervals(NamedTuple):
    """What is learned from each sample.

    Attributes:
        low: lower bounds of the numbers for which the outcome is predicted to be true.
        high: upper bounds.
        fit: share of true outcomes inside less that of the others, in the rows learned from;
            the balanced accuracy there is (1 + fit) / 2.
    """

    low: Float[np.ndarray, " samples"]
    high: Float[np.ndarray, " samples"]
    fit: Float[np.ndarray, " samples"]


def resampled(units: int, repetitions: int = REPETITIONS, seed: int = 0) -> Counts:
    """Draw units with replacement, and say how often each of them is in each sample.

    Args:
        units: their number.
        repetitions: number of samples that are drawn.
        seed: of the draws.

    Returns:
        First all units once: the data as they are; then the samples.

    Example:
        >>> resampled(3, repetitions=2).sum(1)
        array([3, 3, 3])
    """
    drawn = np.random.default_rng(seed).multinomial(units, [1 / units] * units, repetitions)
    return np.concatenate([np.ones((1, units), drawn.dtype), drawn])


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Compute the rank correlation; ties share their mean rank, infinities are the extremes.

    Returns:
        Between -1 and 1; NaN where one of the two is constant, or there are none.

    Source: Spearman (1904).

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([0.1, np.inf, 5.0]))
        0.5
    """
    if not len(x) or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    found: Any = stats.spearmanr(x, y)  # its type has no names for its fields
    return float(found.statistic)


def spearman_of_samples(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    units: Int[np.ndarray, " n"],
    counts: Counts,
) -> Float[np.ndarray, " samples"]:
    """Compute the rank correlation of each sample, see `spearman`.

    Args:
        x: numbers.
        y: others.
        units: the unit of each row.
        counts: of the units.
    """
    weights = counts[:, units].astype(float)
    (x, squares_x), (y, squares_y) = (_ranks(values, units, counts) for values in (x, y))
    with np.errstate(invalid="ignore"):
        return (weights * x * y).sum(1) / np.sqrt(squares_x * squares_y)


def _ranks(
    values: Float[np.ndarray, " n"], units: Int[np.ndarray, " n"], counts: Counts
) -> tuple[Float[np.ndarray, "samples n"], Float[np.ndarray, " samples"]]:
    """Give ranks less their mean, in each sample, and the sum of their squares."""
    distinct, at = np.unique(values, return_inverse=True)
    there = counts @ _table(units, at, counts.shape[1], len(distinct))
    ranks = np.cumsum(there, 1) - there / 2  # the mean rank of equal values, less a half
    ranks -= there.sum(1, keepdims=True) / 2
    return ranks[:, at], (there * ranks**2).sum(1)


def best_interval(x: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """Learn the interval of a number inside which the outcome is predicted to be true.

    Args:
        x: the number, shape (n,).
        truth: the outcome, shape (n,).

    Returns:
        Low and high, see `best_intervals`.

    Example:
        >>> best_interval(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, True, False]))
        (1.5, 3.5)
    """
    low, high, _ = best_intervals(x, truth, np.zeros(len(x), int), np.ones((1, 1), int))
    return float(low[0]), float(high[0])


def best_intervals(
    x: Float[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    units: Int[np.ndarray, " n"],
    counts: Counts,
) -> Intervals:
    """Learn, from each sample, the interval inside which the outcome is predicted to be true.

    Of all intervals, the one with the largest balanced accuracy: sorted by the number, the
    stretch with the largest sum of scores, 1/positives for each true outcome and -1/negatives
    for each other. Bounds lie halfway to the next number outside. Of equally good stretches the
    one that ends first counts, and of these the longest.

    Args:
        x: the number; equal numbers stay together.
        truth: the outcome.
        units: the unit of each row.
        counts: of the units.

    Returns:
        An infinite bound where nothing lies outside; both, with a fit of zero, where there is
        nothing to learn: no row, or one outcome only.
    """
    if not len(x):
        return Intervals(*(np.full(len(counts), v) for v in (-math.inf, math.inf, 0.0)))
    run, size = _runs(x, truth), counts.shape[1]
    true, false = (
        _table(units[truth == c], run[truth == c], size, run.max() + 1) for c in (True, False)
    )
    first, last = _edges(x, units, run, size)
    parts = [
        _learn(counts[i : i + _AT_ONCE], true, false, first, last)
        for i in range(0, len(counts), _AT_ONCE)
    ]
    return Intervals(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _learn(
    counts: Counts,
    true: Float[np.ndarray, "units runs"],
    false: Float[np.ndarray, "units runs"],
    first: Float[np.ndarray, "units bounds"],
    last: Float[np.ndarray, "units bounds"],
) -> Intervals:
    """Find the best stretches of runs: their rows of each outcome by unit, and their edges."""
    true, false = counts @ true, counts @ false
    positives, negatives = true.sum(1), false.sum(1)
    # Whole numbers, so that equally good stretches are equal: scores times both numbers.
    scores = true * negatives[:, None] - false * positives[:, None]
    before = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(scores, 1)], 1)
    lowest = np.minimum.accumulate(before[:, :-1], 1)
    gains = np.where(true + false > 0, before[:, 1:] - lowest, -1)
    end, every = gains.argmax(1), np.arange(len(counts))
    start = (before[:, :-1] == lowest[every, end][:, None]).argmax(1)

    there = counts > 0
    outside = _outermost(last, there, start, np.fmax), _outermost(first, there, end + 1, np.fmin)
    inside = _outermost(first, there, start, np.fmin), _outermost(last, there, end + 1, np.fmax)
    told = (positives > 0) & (negatives > 0)
    return Intervals(
        np.where(told, _bound(outside[0], inside[0], -math.inf), -math.inf),
        np.where(told, _bound(outside[1], inside[1], math.inf), math.inf),
        np.where(told, gains[every, end] / np.maximum(positives * negatives, 1), 0.0),
    )


def _runs(x: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number the stretches of the sorted rows that no best interval divides."""
    at = np.unique(x, return_inverse=True)[1]
    shares = np.bincount(at, truth) / np.bincount(at)
    mixed = (shares > 0) & (shares < 1)
    new = (shares[1:] != shares[:-1]) | mixed[1:]
    return np.concatenate([[0], np.cumsum(new)])[at]


def _table(
    units: Int[np.ndarray, " n"], columns: Int[np.ndarray, " n"], size: int, width: int
) -> Float[np.ndarray, "units columns"]:
    """Count the rows of each unit in each column."""
    return np.bincount(units * width + columns, minlength=size * width).reshape(size, width) * 1.0


def _edges(
    x: Float[np.ndarray, " n"], units: Int[np.ndarray, " n"], run: Int[np.ndarray, " n"], size: int
) -> tuple[Float[np.ndarray, "units bounds"], Float[np.ndarray, "units bounds"]]:
    """Give each unit's first number from each run on, and its last one before it."""
    first, last = np.full((2, size, run.max() + 2), np.nan)
    np.fmin.at(first, (units, run), x)
    np.fmax.at(last, (units, run + 1), x)
    return np.fmin.accumulate(first[:, ::-1], 1)[:, ::-1], np.fmax.accumulate(last, 1)


def _outermost(
    table: Float[np.ndarray, "units bounds"],
    there: Bool[np.ndarray, "samples units"],
    at: Int[np.ndarray, " samples"],
    pick: np.ufunc,
) -> Float[np.ndarray, " samples"]:
    return pick.reduce(np.where(there, table[:, at].T, np.nan), axis=1)


def _bound(
    outside: Float[np.ndarray, " samples"], inside: Float[np.ndarray, " samples"], none: float
) -> Float[np.ndarray, " samples"]:
    """Put a bound between two numbers, at infinity where there is nothing outside."""
    with np.errstate(invalid="ignore"):
        middle = (outside + inside) / 2
    return np.where(np.isnan(outside), none, np.where(np.isfinite(middle), middle, inside))
