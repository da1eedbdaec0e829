"""What a gradient step gains on a probe batch, as predicted and in fact (statement 8)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.statistics.rounding import rounded
from hessinit_lib.theory.steps import predicted_gain


def gradient_and_curvature(
    model: nn.Module, inputs: Tensor, labels: Tensor
) -> tuple[float, list[Tensor], float, float]:
    r"""Compute what the second-order prediction of a step needs, over all parameters.

    Args:
        model: any without batch normalization in training mode.
        inputs: the probe, shape (B, ...).
        labels: shape (B,).

    Returns:
        The softmax cross-entropy [nat], its gradients $G$, $\|G\|^2$ and $G^\top H G$.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> found = gradient_and_curvature(model, torch.ones(4, 2), torch.tensor([0, 1, 0, 0]))
        >>> found[2] >= 0, found[3] >= 0
        (True, True)
    """
    weights = [*model.parameters()]
    loss = F.cross_entropy(model(inputs), labels)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    # H G is the derivative of |G|^2 / 2.
    square = torch.stack([(gradient**2).sum() for gradient in gradients]).sum()
    products = torch.autograd.grad(square / 2, weights)
    fixed = [gradient.detach() for gradient in gradients]
    curvature = sum((g * p).sum().item() for g, p in zip(fixed, products, strict=True))
    return loss.item(), fixed, square.item(), curvature


def step_gain(model: nn.Module, inputs: Tensor, labels: Tensor, rate: float) -> dict[str, float]:
    r"""Compare what a gradient step on the probe gains with what second order predicts.

    All parameters take the step $W - \gamma G$; the prediction is
    $\gamma \|G\|^2 - \frac12 \gamma^2 G^\top H G$.

    Args:
        model: any without batch normalization in training mode.
        inputs: the probe, shape (B, ...).
        labels: shape (B,).
        rate: the learning rate $\gamma$.

    Returns:
        `loss` before the step, `predicted` and `realized` gain, all in nat.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = nn.init.eye_(model.weight), nn.init.zeros_(model.bias)
        >>> gain = step_gain(model, torch.ones(4, 2), torch.tensor([0, 1, 0, 0]), rate=0.01)
        >>> abs(gain["predicted"] / gain["realized"] - 1) < 0.01
        True
    """
    loss, gradients, square, curvature = gradient_and_curvature(model, inputs, labels)
    with torch.no_grad():
        steps = zip(model.named_parameters(), gradients, strict=True)
        moved = {name: weight - rate * gradient for (name, weight), gradient in steps}
        after = F.cross_entropy(torch.func.functional_call(model, moved, (inputs,)), labels)
    return {
        "loss": rounded(loss),
        "predicted": rounded(predicted_gain(square, curvature, rate)),
        "realized": rounded(loss - after.item()),
    }
