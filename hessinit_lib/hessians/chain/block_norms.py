"""Norms of Hessian blocks from factors, residuals and inputs for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.backward import LayerCurvature
from hessinit_lib.hessians.chain.frobenius import squared_norms
from hessinit_lib.hessians.chain.spectral import block_spectral_norms, gauss_newton_spectral_norms
from hessinit_lib.hessians.numerics.lanczos import in_range, power_of_two
from hessinit_lib.hessians.numerics.workspace import PIECE, Workspace
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import NOT_FINITE, ZERO, BlockNorms, LayerHessian


class Sums(NamedTuple):
    """What a layer's tensors sum up to, and the tensors, until its spectral norms are known.

    Attributes:
        layer: S, R and the inputs.
        kernel: the Gram matrix z_b . z_b' of the inputs.
        numbers: squared Frobenius norms of the block, its linearization and its residual, and the
            traces of the latter two, shape (5,).
    """

    layer: LayerCurvature
    kernel: Float[Tensor, "b b"]
    numbers: Float[Tensor, 5]

    @property
    def nbytes(self) -> int:
        """What is held, without a residual."""
        return self.layer.factor.nbytes + self.kernel.nbytes


def block_sums(
    layer: LayerCurvature, options: Options, piece: int, workspace: Workspace | None = None
) -> Sums:
    """Compute Frobenius norms and traces of a block, its linearization and its residual.

    Tensors that are made in pieces have `piece` entries at a time.
    """
    kernel = layer.kernel(options.tolerance)
    squares = kernel.new_full((3,), math.nan)
    if options.frobenius:
        given = (layer, kernel, options.tolerance, piece, workspace)
        squares = torch.stack(squared_norms(*given, parts=options.parts))
    return Sums(layer, kernel, torch.cat((squares, _traces(layer, kernel))))


def with_spectral_norms(group: Sequence[Sums], options: Options) -> Iterator[LayerHessian]:
    """Add the spectral norms of some blocks, those of one shape together, to their sums."""
    # One transfer from the device for all the scalars.
    numbers = torch.stack([sums.numbers for sums in group]).tolist() if group else []
    units = [1.0] * len(group)
    group = [*group]
    for place, (square, _, _, linear, rest) in enumerate(numbers):
        if not in_range(math.sqrt(square) if options.frobenius else linear + rest):
            layer, units[place] = _scaled(group[place].layer)
            group[place] = block_sums(layer, options, PIECE)
            numbers[place] = group[place].numbers.tolist()
    parts = options.parts
    spectral = _spectral_norms(group, options) if options.spectral else {}
    for place, (sums, unit, (*squares, linear, rest)) in enumerate(
        zip(group, units, numbers, strict=True)
    ):
        layer, found = sums.layer, spectral.get(place, (math.nan, math.nan, math.nan))
        frobenius, traces = (
            [math.sqrt(max(square, 0.0)) for square in squares],
            (linear + rest, linear, rest),
        )
        block, linearization, residual = (
            BlockNorms(*(unit * value for value in values))
            for values in zip(frobenius, found, traces, strict=True)
        )
        if layer.residual is None:
            linearization, residual = block, ZERO
        yield LayerHessian.from_parts(
            layer.name,
            layer.shape,
            block,
            linearization if parts else NOT_FINITE,
            residual if parts or layer.residual is None else NOT_FINITE,
            exact=True,
        )


def _spectral_norms(group: Sequence[Sums], options: Options) -> dict[int, tuple[float, ...]]:
    """Compute the spectral norms of the block and its parts by place in the group."""
    alike: dict[tuple[int, ...] | None, list[int]] = {}
    for place, sums in enumerate(group):
        layer, rest = sums.layer, sums.layer.residual
        shape = None if rest is None else (*layer.factor.shape, rest.ndim, layer.inputs.shape[1])
        alike.setdefault(shape, []).append(place)
    found: dict[int, tuple[float, ...]] = {}
    for shape, places in alike.items():
        layers = [group[place].layer for place in places]
        if shape is not None:
            norms = block_spectral_norms(layers, options.tolerance, parts=options.parts)
        else:
            pairs = [(group[place].layer, group[place].kernel) for place in places]
            norms = [(n, n, 0.0) for n in gauss_newton_spectral_norms(pairs, options.tolerance)]
        found.update(zip(places, norms, strict=True))
    return found


def _scaled(layer: LayerCurvature) -> tuple[LayerCurvature, float]:
    """Scale a layer's tensors to a size of about one, and give the number taken out."""
    residual = layer.residual
    curvature = layer.factor.abs().max().item()
    if residual is not None:
        curvature = max(curvature, math.sqrt(residual.abs().max().item()))
    by_curvature = power_of_two(curvature)
    by_inputs = power_of_two(layer.inputs.abs().max().item())
    scaled = replace(
        layer,
        factor=layer.factor / by_curvature,
        # Twice: the square may be too small a number for the residual's type.
        residual=None if residual is None else residual / by_curvature / by_curvature,
        inputs=layer.inputs / by_inputs,
    )
    return scaled, (by_curvature * by_inputs) ** 2


def _traces(layer: LayerCurvature, kernel: Float[Tensor, "b b"]) -> Float[Tensor, 2]:
    """Traces of the linearization and of the residual."""
    weights, residual = kernel.diagonal() / len(kernel), layer.residual
    sizes = [torch.linalg.vector_norm(layer.factor, dim=(1, 2)).square_()]
    if residual is not None:
        diagonal = residual if residual.ndim == 2 else residual.diagonal(dim1=1, dim2=2)
        sizes.append(diagonal.sum(1))
    found = torch.stack(sizes) @ weights
    return found if residual is not None else F.pad(found, (0, 1))
