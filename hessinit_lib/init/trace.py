"""One forward pass that tells how a model's layers hang together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from hessinit_lib.hessians.bundle import Inputs, single_input
from hessinit_lib.hessians.calling import PureModel, plain
from hessinit_lib.hessians.quiet import without_noise
from hessinit_lib.init.layers import Layer, weight_layers
from hessinit_lib.init.oddness import mirrored_slope


@dataclass(frozen=True)
class Trace:
    """What a forward pass showed.

    Attributes:
        layers: those that were called, in the order of their first calls.
        slopes: by name, for the layers that read the outputs of others through an activation
            that is not odd: see `hessinit_lib.init.oddness`. 1 behind a ReLU.
        nodes: where each layer's output is in the autograd graph, for each of its calls.
        weights: the leaves of the graph that stand for the weights, by name.
        outputs: of the model, with the graph, in float32 or float64.
    """

    layers: list[Layer]
    slopes: dict[str, float]
    nodes: dict[str, list[Node]]
    weights: dict[str, Tensor]
    outputs: Tensor


def trace(model: nn.Module, inputs: Inputs) -> Trace:
    """Run a model once and watch its layers. Nothing of it changes.

    Args:
        model: any module with one tensor of outputs.
        inputs: what it takes.

    Raises:
        NotImplementedError: a trainable weight that is not covered, or batch normalization
            in training mode; the message names it.
        ValueError: no samples, or outputs that are not one tensor.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> found = trace(model, torch.ones(5, 3))
        >>> [layer.name for layer in found.layers], found.slopes
        (['0.weight', '2.weight'], {'2.weight': 1.0})
    """
    model = plain(model)
    refuse_batch_statistics(model)
    layers = weight_layers(model)
    order: dict[str, Layer] = {}
    slopes: dict[str, float] = {}
    nodes: dict[str, list[Node]] = {layer.name: [] for layer in layers}

    with ExitStack() as stack:
        for module, layer in _callers(model, layers):

            def hook(
                _: nn.Module, args: tuple, kwargs: dict, output: Tensor, layer: Layer = layer
            ) -> Tensor | None:
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
        with without_noise(model):
            whole, single, prefix = single_input(model, inputs)
            if single.ndim == 0 or len(single) == 0:
                raise ValueError(f"inputs of shape {tuple(single.shape)}: expected some samples")
            pure = PureModel(whole, [prefix + layer.name for layer in layers])
            with pure.running(), torch.enable_grad():
                outputs = pure(single)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model gave a {type(outputs).__name__}, expected one tensor")
    weights = {name: pure.state[prefix + name] for name in order}
    return Trace(list(order.values()), slopes, nodes, weights, outputs)


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse batch normalization in training mode.

    Raises:
        NotImplementedError: there is some; the message names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
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
