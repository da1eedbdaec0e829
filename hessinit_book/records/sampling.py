"""Which records are computed again: a sample that nobody can foresee, within a budget of time.

How long a record takes is what the records of its experiment state in the median: what one states
of itself neither keeps it out nor lets it in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

from hessinit_book.records.records import Record

LONGEST_S = 7 * 24 * 3600
"""A record that states a longer duration, in seconds, is not believed."""


def usual_durations(found: Sequence[Record]) -> dict[str, float]:
    """Give the median duration of each experiment's records, in seconds."""
    stated: dict[str, list[float]] = {}
    for record in found:
        stated.setdefault(record.experiment, []).append(record.duration_s)
    return {experiment: median(seconds) for experiment, seconds in stated.items()}


def choose(found: Sequence[Record], sample: int, budget: float) -> list[Record]:
    """Draw records to compute again, until the budget is spent.

    Args:
        found: all records.
        sample: number of the sample; the same number draws the same records.
        budget: seconds, by the usual duration of each experiment.
    """
    order = sorted(found, key=lambda r: (r.experiment, r.seed))
    random.Random(sample).shuffle(order)
    usual = usual_durations(found)
    chosen, left = [], budget
    for record in order:
        if 0 < left >= usual[record.experiment]:
            chosen.append(record)
            left -= usual[record.experiment]
    return chosen
