"""Layer Hessians of fully connected networks, smooth activations included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from hessinit_lib.hessians.chain.backward import backward
from hessinit_lib.hessians.chain.block_norms import Sums, block_sums, with_spectral_norms
from hessinit_lib.hessians.chain.network import Chain, LinearStage, Stage
from hessinit_lib.hessians.chain.sketched import chain_sketched_norms
from hessinit_lib.hessians.loss import LossCurvature, LossFn, loss_curvature, on_logits
from hessinit_lib.hessians.numerics.lanczos import all_finite
from hessinit_lib.hessians.numerics.workspace import (
    batches,
    kept_workspace,
    piece_entries,
    waiting_room,
)
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import NOT_FINITE, ZERO, BlockNorms, HessianReport, LayerHessian


@torch.no_grad()
def chain_hessians(
    chain: Chain, loss_fn: LossFn, inputs: Tensor, targets: Tensor, options: Options
) -> HessianReport:
    """Compute the norms of every layer's Hessian block, exactly.

    Raises:
        NotImplementedError: a loss that is not covered, see `loss_curvature`.
        ValueError: shapes that do not fit, or a `max_memory` that is too small.
    """
    stages, logits = chain.forward(inputs)
    if logits.ndim != 2:
        raise NotImplementedError(
            f"the model gave outputs of shape {tuple(logits.shape)}, expected (B, C)"
        )
    parameters = {
        f"{name}.{key}": parameter
        for name, module in chain.modules
        for key, parameter in module.named_parameters()
    }
    loss_fn = on_logits(loss_fn, 1 if chain.log_softmax else None)
    loss = loss_curvature(loss_fn, logits, targets, parameters)
    finite = all_finite(logits, loss.gradient)
    dense = chain.has_residual
    piece = piece_size(stages, loss, options, dense=dense)
    sketched = None
    with torch._C.DisableTorchFunction():  # modes would take longer than small operations do
        if options.method == "estimate" and options.frobenius and finite and not dense:
            sketched = chain_sketched_norms(stages, loss, options)
        if sketched is None:
            return HessianReport([*_exact(stages, loss, options, finite, piece)][::-1])
        return HessianReport([*_with_sketches(sketched, stages, loss, options, piece)][::-1])


def _exact(
    stages: list[Stage], loss: LossCurvature, options: Options, finite: bool, piece: int
) -> Iterator[LayerHessian]:
    """Give the norms of all layers, last layer first."""
    limit = options.max_memory
    on_cpu = loss.factor.device.type == "cpu"
    room = piece_entries(loss.factor, _CACHED // 2) if limit is None and options.spectral else 0

    def kept(sums: Sums) -> Sums:
        """Copy a small residual, so that it can wait while the next one takes its place."""
        rest = sums.layer.residual
        if rest is not None and len(rest) * rest.shape[1] ** 2 * rest.element_size() <= room:
            rest = rest.diag_embed() if rest.ndim == 2 else rest.clone()
        return sums._replace(layer=replace(sums.layer, residual=rest))

    def size(sums: Sums) -> int | float:
        rest = 0 if sums.layer.residual is None else sums.layer.residual.nbytes
        return sums.nbytes + (16 * rest if on_cpu else rest) if rest <= room else math.inf

    with kept_workspace(loss.factor) if limit is None else nullcontext() as workspace:
        layers = backward(stages, loss, options.tolerance, workspace)
        if not finite:
            norms = (NOT_FINITE, NOT_FINITE, NOT_FINITE)
            for layer in layers:
                yield LayerHessian.from_parts(layer.name, layer.shape, *norms, exact=True)
            return
        found = (kept(block_sums(layer, options, piece, workspace)) for layer in layers)
        for group in batches(found, size, limit, waiting_room(loss.factor, options.spectral)):
            yield from with_spectral_norms(group, options, piece)


def _with_sketches(
    sketched: dict[str, BlockNorms],
    stages: list[Stage],
    loss: LossCurvature,
    options: Options,
    piece: int,
) -> Iterator[LayerHessian]:
    """Add what is not estimated from sketches: all of the last layer, spectral norms."""
    last = next(_exact(stages, loss, replace(options, norms=("frobenius",)), True, piece))
    found = {last.name: BlockNorms(last.frobenius, math.nan, last.trace), **sketched}
    shapes = {
        stage.name: tuple(stage.weight.shape) for stage in stages if isinstance(stage, LinearStage)
    }
    if options.spectral:
        for layer in _exact(stages, loss, replace(options, norms=("spectral",)), True, piece):
            found[layer.name] = replace(
                found[layer.name], spectral=layer.spectral, trace=layer.trace, trace_stderr=0.0
            )
    for name, norms in found.items():
        part = norms if options.parts else NOT_FINITE
        exact = name == last.name
        yield LayerHessian.from_parts(name, shapes[name], norms, part, ZERO, exact=exact)


# Bytes of residuals that are multiplied together, what a cache holds: a sixteenth of what may wait.
_CACHED = 1 << 23

# Lanczos vectors for which room is left.
_STEPS = 30


def piece_size(stages: list[Stage], loss: LossCurvature, options: Options, *, dense: bool) -> int:
    """Give the entries that tensors made in pieces may have.

    If `dense`, there are residuals that are matrices, (B, n, n).

    Raises:
        ValueError: `max_memory` is less than what cannot be made in pieces.
    """
    limit, most = options.max_memory, piece_entries(loss.factor)
    if limit is None:
        return most
    linear = [stage for stage in stages if isinstance(stage, LinearStage)]
    batch, rank, _ = loss.factor.shape
    widest = max(max(stage.weight.shape) for stage in linear[1:]) if linear[1:] else 0
    outputs = loss.factor.shape[2]
    # Factors above and below a layer, and the copy that its products are made of.
    entries = 3 * batch * rank * max(widest, outputs)
    # The Gram matrix of the inputs, its squares, sums over pairs of samples.
    entries += 4 * batch**2
    if dense:
        entries += 4 * batch * widest**2
    if options.spectral:
        chains = 1 if not (dense and options.parts) else 3
        vectors = [stage.weight.shape[0] * min(batch, stage.weight.shape[1]) for stage in linear]
        entries += _STEPS * (chains * max(vectors) if dense else batch * rank)
        entries += max(stage.inputs.numel() for stage in linear)
    size = loss.factor.element_size()
    # Pieces of at least a sixteenth of the rows: many small ones are slow.
    least = size * (entries + 4 * batch * max(widest, outputs) * (-(-widest // 16) if dense else 1))
    if limit < least:
        raise ValueError(f"max_memory={limit}: at least {least} bytes are needed")
    return min(most, (limit - size * entries) // (4 * size))
