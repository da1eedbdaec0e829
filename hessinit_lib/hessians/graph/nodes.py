"""Nodes and edges of the autograd graph."""

from __future__ import annotations

from collections.abc import Iterator

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


def edge_shape(edge: GradientEdge) -> tuple[int, ...]:
    """Give the shape of the tensor that stood at that place in the forward pass."""
    return tuple(edge.node._input_metadata[edge.output_nr].shape)


def operation(node: Node) -> str:
    """Give a node's name without "Backward" and the overload's number: "Relu", say."""
    return node.name().rstrip("0123456789").removesuffix("Backward")
