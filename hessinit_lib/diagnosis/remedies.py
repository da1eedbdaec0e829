"""What would mend a network: each change is tried on a copy before it is advised."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hessinit_lib.diagnosis.causes import REDRAWN, Cause, causes
from hessinit_lib.diagnosis.recurrent import open_gates, orthogonal_blocks
from hessinit_lib.diagnosis.report import Fault
from hessinit_lib.diagnosis.rules import REMEMBERED, Sizes, judge_all
from hessinit_lib.diagnosis.signals import Pass, observe
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.inputs import Inputs, mapped
from hessinit_lib.init import apply, looks_linear_

Change = Callable[[nn.Module], object]

# By a network that cannot be copied, or not treated so.
_REFUSALS = (RuntimeError, ValueError, AttributeError, TypeError)

_UNTRIED = {
    "nonfinite": "look for what is not finite in inputs, weights and targets, and for roots, "
    "logarithms and quotients of zero",
    "targets": "normalize the targets",
    "softmax": "give the logits to the loss",
    "noise": "divide its output by the share that it keeps",
    "detached": "use its output; look for detach(), no_grad(), numbers taken out of tensors",
    "unregistered": "put modules into nn.ModuleList, tensors into nn.Parameter",
    "unused": "use its output, or leave it out (requires_grad_(False) says that it is meant)",
    "inputs": "look at how the inputs are read",
    "outputs": "look for what is constant or large on the way",
    "recurrent": "read the outputs of more steps, take fewer steps, or use an LSTM or a GRU",
    "scale": "scale it to a gain of about 1, as torch.nn.init.xavier_uniform_ does",
    "symmetric": "draw its weights at random",
    "dead": "draw the weights and biases before it anew",
    "saturated": "draw the weights and biases before it anew",
    "residual": "scale the ends of the branches down",
    "depth": "no start that was tried mends it; put normalization or residual sums between",
}


def advised(case: Case, found: Pass, wrong: Sequence[Cause]) -> tuple[list[Fault], str]:
    """Add to each cause what mends it, and name the scheme that mends those of the weights.

    Args:
        case: a model, which is left as it is, its loss and a batch.
        found: what a pass through it showed.
        wrong: the causes that were found in it.

    Returns:
        The faults, and a scheme of `hessinit_lib.init.apply`, `"looks_linear_"`, or "" where no
        weight has to be drawn or neither works.

    Example:
        >>> layers = [layer for _ in range(60) for layer in (nn.Linear(8, 8), nn.GELU())]
        >>> model = nn.Sequential(*layers, nn.Linear(8, 2))
        >>> case = Case(model, nn.CrossEntropyLoss(), torch.randn(16, 8), torch.arange(16) % 2)
        >>> found = observe(case)
        >>> faults, scheme = advised(case, found, causes(found, judge_all(found), {}))
        >>> scheme, faults[0].tried
        ('looks_linear_', True)
    """
    trials = _Trials(case, {cause.kind for cause in wrong if cause.kind != "noise"})
    scheme, words = _for_weights(trials, found, [c for c in wrong if c.kind in REDRAWN])
    faults = []
    for cause in wrong:
        redrawn = cause.kind in REDRAWN
        remedy = words.get(cause.where, "") if redrawn else _for(trials, cause, found)
        said = remedy or cause.remedy or _UNTRIED[cause.kind]
        if cause.kind == "residual":
            ends = f"scale the ends of the branches by 1/sqrt({len(found.sums)})"
            said = f"{remedy}, or {ends}" if remedy else ends
        faults.append(Fault(*cause[:4], said, bool(remedy)))
    return faults, scheme


@dataclass(frozen=True)
class _Trials:
    """Changes that are tried on copies of a model.

    Attributes:
        case: a model, its loss and a batch.
        wrong: kinds of causes that were found.
    """

    case: Case
    wrong: set[str]

    def mends(self, kinds: Sequence[str], change: Change, inputs: Inputs | None = None) -> bool:
        """Tell whether a change leaves nothing of these kinds, and brings nothing new."""
        inputs = self.case.inputs if inputs is None else inputs
        try:
            found = observe(self.case._replace(model=self._changed(change), inputs=inputs))
        except _REFUSALS:
            return False
        after = {cause.kind for cause in causes(found, judge_all(found), {})}
        return not after - (self.wrong - {*kinds})

    def bears(self, change: Change) -> bool:
        """Tell whether a change can be made."""
        try:
            self._changed(change)
        except _REFUSALS:
            return False
        return True

    def _changed(self, change: Change) -> nn.Module:
        model = _copy(self.case.model)
        with torch.no_grad():
            change(model)
        return model


def fitting_scheme(found: Pass) -> str:
    """Name the scheme that fits the activations: He's for ReLU and the like, else LeCun's."""
    kinds = [signal.activation.kind for signal in found.signals if signal.activation is not None]
    bounded = sum(kind in ("tanh", "sigmoid") for kind in kinds)
    return "he" if kinds and 2 * bounded < len(kinds) else "lecun"


def _for_weights(
    trials: _Trials, found: Pass, wrong: Sequence[Cause]
) -> tuple[str, dict[str, str]]:
    """Find the smallest change of weights that mends all that is wrong with them.

    The layers at fault are drawn anew by the usual scheme, then only scaled, then all layers
    are drawn; last comes `looks_linear_`: in deep networks of narrow layers or smooth activations,
    only that may keep the signals.

    Returns:
        The scheme, and the remedy in words for each place of a cause; empty if none was found.
    """
    if not wrong:
        return "", {}
    words = {
        cause.where: "set it to zero" if "bias" in cause.where else "start it at 1"
        for cause in wrong
        if cause.where in found.vectors
    }
    if len(words) == len(wrong) and trials.mends(REDRAWN, partial(_reset, names=words)):
        return "", words
    usual = fitting_scheme(found)
    places = [cause.where for cause in wrong]

    owners = {where: where.rpartition(".")[0] for where in places}
    draw_all = partial(_drawn, owners=("",), scheme=usual)
    if all(places) and trials.mends(REDRAWN, partial(_drawn, owners=owners.values(), scheme=usual)):
        # The scheme sets the bias to zero, too.
        if trials.bears(draw_all):
            return usual, dict.fromkeys(places, f"draw its weights by {usual!r}")
        call = "draw its weights by hessinit_lib.init.apply(model.get_submodule({!r}), {!r})"
        return "", {where: call.format(owner, usual) for where, owner in owners.items()}
    zeros = [name for name in found.waiting if not name.endswith("bias")]
    if zeros and trials.mends(REDRAWN, lambda model: _filled(model, zeros)):
        which = zeros[0] if len(zeros) == 1 else f"all {len(zeros)} scales of zero"
        return "", dict.fromkeys(places, f"start {which} at 1")
    if all(cause.kind in ("scale", "saturated") for cause in wrong):
        middle = Sizes.of(found).gain
        usual_gain = min(max(middle, 0.5), 1.5) if middle > 0 else 1.0
        for gain in (usual_gain, usual_gain / 4):
            factors = {_length(s.name): gain / s.gain for s in found.signals if s.name in places}
            if trials.mends(REDRAWN, partial(_scaled, factors=factors)):
                by = {name: (_length(name), factors[_length(name)]) for name in places}
                return "", {
                    name: f"multiply {n} by {factor:.2g}" for name, (n, factor) in by.items()
                }
    if trials.mends(REDRAWN, draw_all):
        return usual, dict.fromkeys(places, f"draw all weights by {usual!r}")
    inputs = trials.case.inputs
    if trials.mends(REDRAWN, lambda model: looks_linear_(model, inputs, generator=_seeded())):
        words = "initialize the network by hessinit_lib.init.looks_linear_"
        return "looks_linear_", dict.fromkeys(places, words)
    return "", {}


def _for(trials: _Trials, cause: Cause, found: Pass) -> str:
    """Give in words what mends a cause that no scheme does, if that can be tried."""
    kind, where, mended = cause.kind, cause.where, (cause.kind,)
    if kind == "inputs" and not found.batch.alike:
        inputs = mapped(trials.case.inputs, _normalized)
        if trials.mends(mended, lambda _: None, inputs):
            return "normalize the inputs to mean 0 and deviation 1"
    elif kind == "recurrent":
        if trials.mends(mended, lambda model: orthogonal_blocks(model.get_parameter(where))):
            return "draw it by torch.nn.init.orthogonal_"
    elif kind == "outputs" and where in found.waiting:
        if trials.mends(mended, lambda model: _filled(model, [where])):
            return f"start {where} at 1"
        usual = fitting_scheme(found)
        owners = (where.rpartition(".")[0],)
        if trials.mends(mended, partial(_drawn, owners=owners, scheme=usual)):
            return f"draw its weights by {usual!r}"
    elif kind == "outputs" and where:
        for words, change in _smaller(where):
            if trials.mends(mended, change):
                return words
    return ""


def forgetting(case: Case, found: Pass) -> list[str]:
    """Say which layers with gates get next to no gradient at their first steps: no fault.

    They learn what is to be remembered for a shorter time, and more where the gates start open.
    """
    notes = []
    for signal in [s for s in found.signals if s.gated and s.over_time < REMEMBERED]:
        name, first = signal.name, f"the gradient at the first of {signal.steps} steps is"
        said = f"{name}: {first} {signal.over_time:.0e} times the last's, too little to learn from"
        with contextlib.suppress(*_REFUSALS):
            tried = _copy(case.model)
            open_gates(tried.get_submodule(name.rpartition(".")[0]))
            (after,) = (s for s in observe(case._replace(model=tried)).signals if s.name == name)
            words = "with open gates (a bias of 1) and orthogonal recurrent weights"
            if after.over_time > 10 * signal.over_time:
                said += f"; {words} {after.over_time:.0e} (tried)"
        notes.append(said)
    return notes


def _smaller(where: str) -> Iterator[tuple[str, Change]]:
    bias = where.removesuffix("weight") + "bias"
    yield "set its bias to zero", lambda model: model.get_parameter(bias).zero_()
    for factor in (0.1, 0.01, 0.001):
        factors = dict.fromkeys((_length(where), bias), factor)
        yield f"multiply its weight and bias by {factor}", partial(_scaled, factors=factors)


def _length(name: str) -> str:
    """Name the parameter that scales a weight: another one if it is normalized before its use."""
    return name.replace("original1", "original0").replace("weight_v", "weight_g")


def _drawn(model: nn.Module, owners: Iterable[str], scheme: str) -> None:
    for owner in owners:
        apply(model.get_submodule(owner), scheme, generator=_seeded())


def _scaled(model: nn.Module, factors: dict[str, float]) -> None:
    for name, value in model.named_parameters():
        value.mul_(factors.get(name, 1.0))


def _reset(model: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        model.get_parameter(name).fill_(0.0 if "bias" in name else 1.0)


def _filled(model: nn.Module, scales: Sequence[str]) -> None:
    for name, value in model.named_parameters():
        if name in scales and value.numel() == max(value.shape, default=1):
            value.fill_(1)


def _copy(model: nn.Module) -> nn.Module:
    """Copy a model, also one that holds weights which autograd computed from others."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def _normalized(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    axes = 0 if x.ndim == 2 and len(x) > 1 else tuple(range(x.ndim))
    return (x - x.mean(axes)) / x.std(axes).clamp_min(torch.finfo(x.dtype).tiny)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
