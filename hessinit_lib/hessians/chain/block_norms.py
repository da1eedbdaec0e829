"""Norms of Hessian blocks from factors, residuals and inputs for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.backward import LayerCurvature
from hessinit_lib.hessians.chain.frobenius import squared_norms
from hessinit_lib.hessians.chain.spectral import (
    block_spectral_norms,
    gauss_newton_spectral_norms,
    padded_spectral_norms,
)
from hessinit_lib.hessians.numerics.lanczos import in_range, power_of_two
from hessinit_lib.hessians.numerics.workspace import Workspace
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import NOT_FINITE, ZERO, BlockNorms, LayerHessian


class Sums(NamedTuple):
    """What a layer's tensors sum up to, and the tensors, until its spectral norms are known.

    Attributes:
        layer: S, R and the inputs.
        kernel: the Gram matrix z_b . z_b' of the inputs.
        numbers: squared Frobenius norms of the block, its linearization and its residual times B^2,
            if asked for, and traces of the latter two times B; without a residual one each.
    """

    layer: LayerCurvature
    kernel: Float[Tensor, "b b"]
    numbers: Float[Tensor, " k"]

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
    kernel, squares = layer.kernel(options.tolerance), list[Tensor]()
    if options.frobenius:
        given = (layer, kernel, options.tolerance, piece, workspace)
        squares = squared_norms(*given, parts=options.parts)
    return Sums(layer, kernel, torch.stack(squares + _traces(layer, kernel)))


def _norms_and_traces(group: Sequence[Sums]) -> list[tuple[list[float], list[float]]]:
    """Give norms and traces of blocks, their linearizations and their residuals."""
    # One transfer from the device for all the scalars.
    numbers = iter(torch.cat([sums.numbers for sums in group]).tolist())
    found = []
    for sums in group:
        batch, kinds = len(sums.kernel), 1 if sums.layer.residual is None else 2
        values = [next(numbers) for _ in sums.numbers]
        squares, (linear, *rest) = values[:-kinds], values[-kinds:]
        # Rounding can leave a tiny negative square where the parts cancel.
        norms = [math.sqrt(max(square, 0.0)) / batch for square in squares] or [math.nan] * 3
        traces = [linear / batch, (rest[0] if rest else 0.0) / batch]
        if len(norms) == 1:
            norms = [*norms * 2, 0.0]
        found.append((norms, [sum(traces), *traces]))
    return found


def with_spectral_norms(
    group: Sequence[Sums], options: Options, piece: int
) -> Iterator[LayerHessian]:
    """Add the spectral norms of some blocks, those of one shape together, to their sums.

    For `piece` see `block_sums`: sums that leave the range of float32 are made again, scaled.
    """
    if not group:
        return
    known = _norms_and_traces(group)
    group, units = [*group], [1.0] * len(group)
    for place, (norms, traces) in enumerate(known):
        if not in_range(norms[0] if options.frobenius else traces[0]):
            layer, units[place] = _scaled(group[place].layer)
            group[place] = block_sums(layer, options, piece)
            known[place] = _norms_and_traces([group[place]])[0]
    parts = options.parts
    spectral = _spectral_norms(group, options) if options.spectral else {}
    summed = zip(group, units, known, strict=True)
    for place, (sums, unit, (frobenius, traces)) in enumerate(summed):
        layer, found = sums.layer, spectral.get(place, (math.nan, math.nan, math.nan))
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
    if any(sums.layer.residual is not None for sums in group):
        norms = padded_spectral_norms(
            [sums.layer for sums in group], options.tolerance, parts=options.parts
        )
        if norms is not None:
            return dict(enumerate(norms))
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


def _traces(layer: LayerCurvature, kernel: Float[Tensor, "b b"]) -> list[Float[Tensor, ""]]:
    """Traces of the linearization and of the residual, if there is one, times B."""
    weights, residual = kernel.diagonal(), layer.residual
    sizes = [torch.linalg.vector_norm(layer.factor, dim=(1, 2)).square_()]
    if residual is not None:
        diagonal = residual if residual.ndim == 2 else residual.diagonal(dim1=1, dim2=2)
        sizes.append(diagonal.sum(1))
    return [torch.dot(weights, each) for each in sizes]
