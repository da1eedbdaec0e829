"""The eigenvalue of largest size of a symmetric operator, by Lanczos iteration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Operator = Callable[[Float[Tensor, " d"]], Float[Tensor, " d"]]

_MAX_STEPS = 400
_CHECK_EVERY = 3


def spectral_norm(operator: Operator, size: int, like: Tensor) -> float:
    r"""Compute $\max_i |\lambda_i|$ of a symmetric operator.

    Lanczos with full reorthogonalization, from a fixed pseudo-random start, so that the
    same operator gives the same figure. It stops when the leading Ritz value's residual is
    below 1e-4 of it in float32 and 1e-9 in float64 (so no cluster of eigenvalues wider than
    that is mistaken for one), its error bound min(residual, residual^2 / gap) below 1e-6
    and 1e-11, and no eigenvalue at the other end can be larger.

    Args:
        operator: maps vectors of shape (d,) to vectors of shape (d,), linear, symmetric.
        size: d.
        like: a tensor of the type and device to work in.

    Returns:
        The norm; NaN where the operator gives non-finite values.

    Raises:
        ArithmeticError: no convergence in 400 steps.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, -3.0, 2.0]))
        >>> round(spectral_norm(lambda v: matrix @ v, 3, matrix), 5)
        3.0
    """
    tolerances = (1e-9, 1e-11) if like.dtype == torch.float64 else (1e-4, 1e-6)
    rounding = torch.finfo(like.dtype).eps
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    vector = (start / start.norm()).to(like)
    steps = min(size, _MAX_STEPS)
    basis = torch.empty(0, size, dtype=like.dtype, device=like.device)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    norm = 0.0
    for step in range(1, steps + 1):
        if step > len(basis):  # grow in blocks: most runs end early
            grown = torch.empty(
                min(steps, 2 * step + 14), size, dtype=like.dtype, device=like.device
            )
            grown[: len(basis)] = basis
            basis = grown
        basis[step - 1] = vector
        used = basis[:step]
        image = operator(vector)
        overlaps = used @ image
        image = image - overlaps @ used
        image = image - (used @ image) @ used  # once more: rounding left some overlap
        alpha, beta = torch.stack((overlaps[-1], image.norm())).tolist()
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            return math.nan
        diagonal.append(alpha)
        scale = max(norm, abs(alpha), *off_diagonal[-1:], beta)
        exhausted = step == size or beta <= 10 * rounding * scale
        if exhausted or step % _CHECK_EVERY == 0 or step == steps:
            norm, done = _ritz(diagonal, off_diagonal, beta, tolerances)
            if exhausted or done:
                return norm
        off_diagonal.append(beta)
        vector = image / beta
    raise ArithmeticError(f"Lanczos did not converge in {steps} steps")


def _ritz(
    diagonal: list[float],
    off_diagonal: list[float],
    beta: float,
    tolerances: tuple[float, float],
) -> tuple[float, bool]:
    """Give the largest Ritz value in size and whether it has converged."""
    tridiagonal = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    values, vectors = np.linalg.eigh(tridiagonal)
    if len(values) == 1:
        return abs(float(values[0])), False
    low, high = 0, len(values) - 1
    top, other = (high, low) if values[high] >= -values[low] else (low, high)
    residuals = beta * np.abs(vectors[-1])
    norm = abs(float(values[top]))
    neighbour = values[high - 1] if top == high else values[low + 1]
    gap = abs(values[top] - neighbour)
    error = min(residuals[top], residuals[top] ** 2 / gap if gap > 0 else math.inf)
    # The other end may still grow by its own residual.
    settled = values[other] * values[top] >= 0 or abs(values[other]) + residuals[other] < norm
    close = residuals[top] <= tolerances[0] * norm and error <= tolerances[1] * norm
    return norm, bool(close and settled)
