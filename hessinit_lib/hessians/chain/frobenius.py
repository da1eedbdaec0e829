r"""Frobenius norms of batch-mean blocks, from sums over pairs of samples.

For $M = B^{-1} \sum_b A_b \otimes z_b z_b^\top$,

$$\|M\|_F^2 = B^{-2} \sum_{b,b'} (z_b \cdot z_{b'})^2 \langle A_b, A_{b'} \rangle,$$

so no matrix of the size of the parameters is formed.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.backward import LayerCurvature
from hessinit_lib.hessians.numerics.precision import fast_products, narrowed, rounding_pays
from hessinit_lib.hessians.numerics.workspace import PIECE, Workspace


def squared_norms(
    layer: LayerCurvature,
    kernel: Float[Tensor, "b b"],
    tolerance: float = 0.0,
    piece: int = PIECE,
    workspace: Workspace | None = None,
    *,
    parts: bool = True,
) -> list[Float[Tensor, ""]]:
    """Compute the squared Frobenius norms of a layer's Hessian and of its two parts, times B^2.

    Without a residual they are one. The kernel is the Gram matrix z_b . z_b' of the inputs.
    Without `parts` the last two norms are NaN. For the tolerance see `fast_products`; tensors
    that are made in pieces have `piece` entries at a time.
    """
    batch, workspace = len(kernel), workspace or Workspace(kernel)
    weights = kernel.square()
    factor, residual = layer.factor, layer.residual
    rank, units = factor.shape[1:]
    # Per pair of samples, products of whole symmetric matrices cost n (n + 1) operations in
    # one large matrix product, products of factors n r (r + 1) in many small ones. With a
    # dense residual the whole linearization is needed anyway.
    dense = residual is not None and residual.ndim == 3
    width = units if dense else min(units, rank**2)
    with fast_products(kernel.dtype, tolerance, batch**2 * units * width) as rounded:
        if dense or units <= 2 * rank * (rank + 1):
            found = _whole_matrices(layer, weights, parts or not dense, piece, rounded, workspace)
        else:
            found = [_factor_pairs(factor, weights, piece, rounded)]
        if residual is not None and residual.ndim == 2:
            # Only the diagonal of S^T S meets a diagonal residual.
            weighted, (linear,) = weights @ residual, found
            rest = _inner(weighted, residual)
            found = [linear + 2 * _inner(weighted, factor.square().sum(1)) + rest, linear, rest]
    return found


def _whole_matrices(
    layer: LayerCurvature,
    weights: Float[Tensor, "b b"],
    parts: bool,
    piece: int,
    rounded: bool,
    workspace: Workspace,
) -> list[Tensor]:
    """Sum over b, b' of weights_bb' <., .> for S^T S + R and, if R is dense, S^T S and R."""
    factor, residual = layer.factor, layer.residual
    batch, _, units = factor.shape
    found: list[list[Tensor]] = []
    size = units
    if batch * units**2 > piece:  # at least in two, for the sake of the symmetry
        size = max(1, min(piece // (batch * units), -(-units // 2)))
    dense = residual if residual is not None and residual.ndim == 3 else None
    kind = torch.bfloat16 if rounded and rounding_pays(factor) else factor.dtype
    for low in range(0, units, size):
        high = low + size
        left, right = factor[:, :, low:high].mT, factor[:, :, low:]
        shape = (batch, left.shape[1], units - low)
        block = workspace.take("block", shape, factor.dtype)
        torch.bmm(left, right, out=block)
        copy = workspace.take("copy", shape, kind)
        kinds: list[Tensor] = []
        if dense is not None:
            rows = dense[:, low:high, low:]
            if parts:
                kinds = [_pair_sum(block, weights, copy), _pair_sum(rows, weights, copy)]
            block += rows
        found.append([_pair_sum(block, weights, copy), *kinds])
    sums = (
        found[0]
        if len(found) == 1
        else [torch.stack(each).sum() for each in zip(*found, strict=True)]
    )
    return sums if dense is None or parts else [*sums, sums[0] + math.nan, sums[0] + math.nan]


def _pair_sum(
    matrices: Float[Tensor, "b c n"],
    weights: Float[Tensor, "b b"],
    into: Float[Tensor, "b c n"],
) -> Float[Tensor, ""]:
    """Sum over b, b' of weights_bb' <A_b, A_b'>, A_b being rows of a symmetric matrix.

    What is right of their square block on the diagonal stands for what is below it, too. A copy
    is made in `into`; if that is of a narrower type, the copy is rounded.
    """
    rows, columns = matrices.shape[1:]
    if columns > rows or into.dtype != matrices.dtype:
        matrices = into.copy_(matrices)
        matrices[:, :, rows:] *= 2**0.5
    flat = matrices.flatten(1)
    if flat.shape[1] < len(weights) and flat.dtype == weights.dtype:
        return _inner(weights @ flat, flat)
    return _inner((flat @ flat.mT).to(weights), weights)


def _inner(left: Float[Tensor, "b p"], right: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
    return torch.vdot(left.flatten(), right.flatten())


def _factor_pairs(
    factor: Float[Tensor, "b r n"], weights: Float[Tensor, "b b"], piece: int, rounded: bool
) -> Float[Tensor, ""]:
    """Sum over b, b' of weights_bb' |S_b S_b'^T|^2, row pair by row pair."""
    if factor.device.type != "cpu":
        return _factor_products(factor, weights, piece)
    rows = narrowed(factor.transpose(0, 1), rounded).contiguous()
    batch = len(weights)
    sums, size = weights.new_zeros(()), max(1, piece // batch)
    for low in range(0, batch, size):
        part = weights[low : low + size]
        total, product = torch.zeros_like(part), torch.empty_like(part)
        made = product if rows.dtype == part.dtype else product.to(rows.dtype)
        for i, right in enumerate(rows):
            # (b, i) with (b', j) is (b', j) with (b, i): half of the pairs will do.
            for j in range(i, len(rows)):
                torch.mm(rows[j, low : low + size], right.mT, out=made)
                if made is not product:
                    product.copy_(made)
                total.addcmul_(product, product, value=1.0 if i == j else 2.0)
        sums += _inner(total, part)
    return sums


def _factor_products(
    factor: Float[Tensor, "b r n"], weights: Float[Tensor, "b b"], piece: int
) -> Float[Tensor, ""]:
    """Do what `_factor_pairs` does in as few products as may be."""
    batch, rank, _ = factor.shape
    rows, sums = factor.flatten(0, 1), list[Tensor]()
    size = max(1, piece // (len(rows) * rank))
    for low in range(0, batch, size):
        products = (factor[low : low + size].flatten(0, 1) @ rows.mT).square_()
        total = products.view(-1, rank, batch, rank).sum((1, 3))
        sums.append(_inner(total, weights[low : low + size]))
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()
