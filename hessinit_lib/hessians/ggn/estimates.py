r"""Norms of a block from the inner products of its per-sample gradients of a few random vectors.

For vectors a = 1 ... m, with $x^{aa'}_{bc} = (g^a_b \cdot g^{a'}_c)^2$, every pair of different
vectors gives an estimate $\sum_{bc} x^{aa'}_{bc}$ of $\|G\|_F^2$; they are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.numerics.estimates import Estimate, Sketch
from hessinit_lib.hessians.numerics.lanczos import power_of_two

Products = Mapping[tuple[int, int], Float[Tensor, "b b"]]
"""Of pairs of vectors, by their places."""

_STEPS = 30  # of the power method: any vector gives a lower bound


def sketch_of(products: Products, own: Sequence[Float[Tensor, " b"]]) -> Sketch:
    r"""Estimate $\|G\|_F^2$ and $\operatorname{tr} G$ with the variances of these estimates.

    To first order (Hoeffding) the error of the square is a sum over samples and vectors of what
    the signs there change. The part with $g^a_b$ on the left has the same expectation for all a,
    so that its spread over a tells how much that is.

    Args:
        products: $g^a_b \cdot g^{a'}_c$ of pairs a, a' of m vectors, shape (B, B) each. Where left
            and right factors differ, those of both orders.
        own: $|g^a_b|^2$ for each of the vectors, two at least.

    Example:
        >>> g = torch.tensor([[[1.0], [2.0]], [[1.0], [-2.0]], [[-1.0], [2.0]]])
        >>> pairs = {(a, c): g[a] @ g[c].T for a, c in ((0, 1), (0, 2), (1, 2))}
        >>> sketch = sketch_of(pairs, list(g.square().sum(2)))
        >>> sketch.square.mean, sketch.trace.mean  # (1 + 4)^2
        (25.0, 5.0)
    """
    count = len(own)
    rows = own[0].new_zeros(count, len(own[0]), dtype=torch.float64)
    alone = torch.zeros_like(rows[0])
    for a, c in combinations(range(count), 2):
        left = products[a, c]
        right = products[c, a].mT if (c, a) in products else left
        # Squares of small numbers leave the range of float32.
        unit = power_of_two(left.abs().max().item())
        squares = (left / unit) * (right / unit)
        scale = float(unit) ** 2 / (count - 1)
        rows[a] += scale * squares.sum(1, dtype=torch.float64)
        rows[c] += scale * squares.sum(0, dtype=torch.float64)
        alone += scale * squares.diagonal()
    if count == 2:
        # What both vectors move alike, the sample's own term, cancels in the difference.
        deviations = (rows[0] - rows[1]).abs() + alone
        square = _estimate(rows.mean(0), deviations.square(), 1)
    else:
        # Two rows share a product, which hides some of their variance. Leaving vectors out in
        # turn (the jackknife) multiplies by the square of this ratio, which is too much.
        scale = 4.0 * (count - 1) / (count - 2) / count
        square = _estimate(rows.mean(0), scale * rows.var(0), count - 1)
    lengths = torch.stack([*own]).double()
    return Sketch(count, square, _estimate(lengths.mean(0), lengths.var(0) / count, count - 1))


def _estimate(means: Tensor, variances: Tensor, degrees: int) -> Estimate:
    """Sum over samples; by Welch and Satterthwaite, of a variance with few degrees for each."""
    mean, total, fourth = torch.stack(
        (means.sum(), variances.sum(), variances.square().sum())
    ).tolist()
    return Estimate(mean, total, (degrees + 2) * total**2 / fourth if fourth else math.inf)


def spectral_bounds(products: Products) -> tuple[float, float, float]:
    r"""Estimate a lower bound of $\|G\|_2$ without bias, and an upper one that is biased up.

    Of all vectors but one, the leading right singular vector u of their gradients g is a
    combination of these; $u^\top G u = \mathbb{E} \sum_b (u \cdot g^a_b)^2$ with the one left out,
    which is independent. The largest eigenvalue of $\frac1m \sum_{ab} g^a_b (g^a_b)^\top$ is
    above $\|G\|_2$ on average.

    Args:
        products: $g^a_b \cdot g^{a'}_c$ of all pairs of vectors, shape (B, B) each.

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
    values = []
    for rows in torch.arange(len(gram), device=gram.device).chunk(count):
        others = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
        others[rows] = False
        inner = gram[others][:, others]
        vector = _leading(inner)
        length = vector @ inner @ vector
        image = gram[rows][:, others] @ vector
        values.append(image.square().sum() / length if length > 0 else length * 0)
    upper = (gram @ _leading(gram)).norm() / count
    found = torch.stack(values)
    return float(found.mean()), float(found.std() / math.sqrt(count)), float(upper)


def _leading(matrix: Tensor) -> Tensor:
    """Find the leading eigenvector of a matrix without negative eigenvalues, roughly."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(matrix), generator=generator, dtype=torch.float64).to(matrix)
    for _ in range(_STEPS):
        vector = matrix @ vector
        vector = vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
    return vector
