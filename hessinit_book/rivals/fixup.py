"""Fixup: residual branches that are zero at initialization."""

from __future__ import annotations

import torch
from torch import nn

from hessinit_lib.hessians.functional import unwrapped
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.init.forward_graph import forward_graph, last_layers, residual_branches
from hessinit_lib.init.layers import restored_on_failure
from hessinit_lib.init.schemes import apply


@entry
def fixup_(
    model: nn.Module, inputs: Inputs, *, generator: torch.Generator | None = None
) -> list[list[str]]:
    r"""Initialize a residual network so that its updates do not grow with the depth, in place.

    He's deviations in all layers, times $L^{-1 / (2 m - 2)}$ in the layers of a residual
    branch, L branches of m layers each; the last layer of each branch and of the network is
    zero. The third rule of the paper is the architecture's: a scalar bias before each layer
    and activation and a scalar multiplier in each branch, which start from 0 and 1. A model
    that has them keeps them; one that has not trains by the first two rules alone.

    Args:
        model: residual, without normalization.
        inputs: a few samples, shape (B, ...), or several tensors in a tuple, or in a dict by
            keyword: the branches are read from a forward pass.
        generator: source of randomness; the global one if None.

    Returns:
        The weights in each branch.

    Raises:
        NotImplementedError: a weight of a kind of module that is not covered, or batch
            normalization in training mode.
        ValueError: a model without residual branches.

    Source: Zhang, Dauphin and Ma, "Fixup initialization", ICLR 2019, section 3.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.b(self.a(x).relu())
        >>> model = nn.Sequential(nn.Linear(3, 3), Block(), Block(), nn.Linear(3, 2))
        >>> _ = fixup_(model, torch.ones(4, 3), generator=torch.Generator())
        >>> model[2].b.weight.abs().max().item(), model[3].weight.abs().max().item()
        (0.0, 0.0)
    """
    model = unwrapped(model)
    with restored_on_failure(model, generator), torch.no_grad():
        apply(model, "he", generator=generator)
        graph = forward_graph(model, inputs)
        branches = residual_branches(graph)
        if not branches:
            raise ValueError("no residual branches were found: expected sums of two ways")
        weights = {layer.name: layer.weight for layer in graph.layers}
        for branch in branches:
            for name in branch[:-1]:
                weights[name].mul_(len(branches) ** (-1 / (2 * len(branch) - 2)))
            weights[branch[-1]].zero_()
        for name in last_layers(graph):
            weights[name].zero_()
    return branches
