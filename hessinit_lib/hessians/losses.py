"""The loss seen from the logits: per-sample gradient and a factor of the Hessian.

The mean loss is L = (1/B) sum_b l_b. Everything below the logits needs of each l_b just
its gradient d_b and a few vectors s_bi with D^2 l_b = sum_i s_bi s_bi^T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

LossFn = Callable[..., Tensor]


class LossCurvature(NamedTuple):
    r"""Derivatives of the per-sample losses at the logits.

    Attributes:
        gradient: $D l_b$, shape (B, C).
        factor: the rows $s_{bi}$ with $D^2 l_b = \sum_i s_{bi} s_{bi}^\top$, shape (B, r, C).
    """

    gradient: Float[Tensor, "b c"]
    factor: Float[Tensor, "b r c"]


def loss_curvature(loss_fn: LossFn, logits: Float[Tensor, "b c"], targets: Tensor) -> LossCurvature:
    """Differentiate a mean loss twice at the logits, sample by sample.

    Args:
        loss_fn: `nn.CrossEntropyLoss`, `nn.MSELoss` with `reduction="mean"`, or
            `F.cross_entropy`, `F.mse_loss`.
        logits: outputs of the network, shape (B, C).
        targets: class indices (B,) or class probabilities (B, C) for cross-entropy,
            values (B, C) for the squared error.

    Raises:
        NotImplementedError: another loss or reduction; the message names it.
        ValueError: the targets do not fit the logits.

    Example:
        >>> out = loss_curvature(F.cross_entropy, torch.zeros(4, 10), torch.arange(4))
        >>> out.factor.shape
        torch.Size([4, 9, 10])
    """
    if loss_fn is F.cross_entropy:
        loss_fn = nn.CrossEntropyLoss()
    elif loss_fn is F.mse_loss:
        loss_fn = nn.MSELoss()
    if not isinstance(loss_fn, nn.CrossEntropyLoss | nn.MSELoss):
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        raise NotImplementedError(
            f"loss {name}: expected cross-entropy or MSE "
            "(nn.CrossEntropyLoss, nn.MSELoss, F.cross_entropy, F.mse_loss)"
        )
    if loss_fn.reduction != "mean":
        raise NotImplementedError(
            f"{type(loss_fn).__name__} with reduction={loss_fn.reduction!r}: expected 'mean'"
        )
    if isinstance(loss_fn, nn.MSELoss):
        return _squared_error(logits, targets)
    return _cross_entropy(loss_fn, logits, targets)


def _squared_error(logits: Float[Tensor, "b c"], targets: Tensor) -> LossCurvature:
    if targets.shape != logits.shape:
        # Broadcasting would silently pair every output with every target.
        raise ValueError(
            f"MSE targets have shape {tuple(targets.shape)}, "
            f"expected that of the outputs, {tuple(logits.shape)}"
        )
    batch, classes = logits.shape
    # l_b = |z_b - y_b|^2 / C: nn.MSELoss averages over outputs as well as samples.
    gradient = (logits - targets.to(logits.dtype)) * (2 / classes)
    factor = torch.eye(classes, dtype=logits.dtype, device=logits.device) * (2 / classes) ** 0.5
    return LossCurvature(gradient, factor.expand(batch, classes, classes))


def _cross_entropy(
    loss_fn: nn.CrossEntropyLoss, logits: Float[Tensor, "b c"], targets: Tensor
) -> LossCurvature:
    weighted = _target_weights(loss_fn, logits, targets)
    mass = weighted.sum(1, keepdim=True)
    # l_b = -sum_c t_bc log p_bc, so D l_b = m_b p_b - t_b with m_b = sum_c t_bc, and
    # D^2 l_b = m_b (diag p_b - p_b p_b^T).
    probabilities = logits.softmax(1)
    gradient = mass * probabilities - weighted
    return LossCurvature(gradient, mass.sqrt()[:, None] * softmax_factor(probabilities))


def softmax_factor(probabilities: Float[Tensor, "b c"]) -> Float[Tensor, "b c-1 c"]:
    r"""Factor the Hessian of the softmax cross-entropy with C - 1 vectors.

    With $q = \sqrt{p}$, $\operatorname{diag}(p) - pp^\top = D_q (I - qq^\top) D_q$, and
    $I - qq^\top$ projects on the complement of the unit vector $q$. The Householder
    reflection $I - vv^\top/(1 + q_1)$, $v = q + e_1$, sends $q$ to $-e_1$; so its columns
    2 to C are an orthonormal basis $Q$ of that complement, and $D_q Q$ is a factor.

    Args:
        probabilities: $p$, shape (B, C), rows that sum to 1.

    Returns:
        $S_b = (D_q Q)^\top$ with $S_b^\top S_b = \operatorname{diag}(p_b) - p_b p_b^\top$,
        shape (B, C - 1, C).

    Example:
        >>> p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
        >>> s = softmax_factor(p)
        >>> torch.allclose(s.mT @ s, torch.diag(p[0]) - p.mT @ p)
        True
    """
    root = probabilities.sqrt()
    v = root.clone()
    v[:, 0] += 1  # both terms are >= 0: no cancellation
    rest = root[:, 1:] / v[:, :1]
    basis = -rest[:, :, None] * v[:, None, :]
    basis[:, :, 1:].diagonal(dim1=1, dim2=2).add_(1)
    return root[:, None, :] * basis


def _target_weights(
    loss_fn: nn.CrossEntropyLoss, logits: Float[Tensor, "b c"], targets: Tensor
) -> Float[Tensor, "b c"]:
    """Write the loss as the batch mean of -sum_c t_bc log p_bc and give t, shape (B, C).

    Label smoothing, class weights and ignored targets all end up in t.
    """
    batch, classes = logits.shape
    class_weights = (
        torch.ones(classes, dtype=logits.dtype, device=logits.device)
        if loss_fn.weight is None
        else loss_fn.weight.to(logits)
    )
    smoothing = loss_fn.label_smoothing
    if targets.dtype.is_floating_point:
        if targets.shape != logits.shape:
            raise ValueError(
                f"class probabilities have shape {tuple(targets.shape)}, "
                f"expected that of the logits, {tuple(logits.shape)}"
            )
        smoothed = targets.to(logits.dtype) * (1 - smoothing) + smoothing / classes
        return smoothed * class_weights
    kept = _check_classes(targets, batch, classes, loss_fn.ignore_index)
    one_hot = F.one_hot(torch.where(kept, targets, 0), classes).to(logits.dtype)
    smoothed = (one_hot * (1 - smoothing) + smoothing / classes) * class_weights
    # torch divides by the summed weight of the true classes, not by the batch size.
    normalizer = ((one_hot * class_weights).sum(1) * kept).sum() / batch
    return smoothed * kept[:, None] / normalizer


def _check_classes(
    targets: Int64[Tensor, ...], batch: int, classes: int, ignore_index: int
) -> Tensor:
    """Check class indices and say which samples count, shape (B,)."""
    if targets.shape != (batch,):
        raise ValueError(
            f"class targets have shape {tuple(targets.shape)}, expected ({batch},): "
            "one index a sample"
        )
    kept = targets != ignore_index
    wrong = kept & ((targets < 0) | (targets >= classes))
    if wrong.any():
        value = int(targets[wrong][0])
        raise ValueError(f"class target {value}: expected 0 to {classes - 1}")
    return kept
