"""Norms too small or too large for their squares: scale first, by a power of two.

The curvature of a saturated softmax may be 1e-20, that of an exploding network 1e20. Both are
plain float32 numbers, but their squares are not.
"""

from __future__ import annotations

import math


def in_range(size: float) -> bool:
    """Tell whether the squares of numbers of some size, and their sums, are good in float32.

    Example:
        >>> in_range(1.0), in_range(1e-20), in_range(0.0)
        (True, False, False)
    """
    return 1e-12 <= abs(size) <= 1e12


def power_of_two(size: float) -> float:
    """Give the power of two next to a number: dividing by it changes no digit.

    Args:
        size: positive; for zero, infinity and NaN, for which there is none, 1 comes back.

    Example:
        >>> power_of_two(0.3), power_of_two(3e-25) == 2.0**-81, power_of_two(0.0)
        (0.25, True, 1.0)
    """
    return 2.0 ** round(math.log2(size)) if 0 < size < math.inf else 1.0
