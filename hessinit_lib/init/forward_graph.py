"""How a model's layers are connected, read from the autograd graph of one forward pass.

`forward_graph` runs the model; from the graph are read the `residual_branches`, the
`last_layers` before the outputs, and by `mirrored_slope` the activation that a layer reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import log, tanh
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from hessinit_lib.hessians.functional import (
    PureModel,
    by_batch_statistics,
    one_tensor,
    unwrapped,
)
from hessinit_lib.hessians.graph.nodes import inputs_first
from hessinit_lib.hessians.inputs import Inputs, sample_count
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.init.layers import Layer, weight_layers


@dataclass(frozen=True)
class ForwardGraph:
    """The layers of a model in the autograd graph of one forward pass.

    Attributes:
        layers: those that were called, in the order of their first calls.
        slopes: the `mirrored_slope` by name, of the layers that read the outputs of others
            through an activation that is not odd. 1 behind a ReLU.
        nodes: where each layer's output is in the autograd graph, for each of its calls.
        weights: the leaves of the graph that stand for the weights, by name.
        outputs: of the model, with the graph, in float32 or float64; the logits, where it
            ends in a log-softmax of these.
        log_softmax: the axis of that; None if there is none.
    """

    layers: list[Layer]
    slopes: dict[str, float]
    nodes: dict[str, list[Node]]
    weights: dict[str, Tensor]
    outputs: Tensor
    log_softmax: int | None


def forward_graph(model: nn.Module, inputs: Inputs) -> ForwardGraph:
    """Run a model once and note where its layers are in the graph. The model is not changed.

    Args:
        model: any module with one tensor of outputs.
        inputs: what it takes.

    Raises:
        NotImplementedError: a trainable weight that is not covered, or batch normalization
            in training mode; the message names it.
        ValueError: no samples, or outputs that are not one tensor.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> graph = forward_graph(model, torch.ones(5, 3))
        >>> [layer.name for layer in graph.layers], graph.slopes
        (['0.weight', '2.weight'], {'2.weight': 1.0})
    """
    model = unwrapped(model)
    refuse_batch_statistics(model)
    layers = weight_layers(model)
    order: dict[str, Layer] = {}
    slopes: dict[str, float] = {}
    nodes: dict[str, list[Node]] = {layer.name: [] for layer in layers}

    if sample_count(inputs) == 0:
        raise ValueError("inputs: got 0 samples, expected some")
    with ExitStack() as stack:
        stack.enter_context(without_noise(model, inputs))
        for module, layer in _callers(model, layers):

            def hook(
                _: nn.Module, args: tuple, kwargs: dict, output: Tensor, layer: Layer = layer
            ) -> Tensor | None:
                if not output.requires_grad:  # under no_grad
                    return None
                z = args[0] if args else kwargs["input"]
                if order and layer.name not in order and z.is_floating_point():
                    known = {node for calls in nodes.values() for node in calls}
                    if (slope := mirrored_slope(z, known)) is not None:
                        slopes[layer.name] = slope
                order.setdefault(layer.name, layer)
                output = output.clone()  # what comes next may work on it in place
                assert output.grad_fn is not None
                nodes[layer.name].append(output.grad_fn)
                return output

            handle = module.register_forward_hook(hook, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        pure = PureModel(model, [layer.name for layer in layers])
        with pure.running(twice=False), torch.enable_grad():
            outputs, axis = pure.logits(inputs)
            outputs = one_tensor(outputs)
    weights = {name: pure.state[name] for name in order}
    return ForwardGraph(list(order.values()), slopes, nodes, weights, outputs, axis)


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


def _callers(model: nn.Module, layers: list[Layer]) -> Iterator[tuple[nn.Module, Layer]]:
    """Find all modules that call a layer's weight, several if it is tied."""
    by_weight = {id(layer.weight): layer for layer in layers}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) in by_weight:
            yield module, by_weight[id(weight)]


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
            if short & long and long - short:
                branches.append(
                    [layer.name for layer in graph.layers if layer.name in long - short]
                )
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
    "Mish": 2 * tanh(log(2)),
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
