"""How a model's layers are connected, read from the autograd graph of one forward pass.

`forward_graph` runs the model; from the graph are read the `residual_branches`, the
`last_layers` before the outputs, and by `mirrored_slope` the activation that a layer reads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.utils.parametrize import ParametrizationList

from hessinit_lib.hessians.functional import PureModel, by_batch_statistics, one_tensor, unwrapped
from hessinit_lib.hessians.ggn.uses import MEETINGS, REARRANGING
from hessinit_lib.hessians.graph.nodes import edge_shape, inputs_first, operation
from hessinit_lib.hessians.inputs import Inputs, sample_count
from hessinit_lib.hessians.kinds import COVERED
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.init.layers import Layer, not_placed, other_weights, weight_layers

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_PARAMETRIZED = (*COVERED, *_RECURRENT, nn.MultiheadAttention)
_EQUAL = 1e-3  # relative difference of numbers that would be equal without rounding
_RIGHT = {"Addmm": 2, "Mm": 1, "Bmm": 1, "Convolution": 1}  # inputs on the right of a product
_ADDING = frozenset(["Add", "Sub", "Cat", "Stack"])
_SCALING = frozenset(["Mul", "Div"])
_THROUGH = REARRANGING | _ADDING | _SCALING | {"Expand", "Repeat", "Index", "Roll", "Flip", "Neg"}
"""Operations that leave a weight what it is."""
_TABLES = _ADDING | {*_RIGHT, "Rsub", "Where", "Embedding", "EmbeddingBag", "CopySlices"}


@dataclass(frozen=True)
class ForwardGraph:
    """The layers of a model in the autograd graph of one forward pass.

    Attributes:
        layers: those that were called, in the order of their first calls: all matrices,
            kernels and Embeddings.
        slopes: the `mirrored_slope` by name, of the layers that read the outputs of others
            through an activation that is not odd. 1 behind a ReLU.
        nodes: where each layer's output is in the autograd graph, for each of its calls.
        outputs: of the model, with the graph, in float32 or float64; the logits, where it
            ends in a log-softmax of these.
        tables: parameters of two or more axes that are added to signals or joined with them.
    """

    layers: list[Layer]
    slopes: dict[str, float]
    nodes: dict[str, list[Node]]
    outputs: Tensor
    tables: list[Tensor]


def forward_graph(model: nn.Module, inputs: Inputs) -> ForwardGraph:
    """Run a model once and note where its layers are in the graph. The model is not changed.

    Args:
        model: any module with one tensor of outputs.
        inputs: what it takes.

    Raises:
        NotImplementedError: a trainable weight that has no place as a matrix, kernel, table or
            gain, or batch normalization in training mode; the message names it.
        ValueError: no samples, or outputs that are not one tensor.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> graph = forward_graph(model, torch.ones(5, 3))
        >>> [layer.name for layer in graph.layers], graph.slopes
        (['0.weight', '2.weight'], {'2.weight': 1.0})
    """
    model = unwrapped(model)
    refuse_batch_statistics(model)
    owners = other_weights(model)
    layers = {layer.name: layer for layer in weight_layers(model, others=bool(owners))}
    if sample_count(inputs) == 0:
        raise ValueError("inputs: got 0 samples, expected some")
    with without_noise(model, inputs):
        pure = PureModel(model, [*layers, *owners])
        # Layers that compute all steps at once do not show the weights' places.
        with pure.running(twice=False), torch.enable_grad():
            outputs = one_tensor(pure.logits(inputs)[0])
    weights = {name: pure.state[name] for name in (*layers, *owners)}
    places, tables = _places_of(outputs, weights, owners), []
    for name, module in owners.items():
        layer = _placed(name, module, model, weights[name], places[name])
        if isinstance(layer, Layer):
            layers[name] = layer
        elif layer:
            tables.append(module.get_parameter(name.rpartition(".")[2]))
    met = {name: [p for p in places[name] if operation(p.node) in MEETINGS] for name in layers}
    called = sorted(filter(met.get, met), key=lambda name: met[name][0].node._sequence_nr())
    slopes: dict[str, float | None] = {}
    known = {place.node for found in met.values() for place in found}
    for name in called[1:]:
        reads = met[name][-1 if name in owners else 0].reads  # at first it may be a state of zeros
        slopes[name] = mirrored_slope(reads, known) if reads is not None else None
    return ForwardGraph(
        [layers[name] for name in called],
        {n: slope for n, slope in slopes.items() if slope is not None and "weight_hh" not in n},
        {name: [place.node for place in met[name]] for name in layers},
        outputs,
        tables,
    )


class Place(NamedTuple):
    """Where what is made of weights alone meets something else: a node, as which of its inputs.

    What is `read` there has the `axes` of outputs and inputs, if it is a matrix or kernel.
    """

    node: Any
    place: int
    read: tuple[Node, int]
    axes: tuple[int, int] | None

    @property
    def reads(self) -> Tensor | None:
        """The signal that a matrix or kernel multiplies."""
        kind = operation(self.node)
        left = {"Addmm": "mat1", "Convolution": "input"}.get(kind, "self")
        saved = "_saved_" + (left if self.place == _RIGHT.get(kind) else "mat2")
        return getattr(self.node, saved) if self.axes else None


def _places_of(
    outputs: Tensor, weights: Mapping[str, Tensor], others: Collection[str]
) -> dict[str, list[Place]]:
    """Find where weights meet signals, in the order of the forward pass."""
    names = {id(weight): name for name, weight in weights.items()}
    found: dict[str, list[Place]] = {name: [] for name in weights}
    made: dict[Node | None, frozenset[str]] = {}  # of which weights alone
    mixed: dict[Node | None, frozenset[str]] = {}  # the same, by products of several
    assert outputs.grad_fn is not None
    for node in inputs_first(outputs.grad_fn):
        leaf, kind = getattr(node, "variable", None), operation(node)
        if id(leaf) in names:
            made[node] = frozenset([names[id(leaf)]])
        sources = [source for source, _ in node.next_functions]
        below = [made.get(s) or mixed.get(s) for s in sources if s is not None]
        whole = frozenset[str]().union(*filter(None, below)) if all(below) else None
        through = whole and (kind in _THROUGH or "parametrizations." in min(whole))
        through = through and kind not in MEETINGS and not any(s in mixed for s in sources)
        if whole and through:
            made[node] = whole
            continue
        right = _RIGHT.get(kind, 0)
        sides = sources[right - 1 : right + 1] if right else []
        if whole and kind != "Embedding" and None not in sides:
            mixed[node] = whole
        elif right and kind != "Bmm":
            for name in sorted(mixed.get(sides[1], frozenset()).intersection(others)):
                raise not_placed(name, "a function of it multiplies, not it itself")
        # A weight on the left of another one is the input of a layer.
        axes = {right: (-1, -2), right - 1: None if node in mixed else (-2, -1)} if right else {}
        if kind == "Convolution":
            axes = {right: (1, 0) if cast(Any, node)._saved_transposed else (0, 1)}
        for place, (source, outlet) in enumerate(node.next_functions):
            for name in made.get(source, ()):
                assert source is not None
                found[name].append(Place(node, place, (source, outlet), axes.get(place)))
    for places in found.values():
        places.sort(key=lambda place: place.node._sequence_nr())
    return found


def _placed(
    name: str, module: nn.Module, model: nn.Module, weight: Tensor, places: list[Place]
) -> Layer | bool:
    """Give the layer of a weight, or whether it is a table: gains and biases are left."""
    key = name.rpartition(".")[2]
    if isinstance(module, ParametrizationList):
        path, _, original = f".{name}".partition(".parametrizations.")
        owner, part = model.get_submodule(path[1:]), original.partition(".")[0]
        if not isinstance(owner, _PARAMETRIZED):
            raise not_placed(name, f"it is parametrized in a {type(owner).__name__}")
        sizes = {each: p.numel() for each, p in module.named_parameters(recurse=False)}
        return key == max(sizes, key=sizes.__getitem__) and Layer(name, owner, part)
    uses = [place for place in places if place.axes]
    for some in (uses, uses[:1]) if uses else ():  # of a tied one the first decides
        if found := _axes_of(weight, some):
            return Layer(name, module, key, *found)
    if uses:
        raise not_placed(name, "more than its order changes before it multiplies")
    kinds = {operation(place.node) for place in places}
    tables = {k for k in kinds if k in _TABLES or "Attention" in k or "Upsample" in k}
    if wrong := [k for k in kinds - tables - _SCALING if "Norm" not in k]:
        raise not_placed(name, f"it is used by {wrong[0]}")
    return bool(tables - {"Add", "Sub"}) or (bool(tables) and weight.numel() > max(weight.shape))


def _axes_of(
    weight: Tensor, uses: Sequence[Place]
) -> tuple[tuple[int, ...], int, int, float] | None:
    """Find which axes of a weight are of blocks, outputs and inputs, as in `Layer`."""
    edges = [GradientEdge(*use.read) for use in uses]
    ones = [weight.new_ones(edge_shape(edge)) for edge in edges]

    def back(which: int) -> Tensor:
        """Go back from the indices along the axis of outputs or inputs."""
        indices = [x.cumsum(use.axes[which]) for x, use in zip(ones, uses, strict=True) if use.axes]
        return torch.autograd.grad(edges, [weight], indices, retain_graph=True)[0]

    (count,) = torch.autograd.grad(edges, [weight], ones, retain_graph=True)
    mean, every = count.mean().item(), range(weight.ndim)
    if not (count - mean).abs().max() < _EQUAL * abs(mean):
        return None
    factor = mean * weight.numel() / sum(x.numel() for x in ones)
    if operation(uses[0].node) == "Convolution":
        first, groups = uses[0].axes or (), uses[0].node._saved_groups
        if weight.ndim != ones[0].ndim or (groups > 1 and first == (1, 0)):
            return None
        return (*first, *every[2:]), 0, groups, factor
    out, into = (
        [a for a in every if (g.diff(dim=a).abs() > _EQUAL * abs(mean)).any()]
        for g in (back(0), back(1))
    )
    single = [a for a in every if a not in out + into and weight.shape[a] == 1]
    out, into = out or [single.pop() for _ in single[:1]], into or single[:1]
    blocks = [a for a in every if a not in out[-1:] + into]
    axes = (*blocks, *out[-1:], *into)
    return (axes, len(blocks), 1, factor) if out and into and sorted(axes) == [*every] else None


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse batch normalization in training mode.

    Raises:
        NotImplementedError: there is some; the message names it.
    """
    for name, module in model.named_modules():
        if by_batch_statistics([module]):
            raise NotImplementedError(
                f"{name or 'the model'} ({type(module).__name__}) normalizes by the statistics of "
                "its batch: the loss does not depend on the scale of the layer below, so there "
                "is none to choose; expected a network without it, or model.eval()"
            )


