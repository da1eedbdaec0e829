r"""The Gauss-Newton norm from two backward passes: mean and variance, from dense factors.

Of the batch, $G = \frac1N \sum_b M_b M_b^\top$ with the factors $M_b = J_b^\top S_b$.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class PairMoments(NamedTuple):
    r"""Of the estimators of $\|G\|_F^2$ and $\operatorname{tr} G$ by random signs.

    Attributes:
        square: $\|G\|_F^2$, the mean of the pair estimator X.
        one_pass: $\zeta_1$, the part of its variance that each of the two passes brings.
        both_passes: $\zeta_2$, the part that they bring together.
        shares: each sample's share of $\|G\|_F^2$, shape (B,).
        trace: $\operatorname{tr} G$.
        trace_variance: of its estimator from one pass.
    """

    square: float
    one_pass: float
    both_passes: float
    shares: Float[Tensor, " b"]
    trace: float
    trace_variance: float

    def variance(self, passes: int = 2) -> float:
        """Give the variance of the mean of X over all pairs of several passes."""
        return 4 * self.one_pass / passes + 2 * self.both_passes / (passes * (passes - 1))


def pair_moments(factors: Sequence[Float[Tensor, "m r"]], n: float) -> PairMoments:
    r"""Compute the moments from the Gram matrices of the factors' columns.

    Args:
        factors: $M_b$ of each sample, with as many rows as the weight has entries.
        n: what the mean over samples divides by.

    Example:
        >>> import torch
        >>> moments = pair_moments([torch.eye(3), torch.zeros(3, 2)], 2)
        >>> moments.square, moments.variance(), moments.shares.tolist()
        (0.75, 0.75, [1.0, 0.0])
    """
    g = sum(m @ m.T for m in factors) / n
    assert isinstance(g, Tensor)
    one = sum(_off(m.T @ g @ m) for m in factors)
    grams = [[m.T @ other for other in factors] for m in factors]
    both = sum(_crossed(k) for row in grams for k in row)
    squares = torch.tensor([float(sum(k.square().sum() for k in row)) for row in grams])
    return PairMoments(
        square=float(g.square().sum()),
        one_pass=2 * float(one) / n**2,
        both_passes=float(both) / n**4,
        shares=squares / squares.sum(),
        trace=float(g.trace()),
        trace_variance=2 * float(sum(_off(row[b]) for b, row in enumerate(grams))) / n**2,
    )


def _off(p: Float[Tensor, "r r"]) -> Tensor:
    """Sum the squares off the diagonal."""
    return p.square().sum() - p.diagonal().square().sum()


def _crossed(k: Float[Tensor, "r s"]) -> Tensor:
    r"""Sum $(K_{ik} K_{jl} + K_{il} K_{jk})^2$ over $i \ne j$, $k \ne l$, in closed form."""
    rows, columns, squares = k @ k.T, k.T @ k, k.square()
    diagonals = rows.diagonal().square().sum() + columns.diagonal().square().sum()
    return 2 * (
        squares.sum() ** 2 + rows.square().sum() - 2 * diagonals + 2 * squares.square().sum()
    )
