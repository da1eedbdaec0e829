r"""Traces of all layers' Gauss-Newton blocks, by a few backward passes for all of them.

With $J_k = D_{W^k} z$ for the outputs $z$ of the whole batch and $A = D^2_z L$,

$$\operatorname{tr} G_k = \operatorname{tr} J_k^\top A J_k
  = E \langle J_k^\top \xi, J_k^\top A \xi \rangle , \qquad E \xi \xi^\top = I .$$

The trace is a norm of $G_k$ (the nuclear one: $A$ is positive semidefinite), and the only one
to be had for all layers of any model at once: where norms cost hundreds of products, it takes two
backward passes a probe.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hessinit_lib.hessians.loss import LossFn, OutputCurvature
from hessinit_lib.init.forward_graph import ForwardGraph


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
    curvature = OutputCurvature(loss_fn, outputs, targets)
    total = dict.fromkeys(weights, 0.0)
    for _ in range(probes):
        signs = torch.randint(2, outputs.shape, generator=generator).mul_(2).sub_(1)
        xi = signs.to(outputs)
        left = _vjp(outputs, weights, xi)
        right = _vjp(outputs, weights, curvature.hvp(xi))
        for name in weights:
            total[name] += (left[name] * right[name]).sum().item() / probes
    return total


def _vjp(outputs: Tensor, weights: dict[str, Tensor], vector: Tensor) -> dict[str, Tensor]:
    products = torch.autograd.grad(
        outputs, list(weights.values()), vector, retain_graph=True, materialize_grads=True
    )
    return dict(zip(weights, products, strict=True))
