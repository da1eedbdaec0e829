"""The softmax cross-entropy: a factor of its Hessian, and its targets as weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


def softmax_factor(probabilities: Float[Tensor, "b c"]) -> Float[Tensor, "b r c"]:
    r"""Factor the Hessian of the softmax cross-entropy with C - 1 vectors.

    With $q = \sqrt{p}$, $\operatorname{diag}(p) - pp^\top = D_q (I - qq^\top) D_q$, and
    $I - qq^\top$ projects on the complement of the unit vector $q$. The Householder
    reflection $I - vv^\top/(1 + q_1)$, $v = q + e_1$, sends $q$ to $-e_1$; so its columns
    2 to C are an orthonormal basis $Q$ of that complement, and $D_q Q$ is a factor.

    Args:
        probabilities: $p$, shape (B, C), rows that sum to 1.

    Returns:
        $S_b = (D_q Q)^\top$ with $S_b^\top S_b = \operatorname{diag}(p_b) - p_b p_b^\top$,
        shape (B, C - 1, C); zeros of shape (B, 1, 1) if there is one class only.

    Example:
        >>> p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
        >>> s = softmax_factor(p)
        >>> torch.allclose(s.mT @ s, torch.diag(p[0]) - p.mT @ p)
        True
    """
    if probabilities.shape[1] == 1:
        return torch.zeros_like(probabilities)[:, None]
    root = probabilities.sqrt()
    v = root.clone()
    v[:, 0] += 1  # both terms are >= 0: no cancellation
    rest = root[:, 1:] / v[:, :1]
    basis = -rest[:, :, None] * v[:, None, :]
    basis[:, :, 1:].diagonal(dim1=1, dim2=2).add_(1)
    return root[:, None, :] * basis


def plain_targets(
    loss_fn: nn.CrossEntropyLoss, logits: Float[Tensor, "b c"], targets: Tensor
) -> Float[Tensor, "b c"] | None:
    """Give what `target_weights` gives if there is one class for each sample and no more to it."""
    batch, classes = logits.shape
    plain = loss_fn.weight is None and not loss_fn.label_smoothing and loss_fn.reduction == "mean"
    if not plain or targets.is_floating_point() or targets.shape != (batch,) or not batch:
        return None
    low, high = torch.stack(torch.aminmax(targets.long())).tolist()
    if low < 0 or high >= classes or low <= loss_fn.ignore_index <= high:
        return None
    return F.one_hot(targets.long(), classes).to(logits.dtype)


def target_weights(
    loss_fn: nn.CrossEntropyLoss, logits: Float[Tensor, "b c"], targets: Tensor
) -> Float[Tensor, "b c"]:
    """Write the loss as the batch mean of -sum_c t_bc log p_bc and give t, shape (B, C).

    Label smoothing, class weights, ignored targets and a sum in place of the mean all end
    up in t.
    """
    batch, classes = logits.shape
    class_weights = (
        torch.ones(classes, dtype=logits.dtype, device=logits.device)
        if loss_fn.weight is None
        else loss_fn.weight.to(logits)
    )
    smoothing = loss_fn.label_smoothing
    mean = loss_fn.reduction == "mean"
    if targets.dtype.is_floating_point:
        if targets.shape != logits.shape:
            raise ValueError(
                f"class probabilities have shape {tuple(targets.shape)}, "
                f"expected that of the logits, {tuple(logits.shape)}"
            )
        smoothed = targets.to(logits.dtype) * (1 - smoothing) + smoothing / classes
        return smoothed * class_weights * (1 if mean else batch)
    targets = targets.long()
    kept = _check_classes(targets, batch, classes, loss_fn.ignore_index)
    one_hot = F.one_hot(torch.where(kept, targets, 0), classes).to(logits.dtype)
    smoothed = (one_hot * (1 - smoothing) + smoothing / classes) * class_weights
    # torch divides by the summed weight of the true classes, not by the batch size.
    normalizer = ((one_hot * class_weights).sum(1) * kept).sum() if mean else 1
    return smoothed * kept[:, None] * (batch / normalizer)


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
