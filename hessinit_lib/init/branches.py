"""The residual branches of a model, read from the graph of one forward pass."""

from __future__ import annotations

from torch.autograd.graph import Node

from hessinit_lib.hessians.graph.conditions import inputs_first
from hessinit_lib.init.trace import Trace


def residual_branches(found: Trace) -> list[list[str]]:
    """List the layers of each residual branch, in the order of the forward pass.

    Where the graph adds two tensors, one of which lies on the way to the other, a branch
    ends: its layers are those that only the longer way passes. A layer on the shorter way,
    such as the convolution of a shortcut, belongs to no branch.

    Args:
        found: a forward pass.

    Returns:
        Names of the weights, a list for each branch, in the order of the branches.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessinit_lib.init.trace import trace
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.b(self.a(x).relu())
        >>> model = nn.Sequential(nn.Linear(3, 3), Block(), nn.Linear(3, 2))
        >>> residual_branches(trace(model, torch.ones(4, 3)))
        [['1.a.weight', '1.b.weight']]
    """
    names = {node: name for name, nodes in found.nodes.items() for node in nodes}
    root = found.outputs.grad_fn
    assert root is not None
    below: dict[Node, frozenset[str]] = {}
    branches = []
    for node in inputs_first(root):
        sides = [below[side] for side, _ in node.next_functions if side is not None]
        here = frozenset().union(*sides)
        if node.name().startswith("AddBackward") and len(sides) == 2:
            short, long = sorted(sides, key=len)
            # Two ways that have no layer in common are no branch and trunk: a token's and a
            # position's embedding, say.
            if short & long and long - short:
                branches.append(
                    [layer.name for layer in found.layers if layer.name in long - short]
                )
        below[node] = here | {names[node]} if node in names else here
    return branches


def last_layers(found: Trace) -> set[str]:
    """Name the layers whose outputs reach the model's with no other layer between.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessinit_lib.init.trace import trace
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> last_layers(trace(model, torch.ones(5, 3)))
        {'2.weight'}
    """
    names = {node: name for name, nodes in found.nodes.items() for node in nodes}
    last: set[str] = set()
    stack, seen = [found.outputs.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in names:
            last.add(names[node])
        else:
            stack.extend(following for following, _ in node.next_functions)
    return last
