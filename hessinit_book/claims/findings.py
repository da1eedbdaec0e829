"""What comes of a claim: a verdict, and the figures it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

DERIVED, REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTED = (
    "derived",
    "reproduced",
    "partly",
    "not reproduced",
    "not tested",
)
VERDICTS = (DERIVED, REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTED)


@dataclass(frozen=True)
class Finding:
    """What the records say of a claim.

    Attributes:
        verdict: one of `VERDICTS`.
        figure: the figures it rests on, with their intervals, in words.
    """

    verdict: str
    figure: str = ""


def verdict(holds: Sequence[bool]) -> str:
    """Sum up the parts of a claim: all hold, some do, or none.

    Example:
        >>> verdict([True, True]), verdict([True, False]), verdict([False])
        ('reproduced', 'partly', 'not reproduced')
    """
    if all(holds):
        return REPRODUCED
    return PARTLY if any(holds) else NOT_REPRODUCED


def derived(holds: Sequence[bool]) -> str:
    """Give the verdict on a theorem: derived, unless measurements are against it.

    Example:
        >>> derived([True, True]), derived([True, False])
        ('derived', 'partly')
    """
    return DERIVED if all(holds) else verdict(holds)


def counted(verdicts: Iterable[str]) -> str:
    """Count verdicts, in words.

    Example:
        >>> counted([PARTLY, NOT_TESTED, PARTLY])
        '3 claims: 2 partly, 1 not tested'
    """
    found = list(verdicts)
    counts = [f"{found.count(one)} {one}" for one in VERDICTS if one in found]
    return f"{len(found)} claim{'s' * (len(found) != 1)}: {', '.join(counts)}"


def over_seeds(values: Sequence[float], form: str = "#.2g") -> str:
    """Write a median with its range over seeds, if there is one in these digits.

    Example:
        >>> over_seeds([0.99, 1.0, 4.0]), over_seeds([0.0, 0.0])
        ('1.0 (0.99 to 4.0)', '0.0')
    """
    middle, low, high = (f"{v:{form}}" for v in (np.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
