"""Backward passes that carry factors to the layers, in an order that bounds the memory.

The graph is cut into segments where a single tensor separates layers above from layers below.
Segment by segment, every factor is carried by a vector-Jacobian product from the segment's
start to its layers and to its end; the layers' Gram matrices use the factors up before the
next segment comes. With little memory the passes of a segment are repeated for some of its
layers' channels at a time, and if even the factors between two segments are too much, all
start at the logits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.graph.gram import LayerGram, Piece
from hessinit_lib.hessians.graph.nodes import edge_shape, inputs_first
from hessinit_lib.hessians.numerics.workspace import WAITING_SHARE, Workspace, kept_workspace

# Entries of factors to gather in a segment before it ends: calls cost time, too.
_SEGMENT = 1 << 23


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


Group = dict[LayerGram, list[Piece]]
"""Pieces of some layers whose factors are held at the same time."""


class Step(NamedTuple):
    """A segment, and what to hold in each round of passes through it."""

    segment: Segment
    groups: list[Group]


def layer_grams(
    logits: Float[Tensor, "b c"],
    layers: list[CapturedLayer],
    columns: Float[Tensor, "r b c"],
    *,
    by_rows: bool = False,
    factored: bool = False,
    rounded: bool = False,
    limit: int | None = None,
) -> Iterator[LayerGram]:
    """Compute the Gram matrices of all layers, the highest first.

    For `by_rows`, `factored` and `rounded` see `LayerGram`. The limit is in bytes, an
    eighth of them for matrices that wait for what comes next; None is no bound.

    Raises:
        ValueError: the limit is too small.
    """
    batch, rank = len(logits), len(columns)

    make = partial(
        LayerGram, batch=batch, rank=rank, by_rows=by_rows, factored=factored, rounded=rounded
    )
    if limit is None:
        steps = []
        least = _SEGMENT // rank if logits.device.type == "cpu" else 1 << 62
        for part in segments(logits, layers, least):
            grams = map(make, part.layers)
            steps.append(Step(part, [{gram: gram.pieces for gram in grams}]))
    else:
        steps = _steps_within(limit, logits, layers, rank, make)
    with kept_workspace(logits) if limit is None else nullcontext() as kept:
        starts, ends = list(columns.contiguous()), []
        for segment, groups in steps:
            for group in groups:
                # Under a limit, the largest buffers of all groups are too much together.
                workspace = kept or Workspace(logits)
                last = group is groups[-1]
                filled, ends = _carry(
                    logits, segment, starts, group, last, workspace, limit is None
                )
                for gram, pieces in filled.items():
                    gram.add(pieces, workspace)
                    if pieces[-1][0] is gram.pieces[-1]:
                        yield gram
            starts = ends


def _carry(
    logits: Float[Tensor, "b c"],
    segment: Segment,
    starts: list[Tensor],
    group: Group,
    last: bool,
    workspace: Workspace,
    at_once: bool,
) -> tuple[dict[LayerGram, list[tuple[Piece, Tensor]]], list[Tensor]]:
    """Carry every factor through a segment, once, by vector-Jacobian products.

    All `at_once` where that is faster; it takes memory for all factors on the way.

    Returns:
        The factors of each piece in the group, and if it is the last group the factors at
        the segment's end.
    """
    filled: dict[LayerGram, list[tuple[Piece, Tensor]]] = {}
    at = 0
    total = sum(gram.size(piece) for gram, pieces in group.items() for piece in pieces)
    store = workspace.take("factors", (total,), torch.uint8)
    for gram, pieces in group.items():
        filled[gram] = []
        for piece in pieces:
            part = store[at : at + gram.size(piece)].view(gram.dtype)
            filled[gram].append((piece, part.view(gram.shape(piece))))
            at += gram.size(piece)
    edges = [_edge(gram.layer) for gram in group]
    if last and segment.end is not None:
        edges.append(segment.end)
    ends: list[Tensor] = []
    source = [logits] if segment.start is None else [segment.start]

    def back(start: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(source, edges, [start], retain_graph=True)

    together = _at_once(back, starts) if at_once and segment.end is None else None
    for index, gradients in enumerate(map(back, starts) if together is None else [together]):
        for (gram, pieces), gradient in zip(filled.items(), gradients, strict=False):
            for piece, factors in pieces:
                gram.fill(factors, piece, index if together is None else None, gradient)
        ends += gradients[len(filled) :]
    return filled, ends


def _at_once(
    back: Callable[[Tensor], tuple[Tensor, ...]], starts: list[Tensor]
) -> tuple[Tensor, ...] | None:
    """Carry all factors through by one pass over the graph, on a GPU; None if that cannot be."""
    if starts[0].device.type == "cpu":
        return None
    try:
        with warnings.catch_warnings():  # of operations that are done one by one
            warnings.simplefilter("ignore", UserWarning)
            return torch.vmap(back)(torch.stack(starts))
    except RuntimeError:
        return None


def _steps_within(
    limit: int,
    logits: Tensor,
    layers: list[CapturedLayer],
    rank: int,
    make: Callable[..., LayerGram],
) -> list[Step]:
    """Divide the work so that it takes no more memory than is allowed.

    First with factors kept from one segment to the next, then without, then in the smallest
    pieces.
    """
    allowed, entries = limit - limit // WAITING_SHARE, limit // logits.element_size()
    parts = segments(logits, layers, min(_SEGMENT, entries // 8) // rank)
    whole = segments(logits, layers, 1 << 62)
    needed = 0
    for cut, max_entries in ((parts, entries // 16), (whole, entries // 16), (whole, 1)):
        steps: list[Step] = []
        needed = 0
        for part in cut:
            grams = [make(layer, max_entries=max_entries) for layer in part.layers]
            groups, least = _groups(part, grams, rank, allowed)
            steps.append(Step(part, groups))
            needed = max(needed, least)
        if needed <= allowed:
            return steps
    least = needed * WAITING_SHARE // (WAITING_SHARE - 1) + 1
    raise ValueError(f"max_memory={limit}: at least {least} bytes are needed")


def _groups(
    segment: Segment, grams: list[LayerGram], rank: int, limit: int
) -> tuple[list[Group], int]:
    """Divide a segment's pieces into as few groups as fit, and give the bytes of the largest."""
    groups: list[Group] = [{}]
    needed = 0
    for gram in grams:
        for piece in gram.pieces:
            longer = {**groups[-1], gram: [*groups[-1].get(gram, []), piece]}
            if groups[-1] and _size(longer, segment, rank) > limit:
                groups.append({gram: [piece]})
            else:
                groups[-1] = longer
            needed = max(needed, _size(groups[-1], segment, rank))
    return groups, needed


