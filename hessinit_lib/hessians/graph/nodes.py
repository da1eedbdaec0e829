"""Nodes and edges of the autograd graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.autograd.graph import GradientEdge, Node


def inputs_first(root: Node) -> Iterator[Node]:
    """Yield the graph below a node in topological order: each node after those it depends on."""
    done: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
            continue
        if node in done:
            continue
        done.add(node)
        stack.append((node, True))
        stack.extend(
            (following, False)
            for following, _ in node.next_functions
            if following is not None and following not in done
        )


def leaves_below(root: Node | None) -> Iterator[Any]:
    """Yield the tensors that are leaves of the graph below a node."""
    for node in inputs_first(root) if root else ():
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf


def parameters_below(root: Node | None, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Name the parameters that are leaves of the graph below a node.

    Example:
        >>> import torch
        >>> w = nn.Parameter(torch.ones(2))
        >>> parameters_below(w.sum().grad_fn, {"w": w})
        ['w']
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [names[id(leaf)] for leaf in leaves_below(root) if id(leaf) in names]


def edge_shape(edge: GradientEdge) -> tuple[int, ...]:
    """Give the shape of the tensor that stood at that place in the forward pass."""
    return tuple(edge.node._input_metadata[edge.output_nr].shape)


def operation(node: Node) -> str:
    """Give a node's name without "Backward" and the overload's number: "Relu", say."""
    return node.name().rstrip("0123456789").removesuffix("Backward")
