"""Layer Hessians of fully connected networks, smooth activations included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

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
from hessinit_lib.hessians.spectral import chain_spectral_norms


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


def _exact(
    stages: list[Stage], loss: LossCurvature, options: Options, finite: bool, piece: int
) -> Iterator[LayerHessian]:
    """Give the norms of all layers, last layer first."""
    for layer in backward(stages, loss, options.tolerance):
        norms = _norms(layer, options, piece) if finite else (LOST, LOST, LOST)
        yield LayerHessian.from_parts(layer.name, layer.shape, *norms, exact=True)


def _with_estimates(
    sampled: dict[str, BlockNorms],
    stages: list[Stage],
    loss: LossCurvature,
    options: Options,
    piece: int,
) -> Iterator[LayerHessian]:
    """Add to the estimates what is not sampled: all of the last layer, spectral norms."""
    yield next(_exact(stages, loss, options, True, piece))
    if options.spectral:
        others = _exact(stages, loss, replace(options, norms=("spectral",)), True, piece)
        for layer in islice(others, 1, None):
            sampled[layer.name] = replace(
                sampled[layer.name], spectral=layer.spectral, trace=layer.trace, trace_stderr=0.0
            )
    shapes = {
        stage.name: tuple(stage.weight.shape) for stage in stages if isinstance(stage, LinearStage)
    }
    for name, norms in sampled.items():
        part = norms if options.parts else LOST
        yield LayerHessian.from_parts(name, shapes[name], norms, part, ZERO, exact=False)


def _norms(
    layer: LayerCurvature, options: Options, piece: int
) -> tuple[BlockNorms, BlockNorms, BlockNorms]:
    """Compute the norms of the block, its linearization and its residual."""
    tolerance, parts = options.tolerance, options.parts
    kernel, unit = layer.kernel(tolerance), 1.0
    roots, traces = _roots_and_traces(layer, kernel, options, piece)
    if not in_range(roots[0] if options.frobenius else traces[0]):
        layer, unit = _scaled(layer)
        kernel = layer.kernel(tolerance)
        roots, traces = _roots_and_traces(layer, kernel, options, piece)
    spectral = (math.nan, math.nan, math.nan)
    if options.spectral:
        spectral = chain_spectral_norms(layer, kernel, tolerance, parts=parts)
    block, linearization, residual = (
        BlockNorms(*(unit * value for value in norms))
        for norms in zip(roots, spectral, traces, strict=True)
    )
    if layer.residual is None:
        return block, block if parts else LOST, ZERO
    return (block, linearization, residual) if parts else (block, LOST, LOST)


def _roots_and_traces(
    layer: LayerCurvature, kernel: Float[Tensor, "b b"], options: Options, piece: int
) -> tuple[list[float], list[float]]:
    """Compute Frobenius norms and traces of the block, its linearization and its residual."""
    squares = kernel.new_full((3,), math.nan)
    if options.frobenius:
        squares = torch.stack(
            squared_norms(layer, kernel, options.tolerance, parts=options.parts, piece=piece)
        )
    # One transfer from the device for all the scalars.
    *roots, linear, rest = torch.cat((squares.sqrt(), _traces(layer))).tolist()
    return roots, [linear + rest, linear, rest]


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
