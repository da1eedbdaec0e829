"""Predictors are judged on what neither they nor the choice among them has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hessinit_book.chapters.mnist_depth import scores as mnist_depth
from hessinit_book.chapters.mnist_depth.predictors import PREDICTORS, members
from hessinit_book.records import records
from hessinit_book.records.stamps import ROOT
from hessinit_book.statistics import families
from hessinit_book.statistics.families import Judged, Trial
from hessinit_book.statistics.prediction import (
    Estimate,
    best_interval,
    best_intervals,
    resampled,
    spearman,
    spearman_of_samples,
)

# A second implementation: plain loops over rows, each written out as often as its unit is drawn.

Row = tuple[float, bool]


def plain_interval(rows: Sequence[Row]) -> tuple[float, float, float]:
    true, false = (sum(truth is kind for _, truth in rows) for kind in (True, False))
    if not true or not false:
        return -math.inf, math.inf, 0.0
    values = sorted({x for x, _ in rows})
    sums, total = [0], 0
    for value in values:
        total += sum(false if truth else -true for x, truth in rows if x == value)
        sums.append(total)
    best, chosen = -math.inf, (0, 0)
    lowest = 0
    for end in range(len(values)):
        if sums[end] < sums[lowest]:
            lowest = end
        if sums[end + 1] - sums[lowest] > best:
            best, chosen = sums[end + 1] - sums[lowest], (lowest, end)
    start, end = chosen
    low = (values[start - 1] + values[start]) / 2 if start else -math.inf
    high = (values[end] + values[end + 1]) / 2 if end + 1 < len(values) else math.inf
    return low, high, best / (true * false)


def plain_accuracy(
    numbers: dict[str, np.ndarray], trial: Trial, times: Sequence[int]
) -> tuple[float, list[str]]:
    right, of, chosen = {True: 0, False: 0}, {True: 0, False: 0}, []
    for learn, test in trial.folds:
        outcomes = [bool(t) for t, tested in zip(trial.truth, test, strict=True) if tested]
        share = sum(outcomes) / len(outcomes)
        if share < 0.05 or share > 0.95:
            continue
        best = ("", -math.inf, math.inf, -math.inf)
        for name, x in numbers.items():
            rows = [
                (float(x[i]), bool(trial.truth[i]))
                for i in range(len(x))
                for _ in range(times[trial.units[i]] if learn[i] else 0)
            ]
            low, high, fit = plain_interval(rows)
            if fit > best[3]:
                best = (name, low, high, fit)
        name, low, high, _ = best
        chosen.append(name)
        for i in np.flatnonzero(test):
            truth, often = bool(trial.truth[i]), times[trial.units[i]]
            of[truth] += often
            right[truth] += often * (bool(low <= numbers[name][i] <= high) == truth)
    if not of[True] or not of[False]:
        return math.nan, chosen
    return (right[True] / of[True] + right[False] / of[False]) / 2, chosen


def by_unit(units: np.ndarray, parts: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(units % parts != k, units % parts == k) for k in range(parts)]


@pytest.mark.parametrize("seed", range(4))
def test_a_plain_implementation_finds_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "REPETITIONS", 12)
    rng = np.random.default_rng(seed)
    units = rng.permutation(np.repeat(np.arange(7), 9))
    truth = rng.random(len(units)) < 0.4
    # Few distinct numbers, so that many are equal, and infinite ones.
    numbers = {str(k): rng.integers(0, 3 + 4 * k, len(units)) + 1.0 * truth for k in range(4)}
    numbers["0"][:3] = -math.inf
    trial = Trial(truth, units, by_unit(units, 3))
    score = Judged(numbers, trial).best(numbers)
    expected = [plain_accuracy(numbers, trial, times) for times in trial.counts]
    assert score.chosen == tuple(expected[0][1])
    np.testing.assert_allclose(score.accuracies, [value for value, _ in expected], rtol=1e-12)


@pytest.mark.parametrize("experiment", ["mnist_depth", "fashion_depth"])
def test_the_committed_contest_is_what_a_plain_implementation_finds(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "REPETITIONS", 1)
    found = records.read_all(ROOT / "results", "paper", experiment)
    table = mnist_depth.networks(found, max(found[0].parameters["learning_rates"]))
    names = ("Hessian", "gradient", "variance")
    scores = mnist_depth.contest(table, "activation", names)
    trial = mnist_depth.trial(table, "activation")
    for name in names:
        numbers = {member: PREDICTORS[member].of(table) for member in members(name)}
        for sample, times in enumerate(trial.counts):
            value, chosen = plain_accuracy(numbers, trial, times)
            assert scores[name].accuracies[sample] == pytest.approx(value, rel=1e-12)
            assert sample or scores[name].chosen == tuple(chosen)


def test_choosing_among_noise_shows_no_advantage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member chosen on the folds together, which have every row, would be ahead."""
    monkeypatch.setattr(families, "REPETITIONS", 60)
    leaking, nested, clear = [], [], 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        units = np.repeat(np.arange(8), 6)
        numbers = {str(k): rng.random(len(units)) for k in range(12)}
        truth, folds = rng.random(len(units)) < 0.5, by_unit(units, 4)
        judged = Judged(numbers, Trial(truth, units, folds))
        once = np.ones((1, 8), int)
        fits = {
            name: sum(best_intervals(x[r], truth[r], units[r], once).fit[0] for r, _ in folds)
            for name, x in numbers.items()
        }
        alone = judged.best(["0"])
        leaking.append(judged.best([max(fits, key=fits.__getitem__)]).ahead_of(alone).value)
        lead = judged.best(numbers).ahead_of(alone)
        nested.append(lead.value)
        clear += lead.low > 0
    assert np.mean(leaking) > 0.1
    assert abs(np.mean(nested)) < 0.05
    assert clear == 0


