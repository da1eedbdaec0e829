"""Layer Hessians of fully connected networks, smooth activations included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.backward import LayerCurvature, backward
from hessinit_lib.hessians.losses import LossCurvature, LossFn, loss_curvature
from hessinit_lib.hessians.magnitude import in_range, power_of_two
from hessinit_lib.hessians.memory import piece_size
from hessinit_lib.hessians.network import LinearStage, Stage, forward, has_residual
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.pair_sums import squared_norms
from hessinit_lib.hessians.pairs import estimated_norms
from hessinit_lib.hessians.report import LOST, ZERO, BlockNorms, HessianReport, LayerHessian
from hessinit_lib.hessians.spectral import block_spectral_norms, gauss_newton_spectral_norms

# Bytes of factors that are kept for the spectral norms of several layers together.
_WAITING = 1 << 27


@torch.no_grad()
def chain_hessians(
    model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor, options: Options
) -> HessianReport:
    """Compute the norms of every layer's Hessian block, exactly.

    Args:
        model: a network of which `hessinit_lib.hessians.network.is_chain` is true.
        loss_fn: see `hessinit_lib.hessians.losses.loss_curvature`.
        inputs: shape (B, ...).
        targets: shape (B,) or (B, C).
        options: what to compute.

    Raises:
        NotImplementedError: active dropout, tied weights, a loss that is not covered.
        ValueError: shapes that do not fit, or a `max_memory` that is too small.
    """
    stages, logits = forward(model, inputs)
    if logits.ndim != 2:
        raise ValueError(f"the model gave outputs of shape {tuple(logits.shape)}, expected (B, C)")
    loss = loss_curvature(loss_fn, logits, targets)
    finite = bool(torch.isfinite(logits).all())
    bent = has_residual(model)
    piece = piece_size(stages, loss, options, dense=bent)
    sampled = None
    if options.method == "estimate" and options.frobenius and finite and not bent:
        sampled = estimated_norms(stages, loss, options)
    if sampled is None:
        layers = list(_exact(stages, loss, options, finite, piece))
    else:
        layers = list(_with_estimates(sampled, stages, loss, options, piece))
    return HessianReport(layers[::-1])


@dataclass(frozen=True)
class _Sums:
    """What a layer's tensors sum up to, and the tensors, until its spectral norms are known.

    Attributes:
        layer: S, R and the inputs, scaled to a size whose squares are float32 numbers.
        kernel: the Gram matrix z_b . z_b' of the inputs.
        unit: what the norms are to be multiplied by.
        frobenius: norms of the block, its linearization and its residual.
        traces: of the same.
    """

    layer: LayerCurvature
    kernel: Float[Tensor, "b b"]
    unit: float
    frobenius: list[float]
    traces: list[float]


def _exact(
    stages: list[Stage], loss: LossCurvature, options: Options, finite: bool, piece: int
) -> Iterator[LayerHessian]:
    """Give the norms of all layers, last layer first."""
    limit = options.max_memory
    room = _WAITING if limit is None else min(_WAITING, limit // 8)
    waiting: list[_Sums] = []
    for layer in backward(stages, loss, options.tolerance):
        if not finite:
            lost = (LOST, LOST, LOST)
            yield LayerHessian.from_parts(layer.name, layer.shape, *lost, exact=True)
            continue
        waiting.append(_sums(layer, options, piece))
        held = sum(sums.layer.factor.nbytes + sums.kernel.nbytes for sums in waiting)
        # A dense residual must be used before the next layer's takes its place.
        if not options.spectral or layer.residual is not None or held > room:
            yield from _finished(waiting, options)
            waiting.clear()
    yield from _finished(waiting, options)


def _finished(group: list[_Sums], options: Options) -> Iterator[LayerHessian]:
    """Add the spectral norms of some layers to their sums."""
    parts = options.parts
    plain = [(sums.layer, sums.kernel) for sums in group if sums.layer.residual is None]
    norms = iter(
        gauss_newton_spectral_norms(plain, options.tolerance) if plain and options.spectral else ()
    )
    for sums in group:
        layer, spectral = sums.layer, (math.nan, math.nan, math.nan)
        if options.spectral and layer.residual is None:
            norm = next(norms)
            spectral = (norm, norm, 0.0)
        elif options.spectral:
            spectral = block_spectral_norms(layer, options.tolerance, parts=parts)
        block, linearization, residual = (
            BlockNorms(*(sums.unit * value for value in values))
            for values in zip(sums.frobenius, spectral, sums.traces, strict=True)
        )
        if layer.residual is None:
            linearization, residual = block, ZERO
        yield LayerHessian.from_parts(
            layer.name,
            layer.shape,
            block,
            linearization if parts else LOST,
            residual if parts or layer.residual is None else LOST,
            exact=True,
        )


def _with_estimates(
    sampled: dict[str, BlockNorms],
    stages: list[Stage],
    loss: LossCurvature,
    options: Options,
    piece: int,
) -> Iterator[LayerHessian]:
    """Add to the estimates what is not sampled: all of the last layer, spectral norms."""
    last = next(_exact(stages, loss, replace(options, norms=("frobenius",)), True, piece))
    found = {last.name: BlockNorms(last.frobenius, math.nan, last.trace), **sampled}
    shapes = {
        stage.name: tuple(stage.weight.shape) for stage in stages if isinstance(stage, LinearStage)
    }
    if options.spectral:
        for layer in _exact(stages, loss, replace(options, norms=("spectral",)), True, piece):
            found[layer.name] = replace(
                found[layer.name], spectral=layer.spectral, trace=layer.trace, trace_stderr=0.0
            )
    for name, norms in found.items():
        part = norms if options.parts else LOST
        exact = name == last.name
        yield LayerHessian.from_parts(name, shapes[name], norms, part, ZERO, exact=exact)


def _sums(layer: LayerCurvature, options: Options, piece: int) -> _Sums:
    """Compute Frobenius norms and traces of the block, its linearization and its residual."""
    kernel = layer.kernel(options.tolerance)
    norms, traces = _norms_and_traces(layer, kernel, options, piece)
    if in_range(norms[0] if options.frobenius else traces[0]):
        return _Sums(layer, kernel, 1.0, norms, traces)
    layer, unit = _scaled(layer)
    kernel = layer.kernel(options.tolerance)
    return _Sums(layer, kernel, unit, *_norms_and_traces(layer, kernel, options, piece))


def _norms_and_traces(
    layer: LayerCurvature, kernel: Float[Tensor, "b b"], options: Options, piece: int
) -> tuple[list[float], list[float]]:
    squares = kernel.new_full((3,), math.nan)
    if options.frobenius:
        squares = torch.stack(
            squared_norms(layer, kernel, options.tolerance, parts=options.parts, piece=piece)
        )
    # One transfer from the device for all the scalars.
    *norms, linear, rest = torch.cat((squares.sqrt(), _traces(layer))).tolist()
    return norms, [linear + rest, linear, rest]


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
        residual=None if residual is None else residual / by_curvature**2,
        inputs=layer.inputs / by_inputs,
    )
    return scaled, (by_curvature * by_inputs) ** 2


def _traces(layer: LayerCurvature) -> Float[Tensor, 2]:
    """Traces of the linearization and of the residual."""
    weights = layer.inputs.square().sum(1) / len(layer.inputs)
    linear = torch.dot(weights, torch.linalg.vector_norm(layer.factor, dim=(1, 2)).square())
    residual = layer.residual
    if residual is None:
        return torch.stack((linear, torch.zeros_like(linear)))
    diagonal = residual if residual.ndim == 2 else residual.diagonal(dim1=1, dim2=2)
    return torch.stack((linear, torch.dot(weights, diagonal.sum(1))))
