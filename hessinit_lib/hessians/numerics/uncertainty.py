"""How sure an estimate is: standard errors that hold for few samples, too."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

_NORMAL = 1.959964  # the 97.5 % quantile


def widening(degrees: int) -> float:
    r"""Compute $t_{0.975,\nu} / z_{0.975}$, by which few degrees of freedom widen an interval.

    Args:
        degrees: degrees of freedom $\nu \ge 1$ of the variance's estimate.

    Source: Cornish-Fisher expansion of Student's quantile (Abramowitz and Stegun 26.7.5),
        within 0.1 % from 5 degrees of freedom on and 4 % too small at 2.

    Example:
        >>> round(1.959964 * widening(7), 2)  # tables: 2.365
        2.36
    """
    z, nu = _NORMAL, degrees
    terms = (
        (z**3 + z) / (4 * nu),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3),
    )
    return 1 + sum(terms) / z


def mean_and_error(
    samples: Float[Tensor, "*k n"], variance: Float[Tensor, "*k"] | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Average the last axis, and give the widened standard error of the average.

    Args:
        samples: independent draws, n of at least 2.
        variance: what is known of their variance from elsewhere; the larger one counts,
            since draws of a skewed distribution mostly show too small a variance.

    Returns:
        Mean and error, each of shape (*k,). Plus and minus 1.96 errors is a 95 % interval.

    Example:
        >>> import torch
        >>> mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        >>> f"{mean:.2f} {error:.3f}"  # 0.764 without widening
        '3.50 1.001'
    """
    count = samples.shape[-1]
    seen = samples.var(-1)
    larger = seen.maximum(seen.new_ones(()) * variance)
    return samples.mean(-1), (larger / count).sqrt() * widening(count - 1)
