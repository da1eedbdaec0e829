"""Statement 10: scales of the weights that give every layer's Hessian a chosen norm."""

from __future__ import annotations

import math
from collections.abc import Sequence


def balancing_scales(norms: Sequence[float], targets: float | Sequence[float]) -> list[float]:
    r"""Compute the $t_k$ for which scaling each $W^k$ by $e^{t_k}$ gives the chosen norms.

    In a positively homogeneous network without biases $\|H_k\|$ grows with the square of all
    weights but its own, at fixed output curvature. So the scales solve

    $$\|H_k\| \, e^{2 (T - t_k)} = h_k, \quad T = \sum_j t_j
      \quad\Longrightarrow\quad
      T = \frac1{2 (n - 1)} \sum_k \log \frac{h_k}{\|H_k\|}, \quad
      t_k = T - \tfrac12 \log \frac{h_k}{\|H_k\|}.$$

    The output curvature moves with the logits, which are scaled by $e^T$: measure and
    scale again until the norms stay.

    Args:
        norms: $\|H_k\|$ of the n > 1 layers, in any norm, above 0.
        targets: the norms $h_k$ to reach, above 0: one for each layer, or one for all.

    Returns:
        $t_1$ to $t_n$.

    Raises:
        ValueError: fewer than two layers (the norm of a single one does not depend on its
            weights' scale), norms that are not above 0, or too few or too many targets.

    Source: derivation in the book, statement 10; that such scales keep the function and change
        the curvature: Dinh and others, arXiv 1703.04933.

    Example:
        >>> [round(math.exp(t), 6) for t in balancing_scales([1.0, 16.0], 4.0)]
        [0.5, 2.0]
    """
    if len(norms) < 2:
        raise ValueError(f"{len(norms)} norms: expected those of two or more layers")
    wanted = [targets] * len(norms) if isinstance(targets, int | float) else list(targets)
    if len(wanted) != len(norms):
        raise ValueError(f"{len(wanted)} targets: expected {len(norms)}, one for each layer")
    for value in (*norms, *wanted):
        if not 0 < value < math.inf:
            raise ValueError(f"norm {value}: expected a finite number above 0")
    steps = [math.log(target / norm) / 2 for norm, target in zip(norms, wanted, strict=True)]
    total = sum(steps) / (len(norms) - 1)
    return [total - step for step in steps]
