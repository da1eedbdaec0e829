"""What comes of a claim: a verdict, and the figures it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hessinit_book.statistics.prediction import Estimate

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTED = (
    "reproduced",
    "partly",
    "not reproduced",
    "not tested",
)


@dataclass(frozen=True)
class Finding:
    """What the records say of a claim.

    Attributes:
        verdict: one of the four above.
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


def over_seeds(values: Sequence[float], form: str = "#.2g") -> str:
    """Write a median with its range over seeds, if there is one in these digits.

    Example:
        >>> over_seeds([0.99, 1.0, 4.0]), over_seeds([0.0, 0.0])
        ('1.0 (0.99 to 4.0)', '0.0')
    """
    middle, low, high = (f"{v:{form}}" for v in (np.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def signed(estimate: Estimate) -> str:
    """Write a difference with its interval.

    Example:
        >>> signed(Estimate(0.1, -0.05, 0.25))
        '+0.10 [-0.05, +0.25]'
    """
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
