"""Statement 8: the curvature along the gradient, of the whole Hessian and of layer blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepCurvature:
    r"""What the quadratic model of a gradient step is made of.

    Attributes:
        loss: $L(w)$.
        gradient_square: $\|G\|^2$.
        curvature: $G^\top H G$.
        blocks: $G_k^\top H_k G_k$ by parameter name; their sum leaves out what lies between
            layers.
    """

    loss: float
    gradient_square: float
    curvature: float
    blocks: dict[str, float]

    @property
    def block_curvature(self) -> float:
        r"""$\sum_k G_k^\top H_k G_k$, the curvature that layer blocks know of."""
        return sum(self.blocks.values())


def step_curvature(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> StepCurvature:
    r"""Compute $\|G\|^2$ and $G^\top H G$ of a batch, by Hessian-vector products.

    $$H G = D_w \bigl( D_w L \cdot G \bigr) \text{ at fixed } G .$$

    Args:
        model: twice differentiable; every parameter that requires a gradient counts.
        loss_fn: any scalar function of (outputs, targets).
        inputs: shape (B, ...).
        targets: what the loss takes.

    Returns:
        Plain numbers; the model's gradients are left as they are.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> found = step_curvature(model, nn.MSELoss(), torch.ones(1, 1), torch.zeros(1, 1))
        >>> found.gradient_square, found.curvature  # L = w^2
        (4.0, 8.0)
    """
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        loss = loss_fn(model(inputs), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        fixed = [gradient.detach() for gradient in gradients]
        products = [
            torch.autograd.grad(
                gradient, list(weights.values()), still, retain_graph=True, materialize_grads=True
            )
            for gradient, still in zip(gradients, fixed, strict=True)
        ]
    # Row j: the product of column j of blocks with G_j. Its entry k meets G_k.
    terms = torch.stack(
        [
            torch.stack([(part * still).sum() for part, still in zip(row, fixed, strict=True)])
            for row in products
        ]
    )
    diagonal = terms.diagonal().tolist()
    return StepCurvature(
        float(loss.detach()),
        float(sum(still.square().sum() for still in fixed)),
        float(terms.sum()),
        dict(zip(weights, diagonal, strict=True)),
    )
