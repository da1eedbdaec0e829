r"""The backward recursion of the pre-activation Hessians, exact.

With $A_k = D^2_{a^k} l$ and $d_k = D_{a^k} l$ per sample, $F_k = \operatorname{diag} f_k'(a^k)$:

$$A_k = F_k W^{k+1\top} A_{k+1} W^{k+1} F_k
      + \operatorname{diag}(f_k''(a^k) \odot W^{k+1\top} d_{k+1}).$$

The first term alone, started from the output, is the linearization $S^\top S$, carried as
a factor S of few rows. What the second terms add up to is the residual R: nothing in a
piecewise-linear network, a diagonal under the last smooth activation, a dense matrix below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.activations import activation_derivatives
from hessinit_lib.hessians.losses import LossCurvature
from hessinit_lib.hessians.network import LinearStage, Stage

# Per sample zero (None), diagonal (B, n) or dense (B, n, n).
Residual = Float[Tensor, "b n"] | Float[Tensor, "b n n"] | None


@dataclass(frozen=True)
class LayerCurvature:
    """All that is needed of one layer: A_b = S_b^T S_b + R_b, and the layer's inputs z_b.

    Attributes:
        name: the weight parameter.
        shape: its shape, (n, m).
        inputs: z, shape (B, m).
        factor: S, shape (B, r, n).
        residual: R, see `Residual`.
    """

    name: str
    shape: tuple[int, ...]
    inputs: Float[Tensor, "b m"]
    factor: Float[Tensor, "b r n"]
    residual: Residual


def backward(stages: list[Stage], loss: LossCurvature) -> Iterator[LayerCurvature]:
    """Carry the loss curvature back, giving each trainable layer's, last layer first.

    One layer's tensors at a time: what is not kept by the caller is freed.

    Args:
        stages: the network, from `hessinit_lib.hessians.network.forward`.
        loss: gradient and factor at the logits.
    """
    gradient, factor = loss
    residual: Residual = None
    last = next((i for i, s in enumerate(stages) if _wanted(s)), len(stages))
    for index in range(len(stages) - 1, last - 1, -1):
        stage = stages[index]
        if isinstance(stage, LinearStage):
            if stage.trainable:
                shape = tuple(stage.weight.shape)
                yield LayerCurvature(stage.name, shape, stage.inputs, factor, residual)
            if index > last:
                residual = _residual_through_linear(residual, stage.weight)
                factor = factor @ stage.weight
                gradient = gradient @ stage.weight
        else:
            first, second = activation_derivatives(stage.module, stage.preactivations)
            residual = _residual_through_activation(residual, first, second, gradient)
            factor = factor * first[:, None, :]
            gradient = gradient * first


def _wanted(stage: Stage) -> bool:
    return isinstance(stage, LinearStage) and stage.trainable


def _residual_through_linear(
    residual: Residual, weight: Float[Tensor, "n m"]
) -> Float[Tensor, "b m m"] | None:
    """W^T R W for every sample."""
    if residual is None:
        return None
    # R W, then its transpose times W: both are one large product over all samples.
    half = residual[:, :, None] * weight if residual.ndim == 2 else residual @ weight
    return half.mT.contiguous() @ weight


def _residual_through_activation(
    residual: Residual,
    first: Float[Tensor, "b n"],
    second: Float[Tensor, "b n"] | None,
    gradient: Float[Tensor, "b n"],
) -> Residual:
    """F R F + diag(f'' * D_z l) for every sample."""
    new = None if second is None else second * gradient
    if residual is None:
        return new
    if residual.ndim == 2:
        scaled = residual * first * first
        return scaled if new is None else scaled + new
    scaled = residual * first[:, :, None] * first[:, None, :]
    if new is not None:
        scaled.diagonal(dim1=1, dim2=2).add_(new)
    return scaled
