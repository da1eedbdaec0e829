"""Which records are computed again: a sample that nobody can foresee, within a budget of time.

How long a record takes is what the records of its experiment state in the median: what one states
of itself neither keeps it out nor lets it in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

from hessinit_book.records.records import Record, source_of

LONGEST_S = 7 * 24 * 3600
"""A record that states a longer duration, in seconds, is not believed."""


def usual_durations(found: Sequence[Record]) -> dict[str, float]:
    """Give the median duration of each source's records, in seconds; see `source_of`."""
    stated: dict[str, list[float]] = {}
    for record in found:
        stated.setdefault(source_of(record), []).append(record.duration_s)
    return {source: median(seconds) for source, seconds in stated.items()}


def choose(found: Sequence[Record], sample: int, budget: float) -> list[Record]:
    """Draw records to compute again, until the budget is spent.

    Args:
        found: all records.
        sample: number of the sample; the same number draws the same records.
        budget: seconds, by the usual duration of each experiment.
    """
    order = sorted(found, key=lambda r: (source_of(r), r.seed))
    random.Random(sample).shuffle(order)
    usual = usual_durations(found)
    chosen, left = [], budget
    for record in order:
        if 0 < left >= usual[source_of(record)]:
            chosen.append(record)
            left -= usual[source_of(record)]
    return chosen
