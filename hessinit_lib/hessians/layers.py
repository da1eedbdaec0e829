"""`layer_hessians`: the norms of every layer's loss Hessian in one call."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.backward import LayerCurvature, backward
from hessinit_lib.hessians.graph import graph_hessians
from hessinit_lib.hessians.lanczos import Operator, random_start, spectral_norms
from hessinit_lib.hessians.losses import LossFn, loss_curvature
from hessinit_lib.hessians.network import check_batch, forward, is_chain
from hessinit_lib.hessians.pair_sums import squared_norms
from hessinit_lib.hessians.report import LOST, ZERO, BlockNorms, HessianReport, LayerHessian


def layer_hessians(
    model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor
) -> HessianReport:
    r"""Compute the norms of every layer's Hessian block, exactly, in one pass.

    For the batch-mean loss $L$ and the weight $W^k$ of shape (n, m),

    $$H_k = D^2_{W^k} L = \frac1B \sum_b A_b \otimes z_b z_b^\top,$$

    with $z_b$ the layer's inputs and $A_b$ the Hessian of sample $b$'s loss in the layer's
    pre-activations. $H_k = G_k + R_k$ is reported with its two parts: the linearization
    (generalized Gauss-Newton block) and the residual. No matrix of the size of the
    parameters is formed. The model, its gradients, buffers and mode and the global random
    state are left as found.

    Args:
        model: either a fully connected network, `nn.Sequential` (also nested) of
            `nn.Linear`, twice differentiable (almost everywhere) elementwise activations,
            `nn.Flatten`, `nn.Identity` and inactive dropout; or any module that is
            piecewise linear above each of its Linear, convolution and Embedding layers
            (ReLU, pooling, residual sums, concatenation, normalization in evaluation
            mode), where the block is its linearization: see
            `hessinit_lib.hessians.graph.graph_hessians`. Computed in float64 if the
            parameters are float64, else in float32.
        loss_fn: cross-entropy or MSE, averaged over the batch: `nn.CrossEntropyLoss()`,
            `nn.MSELoss()`, `F.cross_entropy` or `F.mse_loss`.
        inputs: shape (B, ...), what the model takes, on the model's device.
        targets: class indices (B,), or probabilities or values (B, C).

    Returns:
        A mapping from parameter names to `LayerHessian`, in model order: the weights that
        require a gradient. NaN where the network's outputs are not finite.

    Raises:
        NotImplementedError: a function, module, loss or reduction that is not covered,
            active dropout, batch statistics, tied weights; the message names it.
        ValueError: shapes, batch sizes or class indices that do not fit.

    Source: arXiv 2004.09506 for the principle; derivation in the book, statements 2 and 3.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(16, 4, generator=generator)
        >>> y = torch.randint(3, (16,), generator=generator)
        >>> report = layer_hessians(model, nn.CrossEntropyLoss(), x, y)
        >>> list(report)
        ['0.weight', '2.weight']
        >>> report["0.weight"].residual.frobenius  # ReLU: the linearization is exact
        0.0
    """
    check_batch(inputs, targets)
    if is_chain(model, inputs):
        return _chain_hessians(model, loss_fn, inputs, targets)
    return graph_hessians(model, loss_fn, inputs, targets)


@torch.no_grad()
def _chain_hessians(
    model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor
) -> HessianReport:
    """Take the route for fully connected networks, smooth activations included."""
    stages, logits = forward(model, inputs)
    if logits.ndim != 2:
        raise ValueError(f"the model gave outputs of shape {tuple(logits.shape)}, expected (B, C)")
    loss = loss_curvature(loss_fn, logits, targets)
    finite = bool(torch.isfinite(logits).all())
    layers = [_summarize(layer, finite) for layer in backward(stages, loss)]
    return HessianReport(layers[::-1])


def _summarize(layer: LayerCurvature, finite: bool) -> LayerHessian:
    """Turn the curvature of one layer into its norms."""
    parts = _parts(layer) if finite else (LOST, LOST, LOST)
    return LayerHessian.from_parts(layer.name, layer.shape, *parts, exact=True)


def _parts(layer: LayerCurvature) -> tuple[BlockNorms, BlockNorms, BlockNorms]:
    """Compute the norms of the block, its linearization and its residual."""
    z, factor, residual = layer.inputs, layer.factor, layer.residual
    kernel = z @ z.mT
    squares = squared_norms(layer, kernel)
    batch, rank, units = factor.shape
    size = z.square().sum(1)
    trace_g = torch.dot(size, factor.square().sum((1, 2))) / batch
    trace_r = torch.dot(size, _residual_diagonal(layer).sum(1)) / batch
    # One transfer from the device for all the scalars.
    total, linear, rest, g, r = torch.stack((*squares, trace_g, trace_r)).tolist()

    start = random_start(1, batch * rank, z)
    (spectral_g,) = spectral_norms(_linearization(layer, kernel), start)
    linearization = BlockNorms(math.sqrt(linear), spectral_g, g)
    if residual is None:
        return linearization, linearization, ZERO
    reduced = _reduce_inputs(z)
    start = random_start(2, units * reduced.shape[1], z)
    spectral_h, spectral_r = spectral_norms(_block_and_residual(layer, reduced), start)
    return (
        BlockNorms(math.sqrt(total), spectral_h, g + r),
        linearization,
        BlockNorms(math.sqrt(rest), spectral_r, r),
    )


def _residual_diagonal(layer: LayerCurvature) -> Float[Tensor, "b n"]:
    if layer.residual is None:
        return torch.zeros_like(layer.factor[:, 0, :])
    if layer.residual.ndim == 2:
        return layer.residual
    return layer.residual.diagonal(dim1=1, dim2=2)


def _linearization(layer: LayerCurvature, kernel: Float[Tensor, "b b"]) -> Operator:
    """Give an operator on vectors of size B r with the nonzero eigenvalues of G.

    G = V V^T with columns V_(b,i) = s_bi (x) z_b / sqrt B; this is V^T V: smaller, and free
    of the parameters' size.
    """
    factor, z = layer.factor, layer.inputs
    batch, features = z.shape

    def apply(u: Tensor) -> Tensor:
        carried = torch.bmm(u.view(batch, 1, -1), factor)[:, 0]
        mixed = kernel @ carried if batch <= 2 * features else z @ (z.mT @ carried)
        return torch.bmm(mixed[:, None], factor.mT).view(1, -1) / batch

    return apply


def _reduce_inputs(z: Float[Tensor, "b m"]) -> Float[Tensor, "b k"]:
    """Turn the inputs into coordinates of their span: same dot products, k = min(B, m)."""
    return z if len(z) >= z.shape[1] else torch.linalg.qr(z.mT, mode="r").R.mT


def _block_and_residual(layer: LayerCurvature, z: Float[Tensor, "b k"]) -> Operator:
    """Give V -> (1/B) sum_b A_b V z_b z_b^T on two matrices V of shape (n, k).

    For the first A_b = S_b^T S_b + R_b, for the second R_b alone: together, because reading
    R is what takes the time.
    """
    factor, residual = layer.factor, layer.residual
    assert residual is not None
    batch, _, units = factor.shape

    def apply(v: Tensor) -> Tensor:
        # Per sample two rows, (B, 2, n): rows times matrices read R once, in its own order.
        carried = torch.matmul(z, v.view(2, units, -1).mT).transpose(0, 1).contiguous()
        bent = carried * residual[:, None] if residual.ndim == 2 else torch.bmm(carried, residual)
        inner = torch.bmm(carried[:, :1], factor.mT)
        bent[:, :1] += torch.bmm(inner, factor)
        return torch.matmul(bent.permute(1, 2, 0), z).view(2, -1) / batch

    return apply
