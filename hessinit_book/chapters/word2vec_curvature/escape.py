"""How Word2Vec leaves the saddle: the fastest mode, predicted, and read off in training."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

from hessinit_book.chapters.word2vec_curvature.pair_law import PairLaw


class FastestMode:
    r"""The mode of statement 11's M that grows fastest.

    With $a = V^\top p_1$ and $b = U^\top q_1$ in $\R^d$, gradient descent at small scores gives
    $a' = -\varsigma_1 b$, $b' = -\varsigma_1 a$, so that after N observed pairs at the rate
    $\gamma$, with $\tau = \gamma \varsigma_1 N$,

    $$a = \cosh(\tau) \, a_0 - \sinh(\tau) \, b_0, \quad
      b = \cosh(\tau) \, b_0 - \sinh(\tau) \, a_0.$$

    Args:
        law: of the pairs.

    Attributes:
        growth: $\varsigma_1$.
        frequency_cosine: of $p_1$ with the frequencies of the centers.
    """

    def __init__(self, law: PairLaw) -> None:
        self.growth, self._left, self._right = law.fastest_mode()
        self.frequency_cosine = abs(float(self._left @ law.centers / law.centers.norm()))

    def components(
        self, inputs: Float64[Tensor, "V d"], outputs: Float64[Tensor, "V d"]
    ) -> Float64[Tensor, "2 d"]:
        """Project the vectors on the mode: a and b."""
        return torch.stack([self._left @ inputs, self._right @ outputs])

    def predict(
        self, start: Float64[Tensor, "2 d"], rate: float, pairs: Float64[ndarray, " t"]
    ) -> Float64[ndarray, "t 2"]:
        """Predict the norms of both components.

        Args:
            start: a and b before training.
            rate: of learning, for each pair.
            pairs: numbers of observed pairs, shape (t,).

        Returns:
            Norms of a and b, shape (t, 2).
        """
        a, b = start.numpy()
        tau = rate * self.growth * pairs[:, None]
        even, odd = np.cosh(tau), np.sinh(tau)
        both = [even * a - odd * b, even * b - odd * a]
        return np.stack([np.linalg.norm(side, axis=1) for side in both], 1)


def first_reach(at: Float64[ndarray, " t"], distance: Float64[ndarray, " t"], to: float) -> float:
    """Find where a growing distance first reaches a value, between looks by its logarithm.

    Args:
        at: places of the looks, ascending, shape (t,).
        distance: above zero, shape (t,).
        to: the value.

    Returns:
        The place; infinite if it is never reached.

    Example:
        >>> round(first_reach(np.array([0.0, 2.0]), np.array([1.0, 100.0]), 10.0), 9)
        1.0
    """
    reached = np.flatnonzero(distance >= to)
    if len(reached) == 0:
        return math.inf
    last = int(reached[0])
    if last == 0:
        return float(at[0])
    part = slice(last - 1, last + 1)
    return float(np.interp(math.log(to), np.log(distance[part]), at[part]))