def all_layers(model: nn.Module, inputs: Inputs) -> list[Layer]:
    """List the layers in model order, those that only the graph shows included."""
    if not (others := other_weights(model)):
        return weight_layers(model)
    graph = forward_graph(model, inputs)
    found = {each.name: each for each in (*weight_layers(model, others=True), *graph.layers)}
    if not found:
        raise NotImplementedError(f"{next(iter(others))}: expected a weight that multiplies inputs")
    return [found[name] for name, _ in model.named_parameters() if name in found]


def residual_branches(graph: ForwardGraph) -> list[list[str]]:
    """List the layers of each residual branch, in the order of the forward pass.

    Where the graph adds two tensors, one of which lies on the path to the other, a branch
    ends: its layers are those on the longer path only. A layer on the shorter path, such as
    the convolution of a shortcut, belongs to no branch.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.b(self.a(x).relu())
        >>> model = nn.Sequential(nn.Linear(3, 3), Block(), nn.Linear(3, 2))
        >>> residual_branches(forward_graph(model, torch.ones(4, 3)))
        [['1.a.weight', '1.b.weight']]
    """
    names = {node: name for name, nodes in graph.nodes.items() for node in nodes}
    root = graph.outputs.grad_fn
    assert root is not None
    below: dict[Node, frozenset[str]] = {}
    branches = []
    for node in inputs_first(root):
        sides = [below[side] for side, _ in node.next_functions if side is not None]
        here = frozenset().union(*sides)
        if node.name().startswith("AddBackward") and len(sides) == 2:
            short, long = sorted(sides, key=len)
            # Two paths without a layer in common are not trunk and branch: a token's and a
            # position's embedding, say.
            branch = [layer for layer in graph.layers if layer.name in long - short]
            # Inside a recurrent layer what comes in and its state are added.
            if short & long and branch and not isinstance(branch[-1].module, _RECURRENT):
                branches.append([layer.name for layer in branch])
        below[node] = here | {names[node]} if node in names else here
    return branches


