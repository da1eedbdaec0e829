"""Layer Hessians of any model whose graph is piecewise linear above its layers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.chain.block_norms import Sums, block_sums, with_spectral_norms
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.graph.backward import layer_grams
from hessinit_lib.hessians.graph.capture import CapturedLayer, capture_logits
from hessinit_lib.hessians.graph.conditions import check_exact, check_independence
from hessinit_lib.hessians.graph.norms import GramNorms, all_norms, gram_norms
from hessinit_lib.hessians.graph.sketched import graph_sketched_norms
from hessinit_lib.hessians.loss import loss_curvature
from hessinit_lib.hessians.numerics.lanczos import all_finite
from hessinit_lib.hessians.numerics.precision import may_round
from hessinit_lib.hessians.numerics.workspace import batches, piece_entries, waiting_room
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import NOT_FINITE, ZERO, BlockNorms, HessianReport, LayerHessian


def graph_hessians(case: Case, options: Options | None = None) -> HessianReport:
    r"""Compute the norms of every layer's Hessian block, exactly, for a graph of any shape.

    With $D^2 l_b = \sum_i c_{bi} c_{bi}^\top$ at the logits and $j_{bi}$ the gradient of
    $c_{bi} \cdot \text{logits}_b$ in the weight, a layer's Gauss-Newton block is

    $$G_k = \frac1B \sum_{b,i} j_{bi} j_{bi}^\top,$$

    and equals the Hessian block $H_k$ (almost everywhere) where the logits depend on the
    layer's output in a piecewise-linear way. The autograd graph is checked for that. One
    backward pass for each i gives the factors of all layers at once.

    Args:
        case: a module with outputs (B, C); weights of the kinds in `hessians/kinds.py`; between
            them any functions that `check_exact` knows to be piecewise linear, such as ReLU,
            pooling, residual sums, concatenation, normalization in evaluation mode.
        options: what to compute. Estimates are made of Frobenius norms and traces alone, where
            they cost less. With products in bfloat16 (float32, a tolerance of 1e-3 or more)
            errors below 1e-4 in the norms and of some 1e-4 in the traces were measured.

    Raises:
        NotImplementedError: what is not covered, batch statistics or active dropout, a weight
            used more than once, samples that are mixed; the message names it.
        ValueError: shapes, class indices or a `max_memory` that do not fit.
    """
    options = options or Options()
    batch = case.samples
    layers, logits, loss_fn = capture_logits(case)
    if logits.ndim != 2 or len(logits) != batch:
        raise NotImplementedError(
            f"the model gave outputs of shape {tuple(logits.shape)}: "
            "exact norms need one row a sample, (B, C)"
        )
    reached = check_exact(logits, layers)
    check_derivatives(case)
    with torch.no_grad():
        loss = loss_curvature(loss_fn, logits.detach(), case.targets, case.parameters)
        norms = {layer.name: ZERO for layer in layers}
        estimated: dict[str, BlockNorms] | None = None
        if not all_finite(logits, loss.gradient):
            norms.update(dict.fromkeys(reached, NOT_FINITE))
        elif reached:
            found = [layer for layer in layers if layer.name in reached]
            check_independence(logits, found)
            columns = loss.factor.transpose(0, 1)
            if options.method == "estimate" and not options.spectral:
                estimated = graph_sketched_norms(logits, found, columns, options)
            norms.update(estimated or _exact_norms(logits, found, columns, options))
    # All linearization, no residual.
    rest = {
        name: ZERO if math.isfinite(found.trace) else NOT_FINITE for name, found in norms.items()
    }
    return HessianReport(
        [
            LayerHessian.from_parts(
                layer.name,
                tuple(layer.weight.shape),
                norms[layer.name],
                norms[layer.name],
                rest[layer.name],
                exact=layer.name not in (estimated or {}),
            )
            for layer in layers
        ]
    )


def _exact_norms(
    logits: Float[Tensor, "b c"],
    layers: list[CapturedLayer],
    columns: Float[Tensor, "r b c"],
    options: Options,
) -> dict[str, BlockNorms]:
    """Compute the norms of all blocks from their factors."""
    limit = options.max_memory
    piece = min(piece_entries(logits), (limit or 1 << 62) // 64)
    room = waiting_room(logits, options.spectral)
    grams = layer_grams(
        logits,
        layers,
        columns,
        factored=True,
        rounded=may_round(logits, options.tolerance),
        limit=limit,
    )
    sums = (
        block_sums(gram.curvature(), options, piece) if gram.factored else gram_norms(gram)
        for gram in grams
    )
    norms: dict[str, BlockNorms] = {}
    for group in batches(sums, lambda each: each.nbytes, limit, room):
        norms.update(_finished(group, len(logits), options, piece))
    return norms


def _finished(
    group: list[Sums | GramNorms], batch: int, options: Options, piece: int
) -> dict[str, BlockNorms]:
    """Finish the norms of some blocks: together they are found faster."""
    norms = all_norms([each for each in group if isinstance(each, GramNorms)], batch, options)
    sums = [each for each in group if isinstance(each, Sums)]
    for found in with_spectral_norms(sums, options, piece):
        norms[found.name] = BlockNorms(found.frobenius, found.spectral, found.trace)
    return norms
