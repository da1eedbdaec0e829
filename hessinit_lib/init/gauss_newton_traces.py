r"""Traces of all layers' Gauss-Newton blocks, by a few backward passes for all of them.

With $J_k = D_{W^k} z$ for the outputs $z$ of the whole batch and $A = D^2_z L$,

$$\operatorname{tr} G_k = \operatorname{tr} J_k^\top A J_k
  = E \langle J_k^\top \xi, J_k^\top A \xi \rangle , \qquad E \xi \xi^\top = I .$$

The trace is a norm of $G_k$ (the nuclear one: $A$ is positive semidefinite), and the only one
to be had for all layers of any model at once: where norms cost hundreds of products, it takes two
backward passes a probe.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessinit_lib.init.forward_graph import ForwardGraph

LossFn = Callable[..., Tensor]


def gauss_newton_traces(
    graph: ForwardGraph,
    loss_fn: LossFn,
    targets: Tensor,
    *,
    probes: int = 2,
    generator: torch.Generator,
) -> dict[str, float]:
    r"""Estimate $\operatorname{tr} G_k$ of all layers, with the same probes for all.

    Args:
        graph: of a forward pass.
        loss_fn: function of (outputs, targets) that gives one number.
        targets: what the loss takes.
        probes: random $\pm 1$ vectors $\xi$.
        generator: for the random numbers.

    Returns:
        Estimates by layer; unbiased.
    """
    outputs, weights = graph.outputs, graph.weights
    total = dict.fromkeys(weights, 0.0)
    for _ in range(probes):
        signs = torch.randint(2, outputs.shape, generator=generator).mul_(2).sub_(1)
        xi = signs.to(outputs)
        pulled = _pull(outputs, weights, xi)
        curved = _pull(outputs, weights, bend(loss_fn, outputs, targets, xi))
        for name, (a, b) in {name: (pulled[name], curved[name]) for name in weights}.items():
            total[name] += (a * b).sum().item() / probes
    return total


def bend(loss_fn: LossFn, outputs: Tensor, targets: Tensor, vector: Tensor) -> Tensor:
    r"""Multiply a vector by the Hessian $D^2_z L$ at the outputs.

    Args:
        loss_fn: function of (outputs, targets) that gives one number.
        outputs: any shape.
        targets: what the loss takes.
        vector: of the outputs' shape.

    Returns:
        The product, of the outputs' shape; zero for a loss that is linear in them.

    Raises:
        ValueError: the loss is not one number.

    Example:
        >>> z = torch.zeros(2, 1)
        >>> bend(torch.nn.MSELoss(), z, torch.ones(2, 1), torch.ones(2, 1))
        tensor([[1.],
                [1.]])
    """
    z = outputs.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_fn(z, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError("the loss is not one number: expected a mean or a sum over samples")
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(z)
        (bent,) = torch.autograd.grad(slope, z, vector)
    return bent


def _pull(outputs: Tensor, weights: dict[str, Tensor], vector: Tensor) -> dict[str, Tensor]:
    pulled = torch.autograd.grad(
        outputs, list(weights.values()), vector, retain_graph=True, materialize_grads=True
    )
    return dict(zip(weights, pulled, strict=True))
