"""Layer Hessians of any model whose graph is piecewise linear above its layers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from hessinit_lib.hessians.capture import CapturedLayer, capture
from hessinit_lib.hessians.exactness import check_exact
from hessinit_lib.hessians.gram import gram_matrix, largest_eigenvalues
from hessinit_lib.hessians.losses import LossFn, loss_curvature
from hessinit_lib.hessians.network import check_batch
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import LOST, ZERO, BlockNorms, HessianReport, LayerHessian
from hessinit_lib.hessians.unfold import unfold
from hessinit_lib.hessians.workspace import Workspace

# Entries of Gram matrices whose largest eigenvalues are computed together.
_WAITING = 1 << 25


def graph_hessians(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Tensor,
    targets: Tensor,
    options: Options | None = None,
) -> HessianReport:
    r"""Compute the norms of every layer's Hessian block, exactly, for a graph of any shape.

    With $D^2 l_b = \sum_i c_{bi} c_{bi}^\top$ at the logits and $j_{bi}$ the gradient of
    $c_{bi} \cdot \text{logits}_b$ in the weight, a layer's Gauss-Newton block is

    $$G_k = \frac1B \sum_{b,i} j_{bi} j_{bi}^\top,$$

    and equals the Hessian block $H_k$ (almost everywhere) where the logits depend on the
    layer's output in a piecewise-linear way. The autograd graph is checked for that. One
    backward pass for each i gives the factors of all layers at once. The model, its
    gradients, buffers and mode and the global random state are left as found.

    Args:
        model: any module with outputs (B, C). Weights of Linear (with any axes of
            positions), Conv1d to Conv3d, ConvTranspose1d to 3d and Embedding; between
            them any functions that are linear or piecewise linear, such as ReLU, pooling,
            padding, reshapes, residual sums, concatenation, normalization in evaluation
            mode. Computed in float64 if the parameters are float64, else in float32.
        loss_fn: see `hessinit_lib.hessians.losses.loss_curvature`.
        inputs: shape (B, ...), what the model takes, on the model's device.
        targets: class indices (B,), or probabilities or values (B, C).
        options: what to compute.

    Returns:
        A mapping from parameter names to `LayerHessian`, in model order: the weights that
        require a gradient. NaN where the network's outputs are not finite.

    Raises:
        NotImplementedError: a function, module or loss that is not covered, batch
            statistics or active dropout, a weight used more than once, samples that are
            mixed; the message names it.
        ValueError: shapes, batch sizes or class indices that do not fit.

    Source: arXiv 2004.09506 for the principle; derivation in the book, statements 4 and 5.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(
        ...     nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        ... )
        >>> x = torch.randn(16, 1, 8, 8, generator=generator)
        >>> y = torch.randint(3, (16,), generator=generator)
        >>> report = graph_hessians(model, nn.CrossEntropyLoss(), x, y)
        >>> report["0.weight"].shape, report["0.weight"].residual.frobenius
        ((4, 1, 3, 3), 0.0)
    """
    options = options or Options()
    check_batch(inputs, targets)
    batch = len(inputs)
    layers, logits = capture(model, inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model gave outputs of shape {shown}, expected (B, C)")
    reached = check_exact(logits, layers)
    with torch.no_grad():
        loss = loss_curvature(loss_fn, logits.detach(), targets)
        norms = {layer.name: ZERO for layer in layers}
        if not torch.isfinite(logits).all():
            norms.update(dict.fromkeys(reached, LOST))
        elif reached:
            found = [layer for layer in layers if layer.name in reached]
            _check_independence(logits, found)
            columns = loss.factor.transpose(0, 1)
            gradients = _backward_passes(logits, found, columns)
            norms.update(_norms(found, gradients, batch))
    # All linearization, no residual.
    rest = {name: ZERO if math.isfinite(found.trace) else LOST for name, found in norms.items()}
    return HessianReport(
        [
            LayerHessian.from_parts(
                layer.name,
                tuple(layer.weight.shape),
                norms[layer.name],
                norms[layer.name],
                rest[layer.name],
                exact=True,
            )
            for layer in layers
        ]
    )


def _backward_passes(
    logits: Float[Tensor, "b c"], layers: list[CapturedLayer], columns: Float[Tensor, "r b c"]
) -> list[list[Tensor]]:
    """Carry every factor column back to all layers, over the one graph.

    Returns:
        For each layer the gradients of sum_b c_bi . logits_b at its output, one for each i.
    """
    edges = _edges(layers)
    passes = [
        torch.autograd.grad(logits, edges, column.contiguous(), retain_graph=True)
        for column in columns
    ]
    return [list(of_layer) for of_layer in zip(*passes, strict=True)]


def _edges(layers: list[CapturedLayer]) -> list[GradientEdge]:
    return [layer.edge for layer in layers if layer.edge is not None]


def _norms(
    layers: list[CapturedLayer], gradients: list[list[Tensor]], batch: int
) -> dict[str, BlockNorms]:
    """Turn the factors of all layers into the norms of their blocks; uses the factors up."""
    workspace = Workspace(gradients[0][0])
    norms: dict[str, BlockNorms] = {}
    waiting: dict[str, Tensor] = {}
    for layer in reversed(layers):
        gram = gram_matrix(unfold(layer, gradients.pop(), batch, workspace), workspace)
        frobenius, trace = (torch.stack((gram.norm(), gram.trace())) / batch).tolist()
        norms[layer.name] = BlockNorms(frobenius, math.nan, trace)
        if math.isfinite(frobenius):
            waiting[layer.name] = gram
        # Together they are faster, as long as they do not fill the memory.
        if layer is layers[0] or sum(gram.numel() for gram in waiting.values()) > _WAITING:
            largest = largest_eigenvalues(list(waiting.values()))
            for name, value in zip(waiting, largest, strict=True):
                norms[name] = replace(norms[name], spectral=value / batch)
            waiting.clear()
    return norms


def _check_independence(logits: Float[Tensor, "b c"], layers: list[CapturedLayer]) -> None:
    """Make sure that a sample's logits depend on that sample's part of each layer alone.

    The gradient of some of the samples' logits has to vanish, exactly, on all the others.
    """
    batch = len(logits)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(batch, generator=generator) < 0.5
    chosen[0], chosen[-1] = True, batch == 1
    direction = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    direction = (direction * chosen[:, None]).to(logits)
    gradients = torch.autograd.grad(logits, _edges(layers), direction, retain_graph=True)
    for layer, gradient in zip(layers, gradients, strict=True):
        mixed = gradient.shape[0] % batch != 0
        if not mixed:
            per_sample = gradient.reshape(batch, -1)
            mixed = bool(per_sample[~chosen.to(gradient.device)].any())
        if mixed:
            raise NotImplementedError(
                f"the model mixes the samples of the batch above {layer.name}, or its output "
                "does not have them in the first axis: norms need independent samples"
            )
