"""Numbers of records: rounded on the way in, logarithms that are finite on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float


def rounded(value: float, digits: int = 6) -> float:
    """Keep some significant digits.

    Example:
        >>> rounded(0.123456789), rounded(123456.789, 3), rounded(float("inf"))
        (0.123457, 123000.0, inf)
    """
    return float(f"{value:.{digits}g}")


def all_rounded(values: Iterable[float], digits: int = 6) -> list[float]:
    """Keep some significant digits of each value.

    Example:
        >>> all_rounded([1 / 3, 2.0], digits=2)
        [0.33, 2.0]
    """
    return [rounded(value, digits) for value in values]


def finite_log10(values: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Take decimal logarithms; zeros and overflown numbers go to the ends of float32's range.

    Example:
        >>> finite_log10([100.0, float("nan"), float("inf")]).tolist()
        [2.0, 38.0, 38.0]
    """
    return np.log10(np.clip(np.nan_to_num(values, nan=1e38, posinf=1e38), 1e-45, 1e38))