def last_layers(graph: ForwardGraph) -> set[str]:
    """Name the layers whose outputs reach the model's with no other layer between.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> last_layers(forward_graph(model, torch.ones(5, 3)))
        {'2.weight'}
    """
    names = {node: name for name, nodes in graph.nodes.items() for node in nodes}
    last: set[str] = set()
    stack, seen = [graph.outputs.grad_fn], set()
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


_SLOPES = {
    **dict.fromkeys(("Relu", "Gelu", "Silu", "Hardswish", "Softplus", "LogSigmoid"), 1.0),
    "Sigmoid": 1 / 2,
    "Hardsigmoid": 1 / 3,
    "Mish": 2 * math.tanh(math.log(2)),
}


def mirrored_slope(reads: Tensor, layers: Collection[Node]) -> float | None:
    r"""Give the slope at 0 of $\phi(a) - \phi(-a)$ for the activation that a layer reads.

    From the layer's input the graph is followed back through reshapes, pooling and
    concatenations, to the first activation or layer.

    Args:
        reads: the layer's input, with the graph.
        layers: the nodes of the layers' outputs.

    Returns:
        $\phi'(0+) + \phi'(0-)$; None where there is nothing to mirror: no activation, or an
        odd one, such as tanh. An unknown one that gave no number below 0 is taken for a ReLU.

    Example:
        >>> a = torch.randn(4, 3, requires_grad=True)
        >>> [mirrored_slope(f(a), ()) for f in (torch.relu, torch.sigmoid, torch.tanh)]
        [1.0, 0.5, None]
    """
    node: Any = reads.grad_fn
    while node is not None and node not in layers:
        kind = node.name().partition("Backward")[0]
        if kind in _SLOPES:
            return _SLOPES[kind]
        if kind == "LeakyRelu":
            return 1 + node._saved_negative_slope
        if kind == "Hardtanh":  # ReLU6, too: from 0 to 6
            ends = node._saved_min_val, node._saved_max_val
            return 1.0 if 0 in ends else None
        sides = [side for side, _ in node.next_functions if side is not None]
        if "Norm" in kind or (len(sides) != 1 and kind != "Cat"):
            break
        node = sides[0]
    return 1.0 if reads.min() >= 0 else None
