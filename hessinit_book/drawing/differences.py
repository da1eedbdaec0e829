"""Differences between initializations, as tables write them."""

from __future__ import annotations

import numpy as np

from hessinit_book.statistics.intervals import Interval


def signed(difference: Interval, digits: int) -> str:
    """Write a mean difference, and how far its interval reaches if there is one.

    Example:
        >>> signed(Interval(-0.5, -0.75, -0.25), 2), signed(Interval(12.0), 0)
        ('-0.50 ± 0.25', '+12')
    """
    if not np.isfinite(difference.reach):
        return f"{difference.mean:+.{digits}f}"
    return f"{difference.mean:+.{digits}f} ± {difference.reach:.{max(digits, 1)}f}"
