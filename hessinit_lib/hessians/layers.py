"""`layer_hessians`: the norms of every layer's loss Hessian in one call."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.backward import LayerCurvature, backward
from hessinit_lib.hessians.lanczos import Operator, spectral_norm
from hessinit_lib.hessians.losses import LossFn, loss_curvature
from hessinit_lib.hessians.network import forward
from hessinit_lib.hessians.pair_sums import squared_norms
from hessinit_lib.hessians.report import BlockNorms, HessianReport, LayerHessian


@torch.no_grad()
def layer_hessians(
    model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor
) -> HessianReport:
    r"""Compute the norms of every layer's Hessian block, exactly, in one pass.

    For the batch-mean loss $L$ and the weight $W^k$ of shape (n, m),

    $$H_k = D^2_{W^k} L = \frac1B \sum_b A_b \otimes z_b z_b^\top,$$

    with $z_b$ the layer's inputs and $A_b$ the Hessian of sample $b$'s loss in the layer's
    pre-activations. $H_k = G_k + R_k$ is reported with its two parts: the linearization
    (generalized Gauss-Newton block) and the residual. No matrix of the size of the
    parameters is formed. The model, its gradients, its mode and the global random state
    are left as found.

    Args:
        model: a fully connected network: `nn.Sequential` (also nested) of `nn.Linear`,
            twice differentiable (almost everywhere) elementwise activations,
            `nn.Flatten`, `nn.Identity` and inactive dropout. Computed in float64 if the
            parameters are float64, else in float32.
        loss_fn: cross-entropy or MSE, averaged over the batch: `nn.CrossEntropyLoss()`,
            `nn.MSELoss()`, `F.cross_entropy` or `F.mse_loss`.
        inputs: shape (B, ...), what the model takes, on the model's device.
        targets: class indices (B,), or probabilities or values (B, C).

    Returns:
        A mapping from parameter names to `LayerHessian`, in model order: the weights that
        require a gradient. NaN where the network's outputs are not finite.

    Raises:
        NotImplementedError: a module, loss or reduction that is not covered, active
            dropout, tied weights; the message names it.
        ValueError: shapes, batch sizes or class indices that do not fit.

    Source: arXiv 2004.09506 for the principle; derivation in the book, statements 2 and 3.

    Example:
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
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: expected as many")
    if len(inputs) == 0:
        raise ValueError("an empty batch has no mean loss: expected at least one sample")
    stages, logits = forward(model, inputs)
    if logits.ndim != 2:
        raise ValueError(f"the model gave outputs of shape {tuple(logits.shape)}, expected (B, C)")
    loss = loss_curvature(loss_fn, logits, targets)
    finite = bool(torch.isfinite(logits).all())
    layers = [_summarize(layer, finite) for layer in backward(stages, loss)]
    return HessianReport(layers[::-1])


def _summarize(layer: LayerCurvature, finite: bool) -> LayerHessian:
    """Turn the curvature of one layer into its norms."""
    if not finite:
        lost = BlockNorms(math.nan, math.nan, math.nan)
        return _layer_hessian(layer, lost, lost, lost)
    z, factor, residual = layer.inputs, layer.factor, layer.residual
    kernel = z @ z.mT
    squares = squared_norms(layer, kernel)
    batch = len(z)
    size = z.square().sum(1)
    trace_g = torch.dot(size, factor.square().sum((1, 2))) / batch
    diagonal = _residual_diagonal(layer)
    trace_r = torch.dot(size, diagonal.sum(1)) / batch
    # One transfer from the device for all the scalars.
    total, linear, rest, g, r = torch.stack((*squares, trace_g, trace_r)).tolist()
    spectral_g = spectral_norm(_linearization(layer, kernel), factor[:, :, 0].numel(), z)
    linearization = BlockNorms(math.sqrt(linear), spectral_g, g)
    if residual is None:
        return _layer_hessian(layer, linearization, linearization, BlockNorms(0.0, 0.0, 0.0))
    reduced = _reduce_inputs(z)
    parameters = factor.shape[2] * reduced.shape[1]
    spectral_h = spectral_norm(_block(layer, reduced, with_factor=True), parameters, z)
    spectral_r = spectral_norm(_block(layer, reduced, with_factor=False), parameters, z)
    return _layer_hessian(
        layer,
        BlockNorms(math.sqrt(total), spectral_h, g + r),
        linearization,
        BlockNorms(math.sqrt(rest), spectral_r, r),
    )


def _layer_hessian(
    layer: LayerCurvature, total: BlockNorms, linearization: BlockNorms, residual: BlockNorms
) -> LayerHessian:
    return LayerHessian(
        layer.name,
        layer.shape,
        total.frobenius,
        total.spectral,
        total.trace,
        linearization,
        residual,
        exact=True,
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
        return torch.bmm(factor, mixed[:, :, None]).flatten() / batch

    return apply


def _reduce_inputs(z: Float[Tensor, "b m"]) -> Float[Tensor, "b k"]:
    """Turn the inputs into coordinates of their span: same dot products, k = min(B, m)."""
    return z if len(z) >= z.shape[1] else torch.linalg.qr(z.mT, mode="r").R.mT


def _block(layer: LayerCurvature, z: Float[Tensor, "b k"], *, with_factor: bool) -> Operator:
    """Give the operator V -> (1/B) sum_b A_b V z_b z_b^T on matrices V of shape (n, k).

    With A_b = S_b^T S_b + R_b or, without the factor, R_b alone.
    """
    factor, residual = layer.factor, layer.residual
    assert residual is not None
    batch, _, units = factor.shape

    def apply(v: Tensor) -> Tensor:
        carried = z @ v.view(units, -1).mT
        if residual.ndim == 2:
            bent = residual * carried
        else:
            bent = torch.bmm(residual, carried[:, :, None])[:, :, 0]
        if with_factor:
            inner = torch.bmm(factor, carried[:, :, None])
            bent = bent + torch.bmm(inner.mT, factor)[:, 0]
        return (bent.mT @ z).flatten() / batch

    return apply
