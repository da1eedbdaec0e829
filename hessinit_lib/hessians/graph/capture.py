"""One forward pass of any model that keeps its layers' inputs and outputs.

Forward hooks catch the inputs of every parameterized layer, and the place of its output in
the autograd graph, so that the model may be any `nn.Module` with any `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.modules.module as global_hooks
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel, one_tensor
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.kinds import covered_weights
from hessinit_lib.hessians.loss import LossFn, on_logits


@dataclass(frozen=True)
class CapturedLayer:
    """A layer with a trainable weight, as one forward pass found it.

    Attributes:
        name: the weight parameter.
        module: the layer, of a type in `COVERED`.
        weight: the leaf of the graph that stands for the weight.
        inputs: z, the layer's inputs; None if it was not called.
        version: the version counter of the inputs at that time.
        edge: where its output is in the graph; None if it was not called.
    """

    name: str
    module: nn.Module
    weight: Tensor
    inputs: Tensor | None
    version: int
    edge: GradientEdge | None


def capture(model: nn.Module, inputs: Inputs) -> tuple[list[CapturedLayer], Tensor]:
    """Run the model once, with a graph, and keep each layer's inputs and its output's place.

    Nothing of the model changes, see `PureModel`. Gives the layers, in the order of
    `model.named_parameters()`, and the model's output.

    Raises:
        NotImplementedError: a trainable weight in a module that is not in `COVERED`,
            active dropout, a tied weight or a layer called twice; the message names it.

    Example:
        >>> layers, logits = capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.ones(2, 4))
        >>> [layer.name for layer in layers], tuple(logits.shape)
        (['1.weight'], (2, 3))
    """
    layers, (outputs, _) = _capture(model, None, lambda pure: (pure(inputs), None))
    return layers, outputs


def capture_logits(case: Case) -> tuple[list[CapturedLayer], Tensor, LossFn]:
    """Run a case's model as `capture` does, and undo a log-softmax that comes last.

    Gives the layers, the outputs, or the logits below the log-softmax, and the loss as a
    function of these.
    """
    layers, (outputs, axis) = _capture(
        case.model, case.chosen, lambda pure: pure.logits(case.inputs)
    )
    return layers, outputs, on_logits(case.loss_fn, axis)


def _capture(
    model: nn.Module,
    chosen: Collection[str] | None,
    call: Callable[[PureModel], tuple[Any, int | None]],
) -> tuple[list[CapturedLayer], tuple[Any, int | None]]:
    owners = _weight_owners(model, chosen)
    # Only the covered weights ask for a gradient: the graph holds nothing else.
    pure = PureModel(model, owners)
    calls: dict[str, tuple[Tensor, int, GradientEdge]] = {}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            if name in calls:
                raise NotImplementedError(
                    f"{name} is used more than once in a forward pass: "
                    "repeated weights are not covered"
                )
            if not output.requires_grad:
                raise NotImplementedError(
                    f"{name} is called under no_grad(): for autograd, nothing depends on it"
                )
            z = args[0] if args else kwargs["input"]
            # An operation in place would move a view (what Linear gives on positions in some
            # versions of torch) to another node of the graph.
            replaced = output.clone() if output._is_view() else None
            edge = get_gradient_edge(output if replaced is None else replaced)
            calls[name] = (z.detach(), z._version, edge)
            return replaced

        # First in line: what the user's own hooks do to the output lies above the layer.
        return module.register_forward_hook(hook, prepend=True, with_kwargs=True)

    handles = [watch(name, module) for name, module in owners.items()]
    try:
        with pure.running(), torch.enable_grad():
            found = call(pure)
            one_tensor(found[0])
    finally:
        for handle in handles:
            handle.remove()
    layers = []
    for name, module in owners.items():
        z, version, edge = calls.get(name, (None, 0, None))
        layers.append(CapturedLayer(name, module, pure.state[name], z, version, edge))
    return layers, found


def _weight_owners(model: nn.Module, chosen: Collection[str] | None) -> dict[str, nn.Module]:
    """Give the modules that own the trainable weights, by parameter name, in model order."""
    owners: dict[str, nn.Module] = {}
    first: dict[int, str] = {}
    for name, module in covered_weights(model, chosen):
        other = first.setdefault(id(module.weight), name)
        if other != name:
            raise NotImplementedError(
                f"{name} shares its tensor with {other}: tied weights are not covered"
            )
        if "forward" in vars(module) or global_hooks._global_forward_hooks:
            raise NotImplementedError(
                f"{name}: its module computes more than its class does (a forward of its own, or "
                "a global hook)"
            )
        _refuse_embedding_options(name, module)
        owners[name] = module
    return owners


def _refuse_embedding_options(name: str, module: nn.Module) -> None:
    if not isinstance(module, nn.Embedding):
        return
    if module.max_norm is not None:
        raise NotImplementedError(f"{name}: max_norm rewrites the weight in the forward pass")
    if module.scale_grad_by_freq:
        raise NotImplementedError(f"{name}: scale_grad_by_freq changes what a gradient is")
