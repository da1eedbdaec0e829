"""Families of predictors, each by the member that is best where it learns.

Nothing of what is tested has a say: in every fold the member of a family, and its interval, are
chosen by the rows to learn on alone, and for each bootstrap sample they are chosen anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from hessinit_book.statistics.prediction import (
    REPETITIONS,
    Counts,
    Estimate,
    best_intervals,
    resampled,
)

Rows = Bool[np.ndarray, " n"]
Folds = Sequence[tuple[Rows, Rows]]
"""Rows to learn on and rows to test on, fold by fold."""

RARE = 0.05
"""A fold tells nothing if one of the two outcomes has a smaller share of its test rows."""


@dataclass(frozen=True)
class Trial:
    """What predictors are put to.

    Attributes:
        truth: the outcome of each row.
        units: the unit of each row, numbered from 0; what the bootstrap draws.
        folds: rows to learn on and rows to test on.

    Raises:
        ValueError: a row is used for both.
    """

    truth: Rows
    units: Int[np.ndarray, " n"]
    folds: Folds

    def __post_init__(self) -> None:
        if any((learn & test).any() for learn, test in self.folds):
            raise ValueError("a row is used to learn and to test: expected rows apart")

    @cached_property
    def counts(self) -> Counts:
        """How often each unit is in each sample."""
        return resampled(int(self.units.max()) + 1, REPETITIONS)

    @cached_property
    def telling(self) -> list[bool]:
        """Whether the test rows of a fold have both outcomes, none of them rare."""
        shares = [self.truth[test].mean() if test.any() else 0.0 for _, test in self.folds]
        return [RARE <= share <= 1 - RARE for share in shares]


@dataclass(frozen=True)
class Score:
    """How well a predictor, or the best of a family, foretells what it has not seen.

    Attributes:
        chosen: the predictor of each fold that tells something.
        accuracies: balanced accuracy over the test rows of these folds: of all data, then of
            each sample; NaN where an outcome is missing.
    """

    chosen: tuple[str, ...]
    accuracies: Float[np.ndarray, " samples"]

    def estimate(self, comparisons: int = 1) -> Estimate:
        """Give the balanced accuracy, see `Estimate.of`."""
        return Estimate.of(self.accuracies, comparisons)

    def ahead_of(self, other: Score, comparisons: int = 1) -> Estimate:
        """Give how far it is ahead of another's, with the interval of the difference."""
        return Estimate.of(self.accuracies - other.accuracies, comparisons)

    @property
    def most_chosen(self) -> str:
        """The predictor that is chosen in most folds; empty if no fold tells anything."""
        return Counter(self.chosen).most_common(1)[0][0] if self.chosen else ""


class Judged:
    """Predictors, each with what it learns and foretells in each fold and sample.

    Args:
        predictors: numbers by name, one for each row.
        trial: what they are put to.

    Example:
        >>> x = np.arange(8.0)
        >>> odd = x % 2 == 1
        >>> trial = Trial(x > 3, np.arange(8), [(odd, ~odd)])
        >>> judged = Judged({"x": x, "none": 0 * x}, trial)
        >>> best = judged.best(["none", "x"])
        >>> best.chosen, best.estimate().value, best.ahead_of(judged.best(["none"])).value
        (('x',), 1.0, 0.5)
    """

    def __init__(self, predictors: Mapping[str, Float[np.ndarray, " n"]], trial: Trial) -> None:
        self._folds = [
            _Fold(predictors, trial, *fold)
            for fold, tells in zip(trial.folds, trial.telling, strict=True)
            if tells
        ]
        self._samples = len(trial.counts)

    def best(self, members: Iterable[str]) -> Score:
        """Score a family: in each fold and sample, by the member that fits best where it learns.

        Args:
            members: names of predictors; of those that fit equally well, the first.
        """
        names = list(members)
        right, of = np.zeros((2, self._samples, 2))
        chosen = []
        for fold in self._folds:
            best = np.argmax([fold.fit[name] for name in names], axis=0)
            right += np.take_along_axis(
                np.array([fold.right[name] for name in names]), best[None, :, None], 0
            )[0]
            of += fold.of
            chosen.append(names[best[0]])
        with np.errstate(invalid="ignore"):
            return Score(tuple(chosen), (right / of).mean(1))


class _Fold:
    """What predictors learn on some rows, and how often they are right on others.

    Attributes:
        fit: of each predictor in each sample, see `Intervals`.
        right: of each, how many test rows with and without the outcome it gets right.
        of: how many there are.
    """

    def __init__(
        self,
        predictors: Mapping[str, Float[np.ndarray, " n"]],
        trial: Trial,
        learn: Rows,
        test: Rows,
    ) -> None:
        truth, units, counts = trial.truth, trial.units, trial.counts
        self.fit: dict[str, Float[np.ndarray, " samples"]] = {}
        self.right: dict[str, Float[np.ndarray, "samples outcome"]] = {}
        parts = [
            (counts[:, unit], *(test & (units == unit) & (truth == c) for c in (True, False)))
            for unit in set(units[test])
        ]
        self.of = np.zeros((len(counts), 2))
        for times, with_it, without in parts:
            self.of += times[:, None] * [with_it.sum(), without.sum()]
        for name, x in predictors.items():
            low, high, self.fit[name] = best_intervals(x[learn], truth[learn], units[learn], counts)
            right = np.zeros((len(counts), 2))
            for times, with_it, without in parts:
                right[:, 0] += times * _inside(x[with_it], low, high)
                right[:, 1] += times * (without.sum() - _inside(x[without], low, high))
            self.right[name] = right


def _inside(
    x: Float[np.ndarray, " m"],
    low: Float[np.ndarray, " samples"],
    high: Float[np.ndarray, " samples"],
) -> Int[np.ndarray, " samples"]:
    """Count the numbers inside each interval."""
    x = np.sort(x)
    return np.maximum(np.searchsorted(x, high, "right") - np.searchsorted(x, low, "left"), 0)
