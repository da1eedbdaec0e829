"""The graph above the layers, cut into segments that backward passes go through in turn.

A node through which every path from the logits to the layers below runs is a place to stop:
the gradients there are all that the layers below need. So the factors of one segment can be
used up before those of the next one are made, without any work done twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.graph.conditions import inputs_first


@dataclass(frozen=True)
class Segment:
    """A part of the graph.

    Attributes:
        start: where its passes start; None for the logits.
        layers: the layers in it, the highest first.
        end: where the next segment starts; None below the last one.
    """

    start: GradientEdge | None
    layers: list[CapturedLayer]
    end: GradientEdge | None


def edge_shape(edge: GradientEdge) -> tuple[int, ...]:
    """Give the shape of the tensor that stood at that place in the forward pass."""
    return tuple(edge.node._input_metadata[edge.output_nr].shape)


def segments(logits: Tensor, layers: list[CapturedLayer], least: int) -> list[Segment]:
    """Cut the graph where a single tensor separates layers above from layers below.

    Args:
        logits: with their graph.
        layers: those that the logits depend on.
        least: entries that the outputs of a segment's layers have together, at least, so
            that no cut is made for too little.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessinit_lib.hessians.graph.capture import capture
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> layers, logits = capture(model, torch.ones(5, 3))
        >>> [[layer.name for layer in part.layers] for part in segments(logits, layers, 1)]
        [['2.weight'], ['0.weight']]
    """
    below = {_edge(layer).node: layer for layer in layers}
    order = _above(logits, below)
    places = {node: place for place, node in enumerate(order)}
    waiting = sorted(layers, key=lambda layer: places[_edge(layer).node])
    found: list[Segment] = []
    start: GradientEdge | None = None
    inside: list[CapturedLayer] = []
    cut: GradientEdge | None = None  # the smallest since the last layer inside
    for place, edge in _cuts(order, places):
        if waiting and places[_edge(waiting[0]).node] <= place:
            if cut is not None and _size(inside) >= least:
                found.append(Segment(start, inside, cut))
                start, inside = cut, []
            cut = None
        while waiting and places[_edge(waiting[0]).node] <= place:
            inside.append(waiting.pop(0))
        if inside and (cut is None or _numel(edge) < _numel(cut)):
            cut = edge
    if cut is not None and waiting and _size(inside) >= least:
        found.append(Segment(start, inside, cut))
        start, inside = cut, []
    return [*found, Segment(start, inside + waiting, None)]


def _edge(layer: CapturedLayer) -> GradientEdge:
    assert layer.edge is not None  # only layers that were called come here
    return layer.edge


def _numel(edge: GradientEdge) -> int:
    return math.prod(edge_shape(edge))


def _size(layers: list[CapturedLayer]) -> int:
    return sum(_numel(_edge(layer)) for layer in layers)


def _above(logits: Tensor, below: dict[Node, CapturedLayer]) -> list[Node]:
    """List the nodes from the logits down to the layers, each before those it depends on."""
    root = logits.grad_fn
    assert root is not None
    leads: set[Node] = set()
    order: list[Node] = []
    for node in inputs_first(root):
        if node in below or any(following in leads for following, _ in node.next_functions):
            leads.add(node)
            order.append(node)
    return order[::-1]


def _cuts(order: list[Node], places: dict[Node, int]) -> Iterator[tuple[int, GradientEdge]]:
    """Find the tensors through which all that comes later in the order depends on."""
    reach = 0  # the last place that a node so far leads to
    outputs: dict[Node, set[int]] = {}
    for place, node in enumerate(order):
        if place and reach == place and len(outputs[node]) == 1:
            yield place, GradientEdge(node, next(iter(outputs[node])))
        for following, index in node.next_functions:
            if following in places:
                reach = max(reach, places[following])
                outputs.setdefault(following, set()).add(index)
