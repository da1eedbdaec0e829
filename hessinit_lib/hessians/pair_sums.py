r"""Frobenius norms of batch-mean blocks, from sums over pairs of samples.

For $M = B^{-1} \sum_b A_b \otimes z_b z_b^\top$,

$$\|M\|_F^2 = B^{-2} \sum_{b,b'} (z_b \cdot z_{b'})^2 \langle A_b, A_{b'} \rangle,$$

so no matrix of the size of the parameters is formed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.backward import LayerCurvature
from hessinit_lib.hessians.precision import fast_products


class PairSums(NamedTuple):
    """Squared Frobenius norms of G + R, G and R."""

    total: Float[Tensor, ""]
    linearization: Float[Tensor, ""]
    residual: Float[Tensor, ""]


def squared_norms(
    layer: LayerCurvature, kernel: Float[Tensor, "b b"], tolerance: float = 0.0, *, parts: bool
) -> PairSums:
    """Compute the squared Frobenius norms of a layer's Hessian and of its two parts.

    Args:
        layer: S, R and the inputs.
        kernel: the Gram matrix z_b . z_b' of the inputs, shape (B, B).
        tolerance: relative error allowed, see `fast_products`.
        parts: whether the last two are wanted; NaN where not.
    """
    batch = len(kernel)
    weights = kernel.square() / batch**2
    factor, residual = layer.factor, layer.residual
    rank, units = factor.shape[1:]
    # Per pair of samples, products of whole symmetric matrices cost n (n + 1) operations in
    # one large matrix product, products of factors n r (r + 1) in many small ones. With a
    # dense residual the whole linearization is needed anyway.
    dense = residual is not None and residual.ndim == 3
    width = units if dense else min(units, rank**2)
    with fast_products(kernel.dtype, tolerance, batch**2 * units * width):
        if residual is not None and dense:
            return _dense_sums(factor.mT @ factor, residual, weights, parts)
        if units <= 2 * rank * (rank + 1):
            linear = _pair_sum(_upper(factor.mT @ factor), weights)
        else:
            linear = _factor_pairs(factor, weights)
        if residual is None:
            return PairSums(linear, linear, torch.zeros_like(linear))
        # Only the diagonal of S^T S meets a diagonal residual.
        spread = weights @ residual
        cross, rest = _inner(spread, factor.square().sum(1)), _inner(spread, residual)
    # Rounding can leave a tiny negative square where the parts cancel.
    return PairSums((linear + 2 * cross + rest).clamp(min=0), linear, rest)


def _dense_sums(
    linearization: Float[Tensor, "b n n"],
    residual: Float[Tensor, "b n n"],
    weights: Float[Tensor, "b b"],
    parts: bool,
) -> PairSums:
    if not parts:
        total = _pair_sum(linearization.add_(residual).flatten(1), weights)
        return PairSums(total, *total.new_full((2,), math.nan))
    linear = _pair_sum(linearization.flatten(1), weights)
    rest = _pair_sum(residual.flatten(1), weights)
    return PairSums(_pair_sum(linearization.add_(residual).flatten(1), weights), linear, rest)


def _pair_sum(matrices: Float[Tensor, "b p"], weights: Float[Tensor, "b b"]) -> Float[Tensor, ""]:
    """Sum over b, b' of weights_bb' <A_b, A_b'>."""
    if matrices.shape[1] < len(weights):
        return _inner(weights @ matrices, matrices)
    return _inner(matrices @ matrices.mT, weights)


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
