"""How well one number predicts an outcome: rank correlation, learned intervals, uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

REPETITIONS = 200
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval.

    Attributes:
        value: from all data.
        low: 2.5 % point of the resampled figures.
        high: 97.5 % point.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def resampled(
    clusters: Int[np.ndarray, " n"], repetitions: int = REPETITIONS, seed: int = 0
) -> Int[np.ndarray, "repetitions n"]:
    """Draw clusters with replacement, and say how often each row counts.

    Rows of a cluster (the seeds of one setting, say) are near copies of each other: to resample
    rows would make intervals too narrow.

    Args:
        clusters: the cluster of each row, numbered from 0.
        repetitions: number of samples.
        seed: of the draws.

    Example:
        >>> resampled(np.array([0, 0, 1]), repetitions=2).shape
        (2, 3)
    """
    count = int(clusters.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, repetitions)
    return drawn[:, clusters]


def with_interval(value: float, samples: Float[np.ndarray, " r"]) -> Estimate:
    """Put a figure together with the interval of its resampled values; NaN if all of them are."""
    if np.isnan(samples).all():
        return Estimate(float(value), math.nan, math.nan)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high))


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


def spearman_with_interval(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> Estimate:
    """Compute the rank correlation and its bootstrap interval over clusters."""
    counts = resampled(clusters)
    samples = np.array([spearman(np.repeat(x, c), np.repeat(y, c)) for c in counts])
    return with_interval(spearman(x, y), samples)


def balanced_accuracy(
    predicted: Bool[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    counts: Int[np.ndarray, "... n"] | None = None,
) -> Float[np.ndarray, ...]:
    """Average the shares of rightly predicted positives and negatives: guessing gives 1/2.

    Args:
        predicted: shape (n,).
        truth: shape (n,).
        counts: how often each row counts, shape (..., n); once if None.

    Returns:
        Shape (...); NaN where one of the two classes is empty.

    Example:
        >>> balanced_accuracy(np.array([True, True, False]), np.array([True, False, False]))
        array(0.75)
    """
    weights = np.ones(len(truth)) if counts is None else counts
    with np.errstate(invalid="ignore"):
        shares = [
            np.asarray((weights * (predicted == truth) * (truth == c)).sum(-1))
            / np.asarray((weights * (truth == c)).sum(-1))
            for c in (True, False)
        ]
    return np.asarray((shares[0] + shares[1]) / 2)


def best_interval(x: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """Learn the interval of a number inside which the outcome is predicted to be true.

    Of all intervals, the one with the largest balanced accuracy: sorted by the number, the
    stretch with the largest sum of scores, 1/positives for each true outcome and -1/negatives
    for each other. Bounds lie halfway to the next number outside.

    Args:
        x: the number, shape (n,); equal numbers stay together.
        truth: the outcome, shape (n,).

    Returns:
        Low and high; an infinite bound where nothing lies outside, so that nothing to learn
        from gives all numbers.

    Example:
        >>> best_interval(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, True, False]))
        (1.5, 3.5)
    """
    if not len(x):
        return -math.inf, math.inf
    positives, negatives = max(truth.sum(), 1), max((~truth).sum(), 1)
    values, inverse = np.unique(x, return_inverse=True)
    scores = np.bincount(inverse, np.where(truth, 1 / positives, -1 / negatives))
    before = np.concatenate([[0.0], np.cumsum(scores)])
    lowest = np.minimum.accumulate(before)[:-1]
    end = int(np.argmax(before[1:] - lowest))
    start = int(np.argmin(before[: end + 1]))
    low = -math.inf if start == 0 else _between(values[start - 1], values[start])
    high = math.inf if end == len(values) - 1 else _between(values[end], values[end + 1])
    return low, high


def predict_apart(
    x: Float[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    folds: Sequence[tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]],
) -> tuple[Bool[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Learn an interval on some rows and predict others, fold by fold.

    Args:
        x: the number.
        truth: the outcome.
        folds: rows to learn on, and rows to test on.

    Returns:
        The predictions of all test rows, and which rows these are.

    Raises:
        ValueError: a row is used for both.
    """
    predicted, rows = [], []
    for learn, test in folds:
        if (learn & test).any():
            raise ValueError("a row is used to learn and to test: expected rows apart")
        low, high = best_interval(x[learn], truth[learn])
        predicted.append((low <= x[test]) & (x[test] <= high))
        rows.append(np.flatnonzero(test))
    return np.concatenate(predicted), np.concatenate(rows)


def _between(a: float, b: float) -> float:
    middle = (a + b) / 2
    return float(middle) if math.isfinite(middle) else float(a if math.isfinite(a) else b)
