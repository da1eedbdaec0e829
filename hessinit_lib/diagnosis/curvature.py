r"""How much the loss bends along gradients: $g_k^\top H_k g_k$ of each layer, and of all.

Where the model is piecewise linear above its layers, $H_k = J_k^\top (D_z^2 L) J_k$, and
$J_k g_k$ is what the outputs gain if layer k puts out $g_k z$ more. Its product with a vector
at the outputs is one backward pass for all layers, so C passes give all of them. Any other
model goes by products of its blocks with vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.estimate.products import BlockProducts
from hessinit_lib.hessians.graph.capture import CapturedLayer, capture
from hessinit_lib.hessians.graph.conditions import check_exact, check_independence
from hessinit_lib.hessians.loss import LossFn, OutputCurvature

# Outputs from which on products of the blocks cost less than a backward pass for each.
_MANY = 100

Gradients = Mapping[str, Tensor]


def bends_by_layer(
    model: torch.nn.Module,
    loss_fn: LossFn,
    inputs: Tensor,
    targets: Tensor,
    gradients: Gradients,
) -> dict[str, float]:
    r"""Compute $g_k^\top H_k g_k$ for every layer.

    Args:
        model: any module with one tensor of outputs.
        loss_fn: a scalar function of (outputs, targets).
        inputs: shape (B, ...).
        targets: what the loss takes.
        gradients: $g_k$ by parameter name, of the parameters' shapes.

    Raises:
        RuntimeError: torch has no second derivative of a function of the model.

    Example:
        >>> model, x, y = torch.nn.Linear(2, 1, bias=False), torch.ones(3, 2), torch.zeros(3, 1)
        >>> g = {"weight": torch.tensor([[1.0, 2.0]])}
        >>> bends_by_layer(model, torch.nn.MSELoss(), x, y, g)  # H = 2 x x^T, g . x = 3
        {'weight': 18.0}
    """
    try:
        return _by_outputs(model, loss_fn, inputs, targets, gradients)
    except NotImplementedError:
        blocks = {name: [name] for name in gradients}
        products = BlockProducts(model, loss_fn, inputs, targets, blocks, parts=False)
        flat = {name: gradient.reshape(1, -1) for name, gradient in gradients.items()}
        with torch.no_grad():
            images = products.apply(flat)
        return {name: (flat[name] * images[name][0]).sum().item() for name in gradients}


def bend_of_all(
    model: torch.nn.Module,
    loss_fn: LossFn,
    inputs: Tensor,
    targets: Tensor,
    gradients: Gradients,
) -> float:
    r"""Compute $g^\top H g$ of all weights together, cross blocks included.

    Args:
        model: see `bends_by_layer`, like the others.
        loss_fn: the loss.
        inputs: shape (B, ...).
        targets: what the loss takes.
        gradients: by parameter name.

    Example:
        >>> model, x, y = torch.nn.Linear(2, 1, bias=False), torch.ones(3, 2), torch.zeros(3, 1)
        >>> g = {"weight": torch.tensor([[1.0, 2.0]])}
        >>> bend_of_all(model, torch.nn.MSELoss(), x, y, g)
        18.0
    """
    blocks = {"model": list(gradients)}
    products = BlockProducts(model, loss_fn, inputs, targets, blocks, parts=False)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients.values()])
    with torch.no_grad():
        image = products.apply({"model": flat[None]})["model"][0, 0]
    return (flat @ image).item()


def _by_outputs(
    model: torch.nn.Module,
    loss_fn: LossFn,
    inputs: Tensor,
    targets: Tensor,
    gradients: Gradients,
) -> dict[str, float]:
    layers, outputs = capture(model, inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] > _MANY:
        raise NotImplementedError(f"expected outputs of shape (B, C), C at most {_MANY}")
    check_exact(outputs, layers)
    reached = [layer for layer in layers if layer.edge is not None and outputs.requires_grad]
    check_independence(outputs, reached)
    with torch.no_grad():
        changes = [_change(layer, gradients[layer.name]) for layer in reached]
    edges = [layer.edge for layer in reached if layer.edge is not None]
    columns = []
    for index in range(outputs.shape[1]):
        ones = torch.zeros_like(outputs)
        ones[:, index] = 1
        pulled = torch.autograd.grad(outputs, edges, ones, retain_graph=True, allow_unused=True)
        columns.append([_by_sample(p, change) for p, change in zip(pulled, changes, strict=True)])
    bends = dict.fromkeys(gradients, 0.0)
    curvature = OutputCurvature(loss_fn, outputs, targets)
    for place, layer in enumerate(reached):
        jvp = torch.stack([column[place] for column in columns], dim=1)
        bends[layer.name] = (jvp * curvature.hvp(jvp)).sum().item()
    return bends


def _change(layer: CapturedLayer, gradient: Tensor) -> Tensor:
    """Give what a layer's output gains per unit of its gradient."""
    instead = {"weight": gradient}
    bias = getattr(layer.module, "bias", None)
    if bias is not None:
        instead["bias"] = torch.zeros_like(bias, dtype=gradient.dtype)
    return torch.func.functional_call(layer.module, instead, (layer.inputs,))


def _by_sample(pulled: Tensor | None, change: Tensor) -> Float[Tensor, " b"]:
    if pulled is None:
        return change.new_zeros(len(change))
    return (pulled * change).flatten(1).sum(1)
