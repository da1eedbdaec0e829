"""Numbers of a record computed again: equal, rounding errors, trained, or not compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hessinit_book.records import records, repeatability
from hessinit_book.records.comparison import Comparison, compare, in_words
from hessinit_book.records.records import DatasetInfo, Record
from hessinit_book.records.repeatability import Rule, rule_for

ROOT = Path(__file__).resolve().parent.parent
DATASET = DatasetInfo(name="MNIST", kind="sample", train_size=20, test_size=5, sha256="ab")


def record(values: dict[str, Any], device: str = "cpu: one", **changes: Any) -> Record:
    fields = {
        "experiment": "trial",
        "profile": "paper",
        "seed": 0,
        "parameters": {},
        "dataset": DATASET,
        "device": device,
        "versions": {"torch": "2"},
        "commit": None,
        "code": "ab",
        "finished": "2026-01-01T00:00:00+00:00",
        "duration_s": 1.0,
        "values": values,
    }
    return Record(**{**fields, **changes})


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = (
        Rule("rounding", "error.*", below=1e-9),
        Rule("trained", "loss.*"),
        Rule("timing", "*.seconds"),
    )
    monkeypatch.setitem(repeatability._RULES, "trial", chosen)


@pytest.mark.parametrize(
    ("then", "now", "different"),
    [
        (1.0, 1.005, 0),
        (1.0, 1.02, 1),
        (1, 2, 1),
        (math.nan, math.nan, 0),
        (math.nan, 1.0, 1),
        (math.inf, math.inf, 0),
        (math.inf, -math.inf, 1),
        (math.inf, 1.0, 1),
        (True, 1, 0),
        (True, False, 1),
        ("he", "she", 1),
        ([1.0, 1e-6], [1.0, -1e-6], 0),
        ([1.0, 1e-3], [1.0, -1e-3], 1),
        ([1.0], [1.0, 2.0], 1),
        ({"a": 1}, {"b": 1}, 1),
        (None, 0.0, 1),
    ],
)
def test_exact_is_within_a_hundredth(then: Any, now: Any, different: int) -> None:
    found = compare(record({"x": then}), record({"x": now}, "cpu: another"))
    assert len(found.differences) == different
    assert all(str(d).startswith("values.x") for d in found.differences)


def test_the_largest_difference_is_kept() -> None:
    found = compare(record({"a": 1.0, "b": [2.0, 5.0]}), record({"a": 1.001, "b": [2.0, 5.02]}))
    assert (found.where, found.counts) == ("values.b.1", {"exact": 3})
    assert found.largest == pytest.approx(0.02 / 5.02)
    same = compare(record({"a": 1.0}), record({"a": 1.0}))
    assert (same.where, same.largest) == (None, 0.0)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    ("then", "now", "kind"),
    [
        (1e-16, 3e-16, "rounding"),
        (0.0, -9e-10, "rounding"),
        (1e-16, 2e-9, None),
        (1e-16, math.nan, None),
        (0.3, 0.301, "exact"),  # no rounding error
        (0.3, 1e-16, None),
    ],
)
def test_rounding_errors_stay_below_their_bound(then: float, now: float, kind: str | None) -> None:
    found = compare(record({"error": {"a": then}}), record({"error": {"a": now}}))
    assert found.counts == ({kind: 1} if kind else {})
    assert len(found.differences) == (kind is None)


@pytest.mark.usefixtures("rules")
def test_timings_are_not_compared() -> None:
    found = compare(record({"he": {"seconds": 1.0}}), record({"he": {"seconds": 9.0}}))
    assert found == Comparison(counts=found.counts)
    assert found.counts == {"timing": 1}


@pytest.mark.usefixtures("rules")
def test_texts_that_follow_training_are_compared_on_the_same_processor() -> None:
    then = record({"loss": {"nearest": "prince"}})
    found = compare(then, record({"loss": {"nearest": "duke"}}, "cpu: another"), [then])
    assert (found.differences, found.counts) == ([], {"text": 1})
    here = compare(then, record({"loss": {"nearest": "duke"}}), [then])
    assert [str(d) for d in here.differences] == [
        "values.loss.nearest: 'prince' in the record, 'duke' now"
    ]
    other = compare(then, record({"loss": {"nearest": 3}}, "cpu: another"), [then])
    assert len(other.differences) == 1


def trained(now: list[float], seeds: list[list[float]], **changes: Any) -> Comparison:
    given = [record({"loss": {"a": row}}, seed=k) for k, row in enumerate(seeds)]
    return compare(given[0], record({"loss": {"a": now}}, **changes), given)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    "changes", [{"device": "cpu: another"}, {"code": "cd"}, {"versions": {"torch": "3"}}]
)
def test_trained_numbers_lie_in_the_range_of_the_seeds(changes: dict[str, Any]) -> None:
    seeds = [[1.0] * 12 + [math.inf], [2.0] * 13]  # widened: 0 to 3, or infinite

    def differences(now: list[float]) -> int:
        return len(trained([*now, math.inf], seeds, **changes).differences)

    assert trained([2.9] * 12 + [math.inf], seeds, **changes).counts == {"trained": 13}
    assert differences([3.1] + [2.9] * 11) == 0
    assert differences([3.1] * 2 + [2.9] * 10) == 0  # two of twelve: one in ten, rounded up
    assert differences([3.1] * 3 + [2.9] * 9) == 3
    assert differences([3.1] * 2 + [1.0] * 10) == 2  # what agrees makes no room for the others


@pytest.mark.usefixtures("rules")
def test_trained_numbers_are_exact_where_all_is_the_same() -> None:
    assert len(trained([1.5], [[1.0], [2.0]]).differences) == 1
    assert trained([1.5], [[1.0], [2.0]]).counts == {}


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(("now", "different"), [([2.09, 1.91], 0), ([2.11, 1.89], 2)])
def test_where_seeds_lie_close_the_range_is_five_percent(now: list[float], different: int) -> None:
    found = trained(now, [[2.0, 2.0], [2.0, 2.0]], device="cpu: another")
    assert len(found.differences) == different


@pytest.mark.usefixtures("rules")
def test_a_trained_number_does_not_diverge_where_no_seed_did() -> None:
    many = trained([math.inf, math.nan, 9.0], [[1.0] * 3, [2.0] * 3], device="cpu: another")
    assert len(many.differences) == 3


def test_every_rule_is_of_use() -> None:
    """Each pattern matches numbers of the committed records; none is behind another."""
    for experiment, rules in repeatability._RULES.items():
        if not (ROOT / "results" / "paper" / experiment).is_dir():
            continue
        found = records.read_all(ROOT / "results", "paper", experiment)
        comparison = compare(found[0], found[0])
        assert comparison.differences == []
        used = {rule_for(experiment, key) for key in keys(found[0].values)}
        assert set(rules) <= used, experiment


def keys(node: Any, key: str = "") -> list[str]:
    inner = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for name, value in inner:
        where = f"{key}.{name}" if key else str(name)
        found += keys(value, where) if isinstance(value, dict | list) else [where]
    return found


def test_in_words() -> None:
    assert in_words({"exact": 2, "timing": 1}) == "2 values within 1%, 1 timings not compared"
