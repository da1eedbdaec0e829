"""Spectral norms of a layer's Hessian and its parts, from factors of its samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.backward import LayerCurvature
from hessinit_lib.hessians.numerics.lanczos import Operators, random_start, spectral_norms
from hessinit_lib.hessians.numerics.precision import fast_products, few_threads
from hessinit_lib.hessians.numerics.workspace import piece_entries

# Samples that a first guess is made from.
_FEW = 16

# Entries of the tensors of all layers together that are worth a copy.
_SMALL = 1 << 20


def gauss_newton_spectral_norms(
    layers: Sequence[tuple[LayerCurvature, Float[Tensor, "b b"]]], tolerance: float
) -> list[float]:
    """Compute the spectral norms of layers without residual, one Lanczos chain a layer.

    All together: in a small network it is the calls that take the time, not the products.
    With each layer comes the Gram matrix z_b . z_b' of its inputs.
    """
    batch, rank, _ = layers[0][0].factor.shape
    units = max(layer.factor.shape[2] for layer, _ in layers)
    start = random_start(1, batch * rank, layers[0][1]).expand(len(layers), -1)
    entries = len(layers) * batch * max(batch, rank * units)
    small = entries <= piece_entries(start, _SMALL)
    parts = [_linearizations(g, tolerance) for g in ([layers] if small else [[e] for e in layers])]

    def several(u: Tensor, places: list[int]) -> Tensor:
        return torch.cat([parts[k](row[None], [0]) for k, row in zip(places, u, strict=True)])

    with few_threads(batch**2 * units):
        return spectral_norms(parts[0] if len(parts) == 1 else several, start, tolerance)


def block_spectral_norms(
    layers: Sequence[LayerCurvature], tolerance: float, *, parts: bool
) -> list[tuple[float, float, float]]:
    """Compute the spectral norms of blocks with a residual, their linearizations and the latter.

    Of layers of one shape, together. Without `parts` the last two are NaN.
    """
    count = 3 if parts else 1
    factor = _joined([layer.factor for layer in layers])
    residual = _joined([layer.residual for layer in layers if layer.residual is not None])
    inputs = _joined([_reduce_inputs(layer.inputs) for layer in layers])
    with few_threads(residual.numel()):
        start = _start(factor, residual, inputs, count)
    norms = spectral_norms(_blocks_and_parts(factor, residual, inputs, count), start, tolerance)
    return _by_layer(norms, count)


def padded_spectral_norms(
    layers: Sequence[LayerCurvature], tolerance: float, *, parts: bool
) -> list[tuple[float, float, float]] | None:
    """Do what `block_spectral_norms` does for layers of any shapes, by as few products as may be.

    Zeros stand for the units and inputs that a layer has not. For a GPU, which waits for each
    launch; None on another device, or if that would take much memory.
    """
    count, like = 3 if parts else 1, layers[0].factor
    units = max(layer.factor.shape[2] for layer in layers)
    entries = count * len(layers) * len(like) * units**2
    if like.device.type == "cpu" or entries > piece_entries(like):
        return None
    inputs = [_reduce_inputs(layer.inputs, 8) for layer in layers]
    wide = max(z.shape[1] for z in inputs)
    z = torch.stack([F.pad(z, (0, wide - z.shape[1])) for z in inputs])
    factors, rests = list[Tensor](), list[Tensor]()
    for layer in layers:
        more, rest = (0, units - layer.factor.shape[2]), layer.residual
        rest = torch.zeros_like(layer.factor[:, 0]) if rest is None else rest
        factors.append(F.pad(layer.factor, more))
        rests.append(F.pad(rest, more).diag_embed() if rest.ndim == 2 else F.pad(rest, more * 2))
    factor, residual = torch.stack(factors), torch.stack(rests)
    start = _start(factor, residual, z, count)
    return _by_layer(
        spectral_norms(_block_matrices(factor, residual, z, count), start, tolerance), count
    )


def _by_layer(norms: list[float], count: int) -> list[tuple[float, float, float]]:
    rest = (norms[1::3], norms[2::3]) if count == 3 else ([math.nan] * len(norms),) * 2
    return list(zip(norms[::count], *rest, strict=True))


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts) if len(parts) > 1 else parts[0][None]  # a large one is not copied


def _linearizations(
    layers: Sequence[tuple[LayerCurvature, Float[Tensor, "b b"]]], tolerance: float
) -> Operators:
    """Give operators on vectors of size d = B r with the nonzero eigenvalues of each G.

    G = V V^T with columns V_(b,i) = s_bi (x) z_b / sqrt B; this is V^T V: smaller, and free
    of the parameters' size. Zeros stand for units that a layer has not.
    """
    factors, kernels = [layer.factor for layer, _ in layers], _joined([k for _, k in layers])
    batch, rank, units = factors[0].shape[0], factors[0].shape[1], max(f.shape[2] for f in factors)
    padded = (F.pad(f, (0, units - f.shape[2])) for f in factors)
    factor = _joined([*padded] if len(factors) > 1 else factors)
    z = layers[0][0].inputs[None]
    narrow = len(layers) == 1 and 2 * z.shape[2] < batch
    scaled = z / batch if narrow else z

    @functools.lru_cache(maxsize=1)  # the places seldom change
    def chosen(places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        some = slice(None) if len(places) == len(layers) else [*places]
        return factor[some].flatten(0, 1), kernels[some] / batch

    def apply(u: Tensor, places: list[int]) -> Tensor:
        s, kernel = chosen(tuple(places))
        rows = torch.bmm(u.view(-1, 1, rank), s).view(-1, batch, units)
        with fast_products(u.dtype, tolerance, rows.numel() * batch):
            rows = torch.bmm(scaled, torch.bmm(z.mT, rows)) if narrow else torch.bmm(kernel, rows)
        return torch.bmm(rows.view(-1, 1, units), s.mT).view(u.shape)

    return apply


def _reduce_inputs(z: Float[Tensor, "b m"], most: int = 1) -> Float[Tensor, "b k"]:
    """Turn more inputs than `most` times B into coordinates of their span: same dot products."""
    return z if most * len(z) >= z.shape[1] else torch.linalg.qr(z.mT, mode="r").R.mT


def _start(
    factor: Float[Tensor, "l b r n"],
    residual: Float[Tensor, "l b *rest"],
    z: Float[Tensor, "l b k"],
    count: int,
) -> Float[Tensor, "p d"]:
    """Guess the leading eigenvectors of the operators of `_blocks_and_parts`.

    Inputs have a large mean, so (leading eigenvector of the mean of A_b) (x) (mean of z_b) is
    not far off in a fresh network. Half of the start stays random: in a trained one the guess
    can be all but orthogonal to what it should find.
    """
    rows, rest = factor[:, :_FEW].flatten(1, 2), residual[:, :_FEW].mean(1)
    rest = rest.diag_embed() if rest.ndim == 2 else rest
    linear = torch.bmm(rows.mT, rows) / min(_FEW, factor.shape[1])
    means = torch.stack((linear + rest, linear, rest)[:count], 1).flatten(0, 1)
    noise = random_start(count, factor.shape[3] * z.shape[2], z).repeat(len(factor), 1)
    left = noise[:, : factor.shape[3], None]
    for _ in range(2):
        left = F.normalize(torch.bmm(means, torch.bmm(means, left)), dim=1)
    mean = z.mean(1).repeat_interleave(count, 0)
    guess = F.normalize((left * mean[:, None]).flatten(1), dim=1)
    # Of the sign that keeps the sum from vanishing.
    return noise + guess * (guess * noise).sum(1, keepdim=True).sign()


def _block_matrices(
    factor: Float[Tensor, "l b r n"],
    residual: Float[Tensor, "l b n n"],
    z: Float[Tensor, "l b k"],
    count: int,
) -> Operators:
    """Do what `_blocks_and_parts` does in three products, from matrices A_b of all kinds."""
    layers, batch, _, units = factor.shape
    linear = torch.bmm(factor.flatten(0, 1).mT, factor.flatten(0, 1)).view(layers, batch, units, -1)
    kinds = torch.stack((linear + residual, linear, residual)[:count], 1).flatten(0, 1)
    every = z.repeat_interleave(count, 0)

    @functools.lru_cache(maxsize=1)
    def chosen(numbers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        some = slice(None) if len(numbers) == len(kinds) else [*numbers]
        return kinds[some].flatten(0, 1), every[some], every[some] / batch

    def apply(v: Tensor, numbers: list[int]) -> Tensor:
        matrices, inputs, scaled = chosen(tuple(numbers))
        rows = torch.bmm(inputs, v.view(len(inputs), units, -1).mT)
        products = torch.bmm(rows.view(-1, 1, units), matrices).view(rows.shape)
        return torch.bmm(products.mT, scaled).view(v.shape)

    return apply


def _blocks_and_parts(
    factor: Float[Tensor, "l b r n"],
    residual: Float[Tensor, "l b *rest"],
    z: Float[Tensor, "l b k"],
    count: int,
) -> Operators:
    """Give V -> (1/B) sum_b A_b V z_b z_b^T on matrices V of shape (n, k), `count` for a layer.

    For number 0 A_b = S_b^T S_b + R_b, for 1 S_b^T S_b, for 2 R_b: together, because reading
    S and R is what takes the time.
    """
    batch, _, units = factor.shape[1:]

    @functools.lru_cache(maxsize=1)  # the numbers seldom change
    def chosen(numbers: tuple[int, ...]) -> tuple[Any, ...]:
        kinds = sorted({number % count for number in numbers})
        some = slice(numbers[0] // count, numbers[-1] // count + 1)
        frame = [at * count + kind for at in range(some.start, some.stop) for kind in kinds]
        places = torch.tensor([frame.index(number) for number in numbers], device=z.device)
        masks = (z.new_tensor([[float(kind != part)] for kind in kinds]) for part in (2, 1))
        tensors = (factor[some].flatten(0, 1), residual[some].flatten(0, 1), z[some] / batch)
        return kinds, None if len(frame) == len(numbers) else places, z[some], *tensors, *masks

    def apply(v: Tensor, numbers: list[int]) -> Tensor:
        kinds, places, inputs, s, r, scaled, with_s, with_r = chosen(tuple(numbers))
        layers, width = len(inputs), len(kinds)
        if places is not None:  # zeros stand for those that are known
            v = v.new_zeros(layers * width, v.shape[1]).index_copy_(0, places, v)
        # Per sample rows, (l B, p, n): rows times matrices read R and S in their own order.
        with fast_products(v.dtype, 0.0, v.numel() * batch):
            rows = torch.bmm(inputs, v.view(layers, width * units, -1).mT)
        rows = rows.view(layers * batch, width, units)
        with fast_products(v.dtype, 0.0, width * r.numel()):
            products = rows * r[:, None] if r.ndim == 2 else torch.bmm(rows, r)
        if kinds != [2]:
            with few_threads(width * s.numel()):
                linear = torch.bmm(torch.bmm(rows, s.mT), s)
                products.mul_(with_r).addcmul_(linear, with_s)
        with fast_products(v.dtype, 0.0, v.numel() * batch):
            image = torch.bmm(products.view(layers, batch, -1).mT, scaled)
        image = image.view(layers * width, -1)
        return image if places is None else image[places]

    return apply
