"""Spectral norms of a layer's Hessian and its parts, from factors of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.backward import LayerCurvature
from hessinit_lib.hessians.numerics.lanczos import Operators, random_start, spectral_norms
from hessinit_lib.hessians.numerics.precision import fast_products

# Samples that a first guess is made from.
_FEW = 16


def gauss_newton_spectral_norms(
    layers: Sequence[tuple[LayerCurvature, Float[Tensor, "b b"]]], tolerance: float
) -> list[float]:
    """Compute the spectral norms of layers without residual, one Lanczos chain a layer.

    All together: in a small network it is the calls that take the time, not the products.
    With each layer comes the Gram matrix z_b . z_b' of its inputs.
    """
    batch, rank, _ = layers[0][0].factor.shape
    operators = [_linearization(layer, kernel, tolerance) for layer, kernel in layers]

    def apply(u: Tensor, places: list[int]) -> Tensor:
        return torch.stack([operators[k](row) for k, row in zip(places, u, strict=True)])

    start = random_start(1, batch * rank, layers[0][1]).expand(len(layers), -1)
    return spectral_norms(apply, start, tolerance)


def block_spectral_norms(
    layer: LayerCurvature, tolerance: float, *, parts: bool
) -> tuple[float, float, float]:
    """Compute the spectral norms of a block with a residual, its linearization and the latter.

    Without `parts` the last two are NaN.
    """
    reduced = _reduce_inputs(layer.inputs)
    start = _start(layer, reduced, 3 if parts else 1)
    norms = spectral_norms(_block_and_parts(layer, reduced), start, tolerance)
    total, linear, rest = norms if parts else (norms[0], math.nan, math.nan)
    return total, linear, rest


def _linearization(
    layer: LayerCurvature, kernel: Float[Tensor, "b b"], tolerance: float
) -> Callable[[Float[Tensor, " d"]], Float[Tensor, " d"]]:
    """Give an operator on vectors of size d = B r with the nonzero eigenvalues of G.

    G = V V^T with columns V_(b,i) = s_bi (x) z_b / sqrt B; this is V^T V: smaller, and free
    of the parameters' size.
    """
    factor, z = layer.factor, layer.inputs
    batch, features = z.shape
    narrow = 2 * features < batch

    def apply(u: Tensor) -> Tensor:
        rows = torch.bmm(u.view(batch, 1, -1), factor)[:, 0]
        with fast_products(u.dtype, tolerance, rows.numel() * batch):
            rows = z @ (z.mT @ rows) if narrow else kernel @ rows
        return torch.bmm(rows[:, None], factor.mT).flatten() / batch

    return apply


def _reduce_inputs(z: Float[Tensor, "b m"]) -> Float[Tensor, "b k"]:
    """Turn the inputs into coordinates of their span: same dot products, k = min(B, m)."""
    return z if len(z) >= z.shape[1] else torch.linalg.qr(z.mT, mode="r").R.mT


def _start(layer: LayerCurvature, z: Float[Tensor, "b k"], count: int) -> Float[Tensor, "p d"]:
    """Guess the leading eigenvectors of the operators of `_block_and_parts`.

    Inputs have a large mean, so (leading eigenvector of the mean of A_b) (x) (mean of z_b) is
    not far off in a fresh network. Half of the start stays random: in a trained one the guess
    can be all but orthogonal to what it should find.
    """
    factor, residual = layer.factor[:_FEW], layer.residual
    assert residual is not None
    batch, _, units = factor.shape
    rest = residual[:_FEW].mean(0)
    rest = rest.diag() if rest.ndim == 1 else rest
    linear = factor.flatten(0, 1).mT @ factor.flatten(0, 1) / batch
    means = torch.stack((linear + rest, linear, rest))[:count]
    noise = random_start(count, units * z.shape[1], z)
    left = noise[:, :units, None]
    for _ in range(2):
        left = torch.nn.functional.normalize(torch.bmm(means, torch.bmm(means, left)), dim=1)
    guess = torch.nn.functional.normalize((left * z.mean(0)).flatten(1), dim=1)
    # Of the sign that keeps the sum from vanishing.
    return noise + guess * (guess * noise).sum(1, keepdim=True).sign()


def _block_and_parts(layer: LayerCurvature, z: Float[Tensor, "b k"]) -> Operators:
    """Give V -> (1/B) sum_b A_b V z_b z_b^T on up to three matrices V of shape (n, k).

    For number 0 A_b = S_b^T S_b + R_b, for 1 S_b^T S_b, for 2 R_b: together, because reading
    S and R is what takes the time.
    """
    factor, residual = layer.factor, layer.residual
    assert residual is not None
    batch, _, units = factor.shape
    weighted = z / batch

    def apply(v: Tensor, numbers: list[int]) -> Tensor:
        count = len(v)
        with_ggn = _slice_of([place for place, number in enumerate(numbers) if number != 2])
        with_residual = _slice_of([place for place, number in enumerate(numbers) if number != 1])
        # Per sample rows, (B, p, n): rows times matrices read R and S in their own order.
        with fast_products(v.dtype, 0.0, v.numel() * batch):
            rows = torch.mm(z, v.view(count * units, -1).mT).view(batch, count, units)
        products = torch.zeros_like(rows)
        if with_ggn:
            products[:, with_ggn] = torch.bmm(torch.bmm(rows[:, with_ggn], factor.mT), factor)
        if with_residual:
            part = rows[:, with_residual]
            part = part * residual[:, None] if diagonal else torch.bmm(part, residual)
            products[:, with_residual] += part
        with fast_products(v.dtype, 0.0, v.numel() * batch):
            return torch.mm(products.view(batch, -1).mT, weighted).view(count, -1)

    diagonal = residual.ndim == 2
    return apply


def _slice_of(places: list[int]) -> slice | None:
    """Give the slice that takes one to three rising places out of three; None for none.

    Example:
        >>> _slice_of([0, 2]), _slice_of([1])
        (slice(0, 3, 2), slice(1, 2, 1))
    """
    if not places:
        return None
    step = places[1] - places[0] if len(places) > 1 else 1
    return slice(places[0], places[-1] + 1, step)