def _size(group: Group, segment: Segment, rank: int) -> int:
    """Count the bytes that are held while a group is carried and added."""
    width = next(iter(group)).layer.weight.element_size()
    outputs = [_numel(_edge(gram.layer)) for gram in group]
    ends = [_numel(edge) for edge in (segment.start, segment.end) if edge]
    largest = max(_numel(_edge(layer)) for layer in segment.layers)
    # The gradients of one pass, with those that autograd holds on the way.
    gradients = sum(outputs) + 2 * max(largest, *ends, 0)
    factors = sum(gram.size(piece) for gram, pieces in group.items() for piece in pieces)
    transient = max(gram.transient_bytes for gram in group)
    kept = sum(gram.kept_bytes for gram in group)
    return width * (gradients + rank * sum(ends)) + factors + transient + kept


def segments(logits: Tensor, layers: list[CapturedLayer], least: int) -> list[Segment]:
    """Cut the graph where a single tensor separates layers above from layers below.

    The outputs of a segment's layers have at least so many entries together: no cut is made
    for too little.
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
            if cut is not None and _entries(inside) >= least:
                found.append(Segment(start, inside, cut))
                start, inside = cut, []
            cut = None
        while waiting and places[_edge(waiting[0]).node] <= place:
            inside.append(waiting.pop(0))
        if inside and (cut is None or _numel(edge) < _numel(cut)):
            cut = edge
    if cut is not None and waiting and _entries(inside) >= least:
        found.append(Segment(start, inside, cut))
        start, inside = cut, []
    return [*found, Segment(start, inside + waiting, None)]


def _edge(layer: CapturedLayer) -> GradientEdge:
    assert layer.edge is not None  # only layers that were called come here
    return layer.edge


def _numel(edge: GradientEdge) -> int:
    return math.prod(edge_shape(edge))


def _entries(layers: list[CapturedLayer]) -> int:
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
