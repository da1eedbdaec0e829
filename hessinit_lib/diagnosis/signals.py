r"""One forward and one backward pass: inputs, outputs and gradients of every layer.

For a layer $a = W z + b$ these are the moments of z, of $\nabla_a L$ and of $\nabla_W L$.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.utils.hooks import RemovableHandle

from hessinit_lib.diagnosis.batch import Batch, is_constant
from hessinit_lib.diagnosis.events import Activation, Events
from hessinit_lib.diagnosis.moments import Moments
from hessinit_lib.diagnosis.recurrent import GATED, over_time, watch_inputs
from hessinit_lib.diagnosis.wiring import (
    dropped_last,
    heads_of,
    heavy_dropout,
    is_crossed,
    large_vectors,
    unregistered_leaves,
)
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel, by_batch_statistics, one_tensor
from hessinit_lib.hessians.graph.nodes import check_leaves
from hessinit_lib.hessians.kinds import CONVOLUTIONS, TRANSPOSED, owned_parameters
from hessinit_lib.hessians.loss_value import differentiable

_SMALL_SCALE = 0.01  # of branches, at most: layer scale starts at 1e-6 to 0.1

_ROUNDING = 1e-5  # of the largest gradient

_RECOMPUTED = ("weight_g", "weight_v", "weight_orig")  # by torch's older functions

_MAPS = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, *CONVOLUTIONS, *TRANSPOSED)


class Span(NamedTuple):
    """When a module runs: calls of layers before it starts, and before it has ended."""

    start: int = 0
    end: int = sys.maxsize


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
        free: whether its size says nothing by itself: a scale of a branch, a weight that is
            normalized before its use (where its layer has the normalized one, see `gain`).
        recomputed: whether its layer computes from it the weight that it uses.
        same: whether all its units have the same weights and the same gradients.
        reached: whether the loss has a gradient in it.
        called: whether its layer was called, also where autograd does not follow.
        steps: of a recurrent layer that get a gradient; see `over_time`.
        over_time: the gradient at the first of them over that at the last.
        gated: whether the layer has gates.
        order: place in the forward pass; None if the layer was not called.
        inputs: moments of its inputs, if those were floating-point numbers.
        outputs: moments of its outputs, before the activation.
        output_gradients: moments of the gradient of the loss there.
        gradient: moments of the gradient in the weight.
        head: whether what it gives reaches the outputs through no other layer.
        activation: what followed it.
        attention: share of the rows of attention that followed, or are in it, that look at
            one position only.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    table: bool
    gain: float
    free: bool = False
    recomputed: bool = False
    same: bool = False
    reached: bool = False
    called: bool = False
    steps: int = 1
    over_time: float = 1.0
    gated: bool = False
    order: int | None = None
    inputs: Moments = field(default_factory=Moments)
    outputs: Moments = field(default_factory=Moments)
    output_gradients: Moments = field(default_factory=Moments)
    gradient: Moments = field(default_factory=Moments)
    head: bool = False
    activation: Activation | None = None
    attention: float = 0.0


@dataclass(frozen=True)
class Pass:
    """All that one forward and backward pass shows.

    Attributes:
        signals: of every weight, in model order.
        loss: the loss of the batch.
        outputs: moments of the model's outputs.
        output_axes: their number of axes, the batch included.
        sums: see `Events`.
        waiting: weights and scales, of any shape, that are zero throughout or nearly so, and
            when their modules run.
        gradients: of the trainable weights, by name.
        vectors: sizes of biases that exceed what they are added to, and of the scales of
            normalizations, where they are large.
        normalized: when batch normalization that uses the batch's statistics runs.
        unregistered: shapes of tensors that would be trained, but are no parameters.
        crossed: recurrent layers and attention that take the axis of the samples for time.
        dropped: modules of dropout that leave next to nothing, and their probabilities.
        dropped_last: modules of dropout whose outputs are the model's.
        batch: what inputs, targets, outputs and the loss show.
    """

    signals: list[Signal]
    loss: float
    outputs: Moments
    output_axes: int
    sums: list[tuple[float, float]]
    waiting: dict[str, Span]
    gradients: dict[str, Tensor]
    vectors: dict[str, float]
    normalized: list[Span]
    unregistered: list[tuple[int, ...]] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    dropped: dict[str, float] = field(default_factory=dict)
    dropped_last: list[str] = field(default_factory=list)
    batch: Batch = field(default_factory=Batch)


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
    spans: dict[nn.Module, Span] = {}
    inputs: dict[nn.Module, Tensor] = {}
    dropped: dict[nn.Module, object] = {}
    crossed: list[str] = []
    last_axis = -1

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        nonlocal last_axis
        found = _first_tensor(output)
        for signal in owners[module]:
            signal.called = True
            _use(signal, module)
        if found is None or not found.requires_grad:
            return
        last_axis = 1 if isinstance(module, CONVOLUTIONS + TRANSPOSED) else -1
        given = _first_tensor(args) if args else _first_tensor(tuple(kwargs.values()))
        if is_crossed(module, given, case):
            crossed.append(owners[module][0].name)
        for signal in owners[module]:
            if signal.order is None:  # of a layer that is called again, the first call
                signal.order = len(calls)
                signal.outputs = Moments.of(found)
                if given is not None and given.is_floating_point():
                    signal.inputs = Moments.of(given)
                    _map(signal, given, found)
        calls.append((module, found))

    handles: list[RemovableHandle] = [
        module.register_forward_hook(hook, with_kwargs=True) for module in owners
    ]
    handles += _timed(model, spans, calls) + watch_inputs(model, inputs)
    handles += dropped_last(model, dropped)
    events = Events(lambda: (len(calls) - 1, last_axis))
    try:
        with pure.running(), torch.enable_grad():
            with events:
                outputs = pure(case.inputs)
            outputs = one_tensor(outputs)
            heads = heads_of(outputs, [output for _, output in calls])
            unregistered = unregistered_leaves(outputs, pure.state, case.samples)
            check_leaves(outputs, case.parameters)
            loss = differentiable(case.loss_fn, outputs, case.targets, case.parameters)
    finally:
        for handle in handles:
            handle.remove()
    weights = [pure.state[signal.name] for signal in signals]
    find = partial(torch.autograd.grad, loss, allow_unused=True)
    gradients = find([*weights, *(output for _, output in calls), *inputs.values()])
    for signal, gradient in zip(signals, gradients, strict=False):
        signal.reached = gradient is not None
        if signal.trainable:
            signal.gradient = Moments.of(gradient)
        if signal.order is not None:
            signal.output_gradients = Moments.of(gradients[len(signals) + signal.order])
            signal.head = signal.order in heads
            signal.activation = events.activations.get(signal.order)
            if not signal.name.endswith("out_proj.weight"):
                signal.attention = events.attention.get(signal.order, 0.0)
    _compare_units(pure, signals, gradients)
    called = [module for module, _ in calls]
    ends = len(weights), len(weights) + len(calls)
    _time_cells(owners, [*zip(called, gradients[ends[0] : ends[1]], strict=True)])
    for module, gradient in zip(inputs, gradients[ends[1] :], strict=True):
        _time(owners, module, [gradient])
    return Pass(
        signals,
        loss.item(),
        Moments.of(outputs),
        outputs.ndim,
        events.sums,
        {
            name: spans.get(module, Span())
            for name, module, _ in owned_parameters(model.named_modules())
            if name in pure.state and _waits(name, pure.state[name].detach())
        },
        {
            signal.name: torch.zeros_like(weight) if gradient is None else gradient
            for signal, weight, gradient in zip(signals, weights, gradients, strict=False)
            if signal.trainable
        },
        large_vectors(model, pure.state, owners),
        [spans[module] for module in by_batch_statistics(model.modules()) if module in spans],
        unregistered,
        crossed,
        heavy_dropout(model),
        [name for name, m in model.named_modules() if m in dropped and dropped[m] is outputs],
        Batch.of(case, outputs),
    )


Owners = Mapping[nn.Module, Sequence[Signal]]


def _time_cells(owners: Owners, calls: Sequence[tuple[nn.Module, Tensor | None]]) -> None:
    """Judge cells over time by their outputs; they conduct as well as the best step does."""
    for cell in {module: None for module, _ in calls if isinstance(module, nn.RNNCellBase)}:
        by_step = [gradient for module, gradient in calls if module is cell]
        _time(owners, cell, by_step)
        found = [Moments.of(gradient) for gradient in by_step if gradient is not None]
        for signal in owners[cell]:
            signal.output_gradients = max(
                found, key=lambda moments: moments.norm, default=Moments()
            )


def _time(owners: Owners, module: nn.Module, gradients: Sequence[Tensor | None]) -> None:
    for signal in [s for s in owners.get(module, ()) if "weight_hh" in s.name][:1]:
        signal.steps, signal.over_time = over_time(module, gradients)
        signal.gated = isinstance(module, GATED)


def _compare_units(
    pure: PureModel, signals: list[Signal], gradients: Sequence[Tensor | None]
) -> None:
    """Note where all units of a layer have the same weights, and gradients up to rounding."""
    norms = [0.0 if g is None else g.norm().item() for g in gradients[: len(signals)]]
    weights = [pure.state[signal.name].detach() for signal in signals]
    # Of weights that are zero, some move first, and the others after them.
    moves = any(norm > 0 and not w.any() for norm, w in zip(norms, weights, strict=True))
    for signal, weight, gradient, norm in zip(signals, weights, gradients, norms, strict=False):
        if gradient is None or signal.table or min(weight.shape[:2]) < 2 or not is_constant(weight):
            continue
        if norm == 0 and not weight.any():
            signal.same = not moves
        else:
            signal.same = norm < _ROUNDING * max(norms) or is_constant(gradient, rtol=1e-4)


def _timed(
    model: nn.Module, spans: dict[nn.Module, Span], calls: Sequence[object]
) -> list[RemovableHandle]:
    """Note when modules with parameters of their own, and batch normalization, run."""

    def before(module: nn.Module, _: object) -> None:
        spans.setdefault(module, Span(len(calls)))

    def after(module: nn.Module, _: object, __: object) -> None:
        spans[module] = Span(spans[module].start, len(calls))

    return [
        handle
        for module in model.modules()
        if module._parameters or isinstance(module, _BatchNorm)
        for handle in (
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        )
    ]


def _map(signal: Signal, given: Tensor, output: Tensor) -> None:
    """Take a matrix for a map if its shape is that of a module's inputs and outputs."""
    features = given.shape[-1:] + output.shape[-1:]
    if signal.table and features in (signal.shape, signal.shape[::-1]) and 1 not in features:
        signal.gain, signal.table = signal.gain * math.sqrt(features[0]), False


