"""Two families of predictors side by side, each by the member that is best where it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from hessinit_book.statistics.prediction import (
    Estimate,
    balanced_accuracy,
    best_interval,
    predict_apart,
    resampled,
    with_interval,
)

Rows = Bool[np.ndarray, " n"]
Folds = Sequence[tuple[Rows, Rows]]
"""Rows to learn on and rows to test on, fold by fold."""


@dataclass(frozen=True)
class Contest:
    """The best predictors of two families, and how far one is ahead.

    Attributes:
        first: name of the one family's predictor.
        second: name of the other's.
        score: balanced accuracy of the first on the rows tested.
        ahead: how far it is above the second's.
    """

    first: str
    second: str
    score: Estimate
    ahead: Estimate


def compare(
    family: Mapping[str, Float[np.ndarray, " n"]],
    other: Mapping[str, Float[np.ndarray, " n"]],
    truth: Bool[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"],
    folds: Folds,
) -> Contest:
    """Let the best of two families predict what they have not seen.

    The member of each family is chosen by how well its interval fits the rows it is learned on:
    the rows tested have no say. The same clusters are resampled for both, so that the interval
    is one of the difference.

    Args:
        family: numbers by name, shape (n,) each.
        other: the same, of the other family.
        truth: the outcome, shape (n,).
        clusters: rows that are near copies share one, numbered from 0; shape (n,).
        folds: rows to learn on and to test on.

    Example:
        >>> x = np.arange(8.0)
        >>> odd = x % 2 == 1
        >>> found = compare({"x": x}, {"none": 0 * x}, x > 3, np.arange(8), [(odd, ~odd)])
        >>> found.first, found.score.value, found.ahead.value
        ('x', 1.0, 0.5)
    """
    counts = resampled(clusters)
    names, values, samples = [], [], []
    for members in (family, other):
        best = max(members, key=lambda name: _fit(members[name], truth, folds))
        predicted, rows = predict_apart(members[best], truth, folds)
        names.append(best)
        values.append(float(balanced_accuracy(predicted, truth[rows])))
        samples.append(balanced_accuracy(predicted, truth[rows], counts[:, rows]))
    return Contest(
        names[0],
        names[1],
        with_interval(values[0], samples[0]),
        with_interval(values[0] - values[1], samples[0] - samples[1]),
    )


def _fit(x: Float[np.ndarray, " n"], truth: Rows, folds: Folds) -> float:
    """Score an interval on the very rows it is learned on."""
    found = []
    for learn, _ in folds:
        low, high = best_interval(x[learn], truth[learn])
        inside = (low <= x[learn]) & (x[learn] <= high)
        found.append(float(balanced_accuracy(inside, truth[learn])))
    return float(np.mean(found))
