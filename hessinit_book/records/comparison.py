"""Two records of the same run, compared number by number by the rules of `repeatability.py`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hessinit_book.records.records import Record
from hessinit_book.records.repeatability import (
    EXACT,
    OUTSIDE,
    TEXT,
    TOLERANCE,
    WIDEN,
    Rule,
    rule_for,
)

# Numbers below this part of the largest one in their list count as equal.
FLOOR = 1e-5


class Difference(NamedTuple):
    """A number that came out otherwise: its key in the record, then and now."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.then!r} in the record, {self.now!r} now"


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        differences: what came out otherwise than the rules allow.
        counts: how many numbers (and texts) agreed by each rule.
        largest: the largest relative difference among numbers compared as exact.
        where: its key; None if all came out the very same.
    """

    differences: list[Difference] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    largest: float = 0.0
    where: str | None = None

    def summary(self) -> str:
        """Say by which rules how many numbers agreed."""
        return in_words(self.counts)


def in_words(counts: Mapping[str, int], tolerance: float = TOLERANCE) -> str:
    """Say by which rules how many numbers agreed.

    Example:
        >>> in_words({"exact": 1200, "rounding": 3})
        '1,200 values within 1%, 3 rounding errors below their bounds'
    """
    said = {
        "exact": f"values within {tolerance:.0%}",
        "rounding": "rounding errors below their bounds",
        "trained": f"numbers of training within {tolerance:.0%} or about the range of the seeds",
        "text": "texts that follow from them not compared",
        "timing": "timings not compared",
    }
    return ", ".join(
        f"{counts[kind]:,} {words}" for kind, words in said.items() if counts.get(kind)
    )


def compare(then: Record, now: Record, seeds: Sequence[Record] = ()) -> Comparison:
    """Compare a record with the same run computed again.

    Args:
        then: the record.
        now: the same experiment, parameters and seed, run again.
        seeds: all records of the experiment: what training gives from other seeds.
    """
    libraries = then.versions.keys() & now.versions.keys()
    same = (then.code, then.device) == (now.code, now.device) and all(
        then.versions[name] == now.versions[name] for name in libraries
    )
    found = Comparison()
    trained: dict[Rule, list[Difference]] = {}
    for key, a, b, floor in _leaves(then.values, now.values, ""):
        rule = _rule(then.experiment, key, a, b, same)
        pair = Difference(f"values.{key}", a, b)
        if rule.kind in ("timing", "text"):
            found.counts[rule.kind] += 1
        elif rule.kind == "trained" and not same:
            trained.setdefault(rule, []).append(pair)
        elif rule.kind == "rounding" and abs(a) <= rule.below:
            _count(found, pair, "rounding", abs(b) <= rule.below)
        else:
            _count(found, pair, "exact", agree(a, b, floor))
            gap = _gap(a, b, floor)
            if TOLERANCE >= gap > found.largest:
                found.largest, found.where = gap, pair.key
    for pairs in trained.values():
        apart = [pair for pair in pairs if not agree(pair.then, pair.now)]
        outside = [pair for pair in apart if not _in_range(pair, seeds)]
        few = len(outside) <= math.ceil(OUTSIDE * len(apart))
        found.counts["trained"] += len(pairs) - (0 if few else len(outside))
        found.differences += [] if few else outside
    return found


def _rule(experiment: str, key: str, then: Any, now: Any, same: bool) -> Rule:
    """Choose the rule for two values, by the same code on the same processor or not."""
    rule = rule_for(experiment, key)
    if _is_number(then) and _is_number(now):
        return rule
    texts = isinstance(then, str) and isinstance(now, str)
    return TEXT if texts and rule.kind == "trained" and not same else EXACT


def agree(then: Any, now: Any, floor: float = 0.0) -> bool:
    """Tell whether two values are equal; finite numbers: within `TOLERANCE` or both below a floor.

    Example:
        >>> agree(1.0, 1.005), agree(1.0, 1.02), agree(math.nan, math.nan), agree("he", "she")
        (True, False, True, False)
    """
    if _is_number(then) and _is_number(now):
        return _gap(then, now, floor) <= TOLERANCE
    return then == now


def _count(found: Comparison, pair: Difference, kind: str, agrees: bool) -> None:
    if agrees:
        found.counts[kind] += 1
    else:
        found.differences.append(pair)


def _gap(then: Any, now: Any, floor: float) -> float:
    """Give the relative difference of two numbers; 0 if both are below the floor."""
    if not (_is_number(then) and _is_number(now)):
        return 0.0
    if then == now or (math.isnan(then) and math.isnan(now)):
        return 0.0
    if not (math.isfinite(then) and math.isfinite(now)):
        return math.inf
    size = max(abs(then), abs(now))
    return 0.0 if size <= floor else abs(then - now) / size


def _in_range(pair: Difference, seeds: Sequence[Record]) -> bool:
    """Tell whether a trained number lies in the widened range of the seeds."""
    values = [value for seed in seeds if _is_number(value := _at(seed.values, pair.key))]
    if not math.isfinite(pair.now):
        return any(not math.isfinite(value) for value in values)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return False
    low, high = min(finite), max(finite)
    more = max(high - low, WIDEN * max(abs(low), abs(high)))
    return low - more <= pair.now <= high + more


def _at(values: Any, key: str) -> Any:
    node = values
    try:
        for part in key.split(".")[1:]:  # the first is "values"
            node = node[int(part)] if isinstance(node, list) else node[part]
    except (KeyError, IndexError, ValueError, TypeError):
        return None
    return node


def _leaves(
    then: Any, now: Any, key: str, floor: float = 0.0
) -> Iterator[tuple[str, Any, Any, float]]:
    """Walk through two trees of values at once; where they part, both branches are a leaf."""
    if isinstance(then, dict) and isinstance(now, dict) and then.keys() == now.keys():
        for name, value in then.items():
            yield from _leaves(value, now[name], f"{key}.{name}" if key else name)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        sizes = (abs(value) for value in then if _is_number(value) and math.isfinite(value))
        floor = FLOOR * max(sizes, default=0.0)
        for index, (a, b) in enumerate(zip(then, now, strict=True)):
            yield from _leaves(a, b, f"{key}.{index}", floor)
    else:
        yield key, then, now, floor


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)  # a yes or no counts as 1 or 0
