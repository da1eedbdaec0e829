"""Layer Hessians of fully connected networks, smooth activations included."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.backward import LayerCurvature, backward
from hessinit_lib.hessians.lanczos import Operator, random_start, spectral_norms
from hessinit_lib.hessians.losses import LossFn, loss_curvature
from hessinit_lib.hessians.network import forward
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.pair_sums import squared_norms
from hessinit_lib.hessians.report import LOST, ZERO, BlockNorms, HessianReport, LayerHessian


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
        ValueError: shapes that do not fit.
    """
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
