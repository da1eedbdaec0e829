r"""The backward recursion of the pre-activation Hessians, exact.

With $A_k = D^2_{a^k} l$ and $d_k = D_{a^k} l$ per sample, $F_k = \operatorname{diag} f_k'(a^k)$:

$$A_k = F_k W^{k+1\top} A_{k+1} W^{k+1} F_k
      + \operatorname{diag}(f_k''(a^k) \odot W^{k+1\top} d_{k+1}).$$

The first term alone, started from the output, is the linearization $S^\top S$, kept as
a factor S of few rows. What the second terms add up to is the residual R: nothing in a
piecewise-linear network, a diagonal under the last smooth activation, a dense matrix below.

Source: Botev, Ritter and Barber, arXiv 1706.03662; Dangel, Harmeling and Hennig, arXiv
1902.01813.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.activations import activation_derivatives
from hessinit_lib.hessians.chain.network import LinearStage, Stage
from hessinit_lib.hessians.loss import LossCurvature
from hessinit_lib.hessians.numerics.precision import fast_products, rounding_pays
from hessinit_lib.hessians.numerics.workspace import Workspace

# Per sample zero (None), diagonal (B, n) or dense (B, n, n).
Residual = Float[Tensor, "b n"] | Float[Tensor, "b n n"] | None


@dataclass(frozen=True)
class LayerCurvature:
    """All that is needed of one layer: A_b = S_b^T S_b + R_b, and the layer's inputs z_b.

    S is the `factor`, R the `residual`; `shape` is that of the weight, (n, m).
    """

    name: str
    shape: tuple[int, ...]
    inputs: Float[Tensor, "b m"]
    factor: Float[Tensor, "b r n"]
    residual: Residual

    def kernel(self, tolerance: float = 0.0) -> Float[Tensor, "b b"]:
        """Compute the Gram matrix z_b . z_b' of the inputs."""
        z = self.inputs
        tolerance = tolerance if rounding_pays(z) else 0.0
        with fast_products(z.dtype, tolerance, z.numel() * len(z)) as rounded:
            if not rounded:
                return z @ z.mT
            # Inputs have much in common (a background, a bias), and its rounding would be the
            # same in all samples: only what differs is rounded.
            mean = z.mean(0)
            rest = z - mean
            kernel = rest @ rest.mT
        cross = z @ mean
        return kernel.add_(cross[:, None]).add_(cross - mean.square().sum())


def backward(
    stages: list[Stage],
    loss: LossCurvature,
    tolerance: float = 0.0,
    workspace: Workspace | None = None,
) -> Iterator[LayerCurvature]:
    """Propagate the loss curvature back and give each trainable layer's, last layer first.

    One layer's tensors at a time: the next step overwrites a dense residual. For the tolerance
    see `fast_products`.
    """
    gradient, factor = loss.gradient, loss.factor.clone()  # changed in place
    residual: Residual = None
    workspace = workspace or Workspace(gradient)
    buffers = ["residual", "next residual"]
    last = next((i for i, s in enumerate(stages) if _wanted(s)), len(stages))
    for index in range(len(stages) - 1, last - 1, -1):
        stage = stages[index]
        if isinstance(stage, LinearStage):
            if stage.trainable:
                shape = tuple(stage.weight.shape)
                found = _by_sample(residual, workspace)
                yield LayerCurvature(stage.name, shape, stage.inputs, factor, found)
            if index > last:
                residual = _residual_through_linear(
                    residual, stage.weight, tolerance, workspace, buffers[0]
                )
                buffers.reverse()  # the old residual is done with: the next one may go there
                with fast_products(factor.dtype, tolerance, factor.numel() * stage.weight.shape[1]):
                    factor = factor @ stage.weight
                gradient = gradient @ stage.weight
        else:
            first, second = activation_derivatives(stage.module, stage.preactivations)
            residual = _residual_through_activation(residual, first, second, gradient)
            factor.mul_(first[:, None, :])
            gradient = gradient * first


def _wanted(stage: Stage) -> bool:
    return isinstance(stage, LinearStage) and stage.trainable


def _by_sample(residual: Residual, workspace: Workspace) -> Residual:
    """Lay dense residuals out sample by sample, as they are read again and again."""
    if residual is None or residual.is_contiguous():
        return residual
    return workspace.take("by sample", residual.shape, residual.dtype).copy_(residual)


def _residual_through_linear(
    residual: Residual,
    weight: Float[Tensor, "n m"],
    tolerance: float,
    workspace: Workspace,
    buffer: str,
) -> Float[Tensor, "b m m"] | None:
    """W^T R W for every sample, in the buffer named, where R does not lie."""
    if residual is None:
        return None
    batch, (units, below), dtype = len(residual), weight.shape, weight.dtype
    # The samples lie along the middle axis, so that R W and W^T (R W) are both one large
    # product over all samples, without a transposition.
    half = workspace.take("half", (units, batch, below), dtype)
    product = workspace.take(buffer, (below, batch, below), dtype)
    with fast_products(dtype, tolerance, batch * units * below * min(units, below)):
        if residual.ndim == 2:
            torch.mul(residual.mT[:, :, None], weight[:, None, :], out=half)
        else:
            torch.mm(residual.transpose(0, 1).flatten(0, 1), weight, out=half.flatten(0, 1))
        torch.mm(weight.mT, half.flatten(1), out=product.flatten(1))
    return product.transpose(0, 1)


def _residual_through_activation(
    residual: Residual,
    first: Float[Tensor, "b n"],
    second: Float[Tensor, "b n"] | None,
    gradient: Float[Tensor, "b n"],
) -> Residual:
    """F R F + diag(f'' * D_z l) for every sample; a dense R is changed in place."""
    new = None if second is None else second * gradient
    if residual is None:
        return new
    if residual.ndim == 2:
        scaled = residual * first * first
        return scaled if new is None else scaled + new
    residual.mul_(first[:, :, None]).mul_(first[:, None, :])
    if new is not None:
        residual.diagonal(dim1=1, dim2=2).add_(new)
    return residual
