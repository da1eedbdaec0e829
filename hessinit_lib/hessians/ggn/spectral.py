"""Bounds of the spectral norm of a block from inner products of its per-sample gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hessinit_lib.hessians.numerics.estimates import Products

_STEPS = 30  # of the power method: any vector gives a lower bound


def spectral_bounds(products: Products, rank: int = 0) -> tuple[float, float, float]:
    r"""Estimate a lower bound of $\|G\|_2$ without bias, and an upper one that is biased up.

    Of all vectors but one, the leading right singular vector u of their gradients g is a
    combination of these; $u^\top G u = \mathbb{E} \sum_b (u \cdot g^a_b)^2$ with the one left out,
    which is independent. The largest eigenvalue of $\frac1m \sum_{ab} g^a_b (g^a_b)^\top$ is
    above $\|G\|_2$ on average. Of r vectors that are a basis, what the others show of
    $u^\top G u$ is known, and the one left out stands for the r - m + 1 that are left; all r
    give the norm itself.

    Args:
        products: $g^a_b \cdot g^{a'}_c$ of all pairs of vectors, shape (B, B) each.
        rank: r, for each sample; 0 if the vectors are independent.

    Returns:
        The lower bound, its standard error, the upper bound.
    """
    count = 1 + max(a for a, _ in products)
    gram = torch.cat(
        [
            torch.cat([products[a, c] if a <= c else products[c, a].mT for c in range(count)], 1)
            for a in range(count)
        ]
    ).double()
    if count == rank:
        exact = float(torch.linalg.eigvalsh(gram)[-1]) / count
        return exact, 0.0, exact
    rest, known = (1 - (count - 1) / rank, 1 / rank) if rank else (1.0, 0.0)
    values = []
    for rows in torch.arange(len(gram), device=gram.device).chunk(count):
        others = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
        others[rows] = False
        inner = gram[others][:, others]
        vector = _leading(inner)
        length = vector @ inner @ vector
        image = gram[rows][:, others] @ vector
        seen = rest * image.square().sum() + known * (inner @ vector).square().sum()
        values.append(seen / length if length > 0 else length * 0)
    upper = (gram @ _leading(gram)).norm() / count
    found = torch.stack(values)
    return float(found.mean()), float(found.std() / math.sqrt(count)), float(upper)


def _leading(matrix: Tensor) -> Tensor:
    """Find the leading eigenvector of a matrix without negative eigenvalues, roughly."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(matrix), generator=generator, dtype=torch.float64, device="cpu")
    vector = vector.to(matrix)
    for _ in range(_STEPS):
        vector = matrix @ vector
        vector = vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
    return vector
