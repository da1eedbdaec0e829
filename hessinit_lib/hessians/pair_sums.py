r"""Frobenius norms of batch-mean blocks, from sums over pairs of samples.

For $M = B^{-1} \sum_b A_b \otimes z_b z_b^\top$,

$$\|M\|_F^2 = B^{-2} \sum_{b,b'} (z_b \cdot z_{b'})^2 \langle A_b, A_{b'} \rangle,$$

so no matrix of the size of the parameters is formed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.backward import LayerCurvature


class PairSums(NamedTuple):
    """Squared Frobenius norms of G + R, G and R."""

    total: Float[Tensor, ""]
    linearization: Float[Tensor, ""]
    residual: Float[Tensor, ""]


def squared_norms(layer: LayerCurvature, kernel: Float[Tensor, "b b"]) -> PairSums:
    """Compute the squared Frobenius norms of a layer's Hessian and of its two parts.

    Args:
        layer: S, R and the inputs.
        kernel: the Gram matrix z_b . z_b' of the inputs, shape (B, B).
    """
    batch = kernel.shape[0]
    weights = kernel.square()
    factor, residual = layer.factor, layer.residual
    rank, units = factor.shape[1:]
    # Per pair of samples, products of whole symmetric matrices cost n (n + 1) operations in
    # one large matrix product, products of factors n r (r + 1) in many small ones. With a
    # dense residual the whole linearization is needed anyway.
    whole = None
    if (residual is not None and residual.ndim == 3) or units <= 2 * rank * (rank + 1):
        whole = _upper(factor.mT @ factor)
        linearization = _inner(weights @ whole, whole)
    else:
        linearization = _factor_pairs(factor, weights)
    if residual is None:
        zero = torch.zeros_like(linearization)
        return PairSums(linearization / batch**2, linearization / batch**2, zero)
    if residual.ndim == 2:
        # Only the diagonal of S^T S meets a diagonal residual.
        r, s = residual, factor.square().sum(1)
    else:
        assert whole is not None
        r, s = _upper(residual), whole
    spread = weights @ r
    own, cross = _inner(spread, r), _inner(spread, s)
    # Rounding can leave a tiny negative square where the parts cancel.
    total = (linearization + 2 * cross + own).clamp(min=0)
    return PairSums(*(x / batch**2 for x in (total, linearization, own)))


def _upper(matrices: Float[Tensor, "b n n"]) -> Float[Tensor, "b p"]:
    """Keep the upper triangles, off-diagonal entries times sqrt 2: dot products are kept."""
    units = matrices.shape[1]
    rows, columns = torch.triu_indices(units, units, device=matrices.device)
    packed = matrices.flatten(1).index_select(1, rows * units + columns)
    return packed.mul_(torch.where(rows == columns, torch.ones_like(packed[0]), 2.0**0.5))


def _inner(left: Float[Tensor, "b p"], right: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
    return torch.vdot(left.flatten(), right.flatten())


def _factor_pairs(
    factor: Float[Tensor, "b r n"], weights: Float[Tensor, "b b"]
) -> Float[Tensor, ""]:
    """Sum over b, b' of weights_bb' |S_b S_b'^T|^2, row pair by row pair."""
    rows = factor.transpose(0, 1).contiguous()
    total, product = torch.zeros_like(weights), torch.empty_like(weights)
    for i, left in enumerate(rows):
        # (b, i) with (b', j) is (b', j) with (b, i): half of the pairs will do.
        for j in range(i, len(rows)):
            torch.mm(left, rows[j].mT, out=product)
            total.addcmul_(product, product, value=1.0 if i == j else 2.0)
    return _inner(total, weights)
