r"""Curvature of the loss along its gradient: $g_k^\top H_k g_k$ of each layer, and of all.

Where the model is piecewise linear above its layers, $H_k = J_k^\top (D_z^2 L) J_k$, and
$J_k g_k$ is the change of the outputs if layer k puts out $g_k z$ more. One backward pass
(vjp) for each of the C outputs gives $J_k g_k$ of all layers. For any other model $H_k g_k$
is computed (hvp).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.estimate.hessians import block_products
from hessinit_lib.hessians.estimate.products import Blocks
from hessinit_lib.hessians.graph.capture import CapturedLayer, capture_logits
from hessinit_lib.hessians.graph.conditions import check_exact, check_independence
from hessinit_lib.hessians.loss import OutputCurvature
from hessinit_lib.hessians.options import Options

# Outputs from which on products with the blocks cost less than a backward pass for each.
_MANY = 100

Gradients = Mapping[str, Tensor]


def layer_curvatures(
    case: Case, gradients: Gradients, max_memory: int | None = None
) -> dict[str, float]:
    r"""Compute $g_k^\top H_k g_k$ for every layer.

    Args:
        case: a model with one tensor of outputs, its loss and a batch.
        gradients: $g_k$ by parameter name, of the parameters' shapes.
        max_memory: see `hessinit_lib.layer_hessians`.

    Raises:
        RuntimeError: torch has no second derivative of a function of the model.

    Example:
        >>> model, x, y = torch.nn.Linear(2, 1, bias=False), torch.ones(3, 2), torch.zeros(3, 1)
        >>> case, g = Case(model, torch.nn.MSELoss(), x, y), {"weight": torch.tensor([[1.0, 2.0]])}
        >>> layer_curvatures(case, g)  # H = 2 x x^T, g . x = 3
        {'weight': 18.0}
    """
    try:
        return _by_outputs(case, gradients)
    except NotImplementedError:
        return _by_products(case, {name: [name] for name in gradients}, gradients, max_memory)


def model_curvature(case: Case, gradients: Gradients, max_memory: int | None = None) -> float:
    r"""Compute $g^\top H g$ of all weights together, cross blocks included.

    Args:
        case: see `layer_curvatures`.
        gradients: by parameter name.
        max_memory: see `hessinit_lib.layer_hessians`.

    Example:
        >>> model, x, y = torch.nn.Linear(2, 1, bias=False), torch.ones(3, 2), torch.zeros(3, 1)
        >>> case, g = Case(model, torch.nn.MSELoss(), x, y), {"weight": torch.tensor([[1.0, 2.0]])}
        >>> model_curvature(case, g)
        18.0
    """
    return _by_products(case, {"model": list(gradients)}, gradients, max_memory)["model"]


@torch.no_grad()
def _by_products(
    case: Case, blocks: Blocks, gradients: Gradients, max_memory: int | None
) -> dict[str, float]:
    products = block_products(case, blocks, Options(parts=False, max_memory=max_memory))
    flat = {
        block: torch.cat([gradients[name].reshape(-1) for name in names])
        for block, names in blocks.items()
    }
    hvps = products.apply({block: vector[None] for block, vector in flat.items()})
    return {block: (flat[block] @ hvps[block][0, 0]).item() for block in blocks}


def _by_outputs(case: Case, gradients: Gradients) -> dict[str, float]:
    layers, outputs, loss_fn = capture_logits(case)
    if outputs.ndim != 2 or outputs.shape[1] > _MANY:
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
        vjps = torch.autograd.grad(outputs, edges, ones, retain_graph=True, allow_unused=True)
        columns.append([_by_sample(vjp, change) for vjp, change in zip(vjps, changes, strict=True)])
    found = dict.fromkeys(gradients, 0.0)
    curvature = OutputCurvature(loss_fn, outputs, case.targets)
    for place, layer in enumerate(reached):
        jvp = torch.stack([column[place] for column in columns], dim=1)
        found[layer.name] = (jvp * curvature.hvp(jvp)).sum().item()
    return found


def _change(layer: CapturedLayer, gradient: Tensor) -> Tensor:
    """Give the change of a layer's output as its weight moves along the gradient."""
    instead = {"weight": gradient}
    bias = getattr(layer.module, "bias", None)
    if bias is not None:
        instead["bias"] = torch.zeros_like(bias, dtype=gradient.dtype)
    return torch.func.functional_call(layer.module, instead, (layer.inputs,))


def _by_sample(vjp: Tensor | None, change: Tensor) -> Float[Tensor, " b"]:
    if vjp is None:
        return change.new_zeros(len(change))
    return (vjp * change).flatten(1).sum(1)