def _use(signal: Signal, module: nn.Module) -> None:
    """Judge a weight that is computed from parameters by what it is when it is used."""
    used = getattr(module, "weight", None)
    if not signal.recomputed or not isinstance(used, Tensor):
        return
    if used.numel() == math.prod(signal.shape):
        signal.gain, signal.table = _gain(module, used)
        signal.free = False


def _weights(model: nn.Module) -> tuple[list[Signal], dict[nn.Module, list[Signal]]]:
    """List the weights in model order, and by the modules that own them.

    A module with modules in it is no layer: of a table that is a parameter of the whole model
    (positions, say) only the entries are looked at.
    """
    names = {value: name for name, value in model.named_parameters() if value.ndim > 1}
    signals: dict[str, Signal] = {}
    owners: dict[nn.Module, list[Signal]] = {}
    # Whose weights are read by the module above, and not by a call of their own.
    readers: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            readers.update(dict.fromkeys(module.parametrizations.values(), module))
        if isinstance(module, nn.MultiheadAttention):
            readers[module.out_proj] = module
    for part in model.modules():
        module = readers.get(part, part)
        for weight in part._parameters.values():
            if weight is None or weight not in names:
                continue
            name = names[weight]
            if name not in signals:
                gain, table = _gain(module, weight)
                shape = tuple(weight.shape)
                recomputed = isinstance(part, ParametrizationList) or name.endswith(_RECOMPUTED)
                free = recomputed or (table and weight.numel() == max(shape))
                signals[name] = Signal(
                    name, shape, weight.requires_grad, table, gain, free, recomputed
                )
            leaf = isinstance(module, nn.MultiheadAttention) or part is not module
            leaf = leaf or not any(module.children())
            if leaf:
                owners.setdefault(module, []).append(signals[name])
    return [signals[name] for name in names.values()], owners


def _waits(name: str, value: Tensor) -> bool:
    """Tell whether a weight is zero, or a scale of a branch nearly so: what is below it waits."""
    if name.endswith("bias"):
        return False
    if value.ndim and value.numel() == max(value.shape) and value.numel() > 1:
        return bool(value.abs().max() < _SMALL_SCALE)
    return name.endswith("weight") and not value.any()


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
