r"""One forward and one backward pass: inputs, outputs and gradients of every layer.

For a layer $a = W z + b$ these are the moments of z, of $\nabla_a L$ and of $\nabla_W L$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hessinit_lib.diagnosis.events import Activation, Events
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel, one_tensor
from hessinit_lib.hessians.kinds import CONVOLUTIONS, TRANSPOSED
from hessinit_lib.hessians.loss_value import differentiable

_MAPS = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, *CONVOLUTIONS, *TRANSPOSED)


@dataclass(frozen=True)
class Moments:
    """Of the entries of a tensor: NaN where there is none.

    Attributes:
        mean: their mean.
        std: their standard deviation.
        rms: root of their mean square.
        norm: root of the sum of their squares.
        zeros: share that is zero.
    """

    mean: float = math.nan
    std: float = math.nan
    rms: float = math.nan
    norm: float = math.nan
    zeros: float = math.nan

    @classmethod
    def of(cls, values: Tensor | None) -> Moments:
        """Compute them, in double precision: squares of float32 numbers can overflow.

        Example:
            >>> Moments.of(torch.tensor([3.0, -4.0, 0.0, 0.0])).norm
            5.0
        """
        if values is None or values.numel() == 0:
            return cls()
        values = values.detach().double()
        mean = values.mean().item()
        square = values.square().mean().item()
        spread = math.sqrt(max(0.0, square - mean**2)) if math.isfinite(square) else math.nan
        zeros = (values == 0).double().mean().item()
        rms = math.sqrt(square) if square >= 0 else math.nan
        return cls(mean, spread, rms, rms * math.sqrt(values.numel()), zeros)


@dataclass
class Signal:
    r"""What one forward and backward pass shows of the layer of one weight.

    Attributes:
        name: the parameter.
        shape: its shape.
        trainable: whether it requires a gradient.
        table: whether its entries are looked up or added, and not multiplied with inputs.
        gain: $s \sqrt{n_\mathrm{in}}$ with s the root mean square of the weights: the factor
            on the size of independent inputs (statement 6); of a table s itself.
        order: place in the forward pass; None if the layer was not called.
        inputs: moments of its inputs, if those were floating-point numbers.
        outputs: moments of its outputs, before the activation.
        output_gradients: moments of the gradient of the loss there.
        gradient: moments of the gradient in the weight.
        activation: what followed it.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    table: bool
    gain: float
    order: int | None = None
    inputs: Moments = field(default_factory=Moments)
    outputs: Moments = field(default_factory=Moments)
    output_gradients: Moments = field(default_factory=Moments)
    gradient: Moments = field(default_factory=Moments)
    activation: Activation | None = None


@dataclass(frozen=True)
class Pass:
    """All that one forward and backward pass shows.

    Attributes:
        signals: of every weight, in model order.
        loss: the loss of the batch.
        outputs: moments of the model's outputs.
        output_axes: their number of axes, the batch included.
        sums: see `Events`.
        waiting: names of weights and scales, of any shape, that are zero throughout.
        gradients: of the trainable weights, by name.
    """

    signals: list[Signal]
    loss: float
    outputs: Moments
    output_axes: int
    sums: list[tuple[float, float]]
    waiting: list[str]
    gradients: dict[str, Tensor]


def observe(case: Case) -> Pass:
    """Run a model forward and backward and note what happens in it.

    Nothing of the model changes, see `PureModel`.

    Raises:
        ValueError: outputs that are not one tensor, a loss that is not one number.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> found = observe(Case(model, nn.MSELoss(), torch.ones(4, 2), torch.ones(4, 1)))
        >>> [signal.order for signal in found.signals], found.signals[0].inputs.rms
        ([0, 1], 1.0)
    """
    model = case.model
    # Also for what is frozen: whether a gradient gets to it says how well it is conducted.
    numbers = [name for name, value in model.named_parameters() if value.is_floating_point()]
    pure = PureModel(model, numbers)
    signals, owners = _weights(model)
    calls: list[tuple[nn.Module, Tensor]] = []
    last_axis = -1

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        nonlocal last_axis
        found = _first_tensor(output)
        if found is None or not found.requires_grad:
            return
        last_axis = 1 if isinstance(module, CONVOLUTIONS + TRANSPOSED) else -1
        given = _first_tensor(args) if args else _first_tensor(tuple(kwargs.values()))
        for signal in owners[module]:
            if signal.order is None:  # of a layer that is called again, the first call
                signal.order = len(calls)
                signal.outputs = Moments.of(found)
                if given is not None and given.is_floating_point():
                    signal.inputs = Moments.of(given)
        calls.append((module, found))

    handles: list[RemovableHandle] = [
        module.register_forward_hook(hook, with_kwargs=True) for module in owners
    ]
    events = Events(lambda: (len(calls) - 1, last_axis))
    try:
        with pure.running(), torch.enable_grad():
            with events:
                outputs = pure(case.inputs)
            outputs = one_tensor(outputs)
            loss = differentiable(case.loss_fn, outputs, case.targets, case.parameters)
    finally:
        for handle in handles:
            handle.remove()
    weights = [pure.state[signal.name] for signal in signals]
    find = partial(torch.autograd.grad, loss, allow_unused=True)
    gradients = find([*weights, *(output for _, output in calls)])
    for signal, gradient in zip(signals, gradients, strict=False):
        if signal.trainable:
            signal.gradient = Moments.of(gradient)
        if signal.order is not None:
            signal.output_gradients = Moments.of(gradients[len(signals) + signal.order])
            signal.activation = events.activations.get(signal.order)
    return Pass(
        signals,
        loss.item(),
        Moments.of(outputs),
        outputs.ndim,
        events.sums,
        [n for n in numbers if n.endswith("weight") and not pure.state[n].detach().any()],
        {
            signal.name: torch.zeros_like(weight) if gradient is None else gradient
            for signal, weight, gradient in zip(signals, weights, gradients, strict=False)
            if signal.trainable
        },
    )


def _weights(model: nn.Module) -> tuple[list[Signal], dict[nn.Module, list[Signal]]]:
    """List the weights in model order, and by the modules that own them.

    A module with modules in it is no layer: of a table that is a parameter of the whole model
    (positions, say) only the entries are looked at.
    """
    names = {value: name for name, value in model.named_parameters() if value.ndim > 1}
    signals: dict[str, Signal] = {}
    owners: dict[nn.Module, list[Signal]] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            if weight is None or weight not in names:
                continue
            name = names[weight]
            if name not in signals:
                gain, table = _gain(module, weight)
                shape = tuple(weight.shape)
                signals[name] = Signal(name, shape, weight.requires_grad, table, gain)
            leaf = isinstance(module, nn.MultiheadAttention) or not any(module.children())
            if leaf:
                owners.setdefault(module, []).append(signals[name])
    return [signals[name] for name in names.values()], owners


def _gain(module: nn.Module, weight: Tensor) -> tuple[float, bool]:
    size = Moments.of(weight).rms
    if not isinstance(module, _MAPS):
        return size, True
    fan_in = weight[0].numel()
    if isinstance(module, TRANSPOSED):
        fan_in = weight[:, 0].numel() / module.groups / math.prod(module.stride)
    return size * math.sqrt(fan_in), False


def _first_tensor(found: object) -> Tensor | None:
    if isinstance(found, tuple | list):
        return next((part for part in map(_first_tensor, found) if part is not None), None)
    return found if isinstance(found, Tensor) else None
