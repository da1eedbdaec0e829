r"""Gram matrices of Jacobian rows, from which all norms of a Gauss-Newton block follow.

For the block $G = B^{-1} J^\top J$ with J of shape (B r, P), $J J^\top$ has the same
nonzero eigenvalues as $J^\top J$: the smaller of the two gives all the norms, and no matrix
of shape (P, P) is formed unless it is the smaller one. J itself is formed in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.lanczos import random_start, spectral_norms
from hessinit_lib.hessians.unfold import Lookup, Unfolded
from hessinit_lib.hessians.workspace import Workspace

# Entries of J held at a time: much fewer make the products small and slow, many more leave
# the cache and gain nothing.
_PIECE = 1 << 22

# Rows below which a symmetric product is not worth splitting.
_SPLIT = 256


def gram_matrix(layer: Unfolded | Lookup, workspace: Workspace) -> Float[Tensor, "d d"]:
    """Form J J^T or J^T J, whichever is smaller.

    Args:
        layer: the layer's patches and factors, from `unfold`.
        workspace: for the pieces of J.

    Example:
        >>> u, s = torch.ones(2, 1, 3, 4), torch.ones(2, 1, 2, 4)
        >>> gram_matrix(Unfolded(u, [s]), Workspace(u))  # all entries of J are 4
        tensor([[96., 96.],
                [96., 96.]])
    """
    batch, rank = len(layer.factors[0]), len(layer.factors)
    rows = batch * rank
    if isinstance(layer, Lookup):
        positions, units = layer.factors[0].shape[1:]
        met = layer.tokens.unique()
        inputs, columns = 1, int((met >= 0).sum()) * units
    else:
        groups, inputs, positions = layer.patches.shape[1:]
        units = layer.factors[0].shape[2]
        columns = groups * inputs * units
        if groups > 1:
            positions = 0  # no single kernel of the inputs
    # With one position a sample, J J^T is the product, entry by entry, of two small Gram
    # matrices. Multiplications of either way:
    if positions == 1 and rows * (units + inputs) <= columns * min(rows, columns):
        return _kronecker_gram(layer)
    if isinstance(layer, Lookup):
        pieces = _rows_of_lookup(layer)
    else:
        pieces = _rows_of_product(layer, workspace)
    if columns >= rows:
        gram = layer.factors[0].new_zeros(rows, rows)
        for piece in pieces:
            _add_symmetric_product(piece, gram)
        return gram
    jacobian = workspace.take("jacobian", rows, columns)
    at = 0
    for piece in pieces:
        jacobian[:, at : at + piece.shape[1]] = piece
        at += piece.shape[1]
    gram = jacobian.new_zeros(columns, columns)
    _add_symmetric_product(jacobian.mT, gram)
    return gram


def largest_eigenvalues(grams: list[Float[Tensor, "_ _"]]) -> list[float]:
    """Compute the largest eigenvalue of each matrix, those of one size together.

    Args:
        grams: symmetric, without negative eigenvalues, finite.

    Example:
        >>> largest_eigenvalues([torch.tensor([[3.0]]), torch.zeros(2, 2), torch.tensor([[1.0]])])
        [3.0, 0.0, 1.0]
    """
    by_size: dict[int, list[int]] = {}
    for index, gram in enumerate(grams):
        by_size.setdefault(len(gram), []).append(index)
    found = [0.0] * len(grams)
    for size, members in by_size.items():
        stacked = torch.stack([grams[index] for index in members])

        def operator(v: Tensor, stacked: Tensor = stacked) -> Tensor:
            return torch.bmm(v[:, None], stacked)[:, 0]

        norms = spectral_norms(operator, random_start(len(members), size, stacked))
        for index, norm in zip(members, norms, strict=True):
            found[index] = norm
    return found


def _kronecker_gram(layer: Unfolded | Lookup) -> Float[Tensor, "d d"]:
    """J J^T where every sample has one position: (u_b . u_b') (s_bi . s_b'i')."""
    factors = torch.stack([s.flatten(1) for s in layer.factors], 1)
    batch, rank = factors.shape[:2]
    if isinstance(layer, Lookup):
        tokens = layer.tokens
        kernel = ((tokens == tokens.mT) & (tokens >= 0)).to(factors.dtype)
    else:
        inputs = layer.patches.flatten(1)
        kernel = inputs @ inputs.mT
    gram = factors.new_zeros(batch * rank, batch * rank)
    _add_symmetric_product(factors.flatten(0, 1), gram)
    gram.view(batch, rank, batch, rank).mul_(kernel[:, None, :, None])
    return gram


def _rows_of_product(layer: Unfolded, workspace: Workspace) -> Iterator[Float[Tensor, "d p"]]:
    """Form J, shape (B r, G q m), in pieces of columns; each is gone when the next is made."""
    patches, factors = layer.patches, layer.factors
    batch, groups, units, positions = factors[0].shape
    inputs, rank = patches.shape[2], len(factors)
    rows = batch * rank
    if groups == 1:
        size = min(units, max(1, _PIECE // (rows * inputs)))
        for start in range(0, units, size):
            chosen = [s[:, 0, start : start + size] for s in factors]
            count = chosen[0].shape[1]
            part = workspace.take("factors", batch, rank, count, positions)
            torch.stack(chosen, 1, out=part)
            piece = workspace.take("piece", batch, rank * count, inputs)
            torch.bmm(part.view(batch, -1, positions), patches[:, 0].mT, out=piece)
            yield piece.view(rows, -1)
        return
    size = min(groups, max(1, _PIECE // (rows * inputs * units)))
    for start in range(0, groups, size):
        part = torch.stack([s[:, start : start + size] for s in factors], 2)
        met = patches[:, start : start + size].flatten(0, 1)
        product = torch.bmm(part.flatten(2, 3).flatten(0, 1), met.mT)
        product = product.view(batch, -1, rank, units * inputs)
        yield product.transpose(1, 2).reshape(rows, -1)


def _rows_of_lookup(layer: Lookup) -> Iterator[Float[Tensor, "d p"]]:
    """Form J in pieces of columns: only the rows of the weight that the batch has met."""
    spread = torch.stack(layer.factors, 2)
    batch, positions, rank, units = spread.shape
    met, place = layer.tokens.unique(return_inverse=True)
    sample = torch.arange(batch, device=met.device)[:, None].expand(batch, positions)
    first = int((met < 0).sum())  # the padding token, if any
    size = max(1, _PIECE // (batch * rank * units))
    for start in range(first, len(met), size):
        count = min(size, len(met) - start)
        chosen = (place >= start) & (place < start + count)
        into = sample[chosen] * count + place[chosen] - start
        piece = spread.new_zeros(batch * count, rank, units)
        piece.index_add_(0, into, spread[chosen])
        yield piece.view(batch, count, rank, units).transpose(1, 2).reshape(batch * rank, -1)


def _add_symmetric_product(left: Float[Tensor, "d p"], total: Float[Tensor, "d d"]) -> None:
    """Add X X^T to the total, with little more than half of the multiplications."""
    if len(left) < _SPLIT:
        total.addmm_(left, left.mT)
        return
    half = len(left) // 2
    cross = left[:half] @ left[half:].mT
    total[:half, half:] += cross
    total[half:, :half] += cross.mT
    _add_symmetric_product(left[:half], total[:half, :half])
    _add_symmetric_product(left[half:], total[half:, half:])