@pytest.mark.parametrize(
    ("trains", "tells"),
    [(0, False), (1, False), (2, True), (38, True), (39, False), (40, False)],
)
def test_a_fold_with_one_outcome_is_left_out(trains: int, tells: bool) -> None:
    rng = np.random.default_rng(0)
    fold = np.repeat([0, 1, 2], 40)
    truth = rng.random(120) < 0.5
    truth[80:] = np.arange(40) < trains
    x = truth + 0.8 * rng.random(120)
    x[80:] = 0.0
    rows = [(fold != k, fold == k) for k in range(3)]
    trial = Trial(truth, fold, rows)
    assert trial.telling == [True, True, tells]
    score = Judged({"x": x}, trial).best(["x"])
    without = Judged({"x": x}, Trial(truth, fold, rows[:2])).best(["x"])
    assert len(score.chosen) == 2 + tells
    assert np.array_equal(score.accuracies, without.accuracies, equal_nan=True) == (not tells)


def test_where_all_end_alike_nothing_is_told() -> None:
    units = np.arange(6)
    trial = Trial(np.ones(6, bool), units, by_unit(units, 2))
    score = Judged({"x": units * 1.0}, trial).best(["x"])
    assert score.chosen == ()
    assert score.most_chosen == ""
    assert math.isnan(score.estimate().value)
    assert math.isnan(score.estimate().low)


def test_no_row_is_used_to_learn_and_to_test() -> None:
    everything = np.ones(4, bool)
    with pytest.raises(ValueError, match="used to learn and to test"):
        Trial(everything, np.arange(4), [(everything, everything)])


# Intervals of a number


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=9))
def test_best_interval_is_the_best(rows: list[tuple[int, bool]]) -> None:
    x, truth = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    if truth.all() or not truth.any():
        assert best_interval(x, truth) == (-math.inf, math.inf)
        return

    def fit(low: float, high: float) -> float:
        inside = (low <= x) & (x <= high)
        return inside[truth].mean() - inside[~truth].mean()

    found = fit(*best_interval(x, truth))
    assert found >= max(fit(a, b) for a in range(7) for b in range(a, 7)) - 1e-12


def test_nothing_to_learn_from_gives_all_numbers() -> None:
    none = np.zeros(0)
    assert best_interval(none, none.astype(bool)) == (-math.inf, math.inf)
    # Nor is there anything in a sample without the units that have one of the outcomes.
    x, truth, units = np.arange(4.0), np.array([True, True, False, False]), np.array([0, 0, 1, 1])
    found = best_intervals(x, truth, units, np.array([[1, 1], [2, 0], [0, 2], [0, 0]]))
    assert found.low.tolist() == [-math.inf] * 4
    assert found.high.tolist() == [1.5, *[math.inf] * 3]
    assert found.fit.tolist() == [1.0, 0.0, 0.0, 0.0]


# Uncertainty


def test_units_are_drawn_whole_after_the_data_as_they_are() -> None:
    counts = resampled(5, repetitions=20)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 5).all()
    assert len(np.unique(counts, axis=0)) > 3


def test_intervals_that_are_read_together_are_wider() -> None:
    samples = np.concatenate([[0.5], np.linspace(0, 1, 1001)])
    assert str(Estimate.of(samples)) == "0.50 [0.03, 0.97]"
    # Each of five is a 99 % interval.
    assert Estimate.of(samples, 5).low == pytest.approx(0.005)


def test_rank_correlations_of_samples() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 30) * 1.0, rng.random(30)
    y[:3] = math.inf
    units = np.repeat(np.arange(6), 5)
    counts = resampled(6, repetitions=9)
    times = counts[:, units]
    expected = [spearman(np.repeat(x, row), np.repeat(y, row)) for row in times]
    found = spearman_of_samples(x, y, units, counts)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isnan(spearman_of_samples(np.zeros(30), y, units, counts)).all()


def test_spearman_against_numpy() -> None:
    x, y = np.random.default_rng(0).random((2, 30))
    expected = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    assert spearman(x, y) == pytest.approx(expected)
    assert math.isnan(spearman(x, np.ones(30)))
