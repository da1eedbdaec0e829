"""How a model is put together: what the numbers of its layers do not show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from hessinit_lib.diagnosis.moments import Moments
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.graph.nodes import leaves_below, operation
from hessinit_lib.hessians.kinds import owned_parameters

_LARGE = 10.0  # entries of biases and of the scales of normalizations
_RULING = 1.01  # largest size of an output over that of a bias that leaves nothing to the weights
_DROPPED = 0.9

_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Alias", "Clone")
_RANGES = {"Tanh": (-1.0, 1.0), "Sigmoid": (0.0, 1.0), "Relu": (0.0, math.inf)}

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_OVER_TIME = (nn.RNNBase, nn.MultiheadAttention)


def heads_of(outputs: Tensor, calls: Sequence[Tensor]) -> set[int]:
    """Find the layers, by order, whose outputs reach those of the model through no other."""
    orders = {call.grad_fn: order for order, call in enumerate(calls)}
    found: set[int] = set()
    seen: set[Node | None] = {None}
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in orders:
            found.add(orders[node])
        elif node not in seen and node is not None:
            waiting += [parent for parent, _ in node.next_functions]
        seen.add(node)
    return found


def unregistered_leaves(
    outputs: Tensor, state: Mapping[str, Tensor], samples: int
) -> list[tuple[int, ...]]:
    """Give shapes of tensors that require a gradient and are no parameters of the model.

    Those of the batch's size are left out: some models have gradients in their inputs.

    Example:
        >>> import torch
        >>> hidden = torch.ones(2, 3, requires_grad=True)
        >>> unregistered_leaves(hidden.sum(), {}, samples=4)
        [(2, 3)]
    """
    known = {id(tensor) for tensor in state.values()}
    return [
        tuple(leaf.shape)
        for leaf in leaves_below(outputs.grad_fn)
        if id(leaf) not in known
        and (isinstance(leaf, nn.Parameter) or leaf.shape[:1] != (samples,))
    ]


def heavy_dropout(model: nn.Module) -> dict[str, float]:
    """Find modules of dropout that leave less than a tenth of what they get.

    Example:
        >>> heavy_dropout(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.98)))
        {'1': 0.98}
    """
    return {
        name: module.p
        for name, module in model.named_modules()
        if isinstance(module, _DropoutNd) and module.p > _DROPPED
    }


def dropped_last(model: nn.Module, given: dict[nn.Module, object]) -> list[RemovableHandle]:
    """Note what modules of dropout give, to compare it with the outputs."""

    def after(module: nn.Module, _: object, output: object) -> None:
        given[module] = output

    return [
        module.register_forward_hook(after)
        for module in model.modules()
        if isinstance(module, _DropoutNd) and module.p > 0
    ]


def bounds_of(outputs: Tensor) -> tuple[float, float]:
    """Give the range of the function that outputs went through last, if it has one.

    Example:
        >>> import torch
        >>> bounds_of(torch.ones(2, 1, requires_grad=True).tanh().flatten())
        (-1.0, 1.0)
    """
    node = outputs.grad_fn
    while node is not None and operation(node) in _VIEWS:
        node = node.next_functions[0][0]
    return _RANGES.get(operation(node) if node is not None else "", (-math.inf, math.inf))


def is_crossed(module: nn.Module, given: Tensor | None, case: Case) -> bool:
    """Tell whether a layer takes the axis of the samples for time, and time for samples."""
    if given is None or given.ndim != 3 or not isinstance(module, _OVER_TIME):
        return False
    first, second = given.shape[:2]
    return not module.batch_first and first == case.samples == len(case.targets) != second


def large_vectors(
    model: nn.Module, state: Mapping[str, Tensor], owners: Mapping[nn.Module, Sequence[Any]]
) -> dict[str, float]:
    """Give sizes of biases that leave nothing to weights, and of large scales of normalizations."""
    found = {}
    for name, module, _ in owned_parameters(model.named_modules()):
        norm = isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")
        recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase)
        if name not in state or state[name].ndim != 1:
            continue
        key = name.rpartition(".")[2]
        if not (key == "weight" if norm else key.startswith("bias")):
            continue
        size = Moments.of(state[name]).rms
        # Of the layers that give outputs, the loss will tell.
        layers = [s for s in owners.get(module, []) if s.order is not None and not s.head]
        rules = layers and layers[0].outputs.rms < _RULING * size
        if size > _LARGE and (norm or recurrent or rules):
            found[name] = size
    return found
