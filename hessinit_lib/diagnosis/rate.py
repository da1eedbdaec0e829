"""Is a learning rate too high? Some training steps tell, on a copy of the weights."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hessinit_lib.diagnosis.noise import seed_streams
from hessinit_lib.errors import first_line
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel, one_tensor
from hessinit_lib.hessians.loss_value import evaluate

STEPS, JUDGED, HALVINGS = 20, 5, 12
"""Steps of a trial; its last losses whose median is judged; how often a high rate is halved."""

GROWTH, PEAK = 1e-3, 100.0
"""Growth of the loss over its start that makes a rate too high, at the end and on the way. In 120
trials of sound networks it names 40 of the 48 rates that learn nothing in 250 steps, and 4 others,
whose loss is then 1.28 times that of a better rate or more."""

MakeOptimizer = Callable[[Mapping[str, Tensor]], Any]  # of copies of the parameters, by name


@dataclass(frozen=True)
class Trial:
    """Some training steps on one batch.

    Attributes:
        optimizer: name of its class.
        rate: its learning rate; of several groups the largest.
        losses: before each step and after the last; no more after one that is not finite.

    Example:
        >>> trial = Trial("SGD", 0.5, (2.0, 1.5, 1.25))
        >>> print(trial, trial.falls, trial.grows)
        SGD at 0.5: loss 2 to 1.5 True False
    """

    optimizer: str
    rate: float
    losses: tuple[float, ...]

    @property
    def end(self) -> float:
        """The median of the last losses; the last one if it is not finite."""
        last = self.losses[-1]
        return median(self.losses[-JUDGED:]) if math.isfinite(last) else last

    @property
    def falls(self) -> bool:
        """Whether the loss is lower at the end, and not far higher on the way."""
        return self.end < self.losses[0] and not self.grows

    @property
    def grows(self) -> bool:
        """Whether it is higher by more than rounding, far higher on the way, or not finite."""
        start, peak = self.losses[0], max(self.losses)
        return not self.end <= start + GROWTH * abs(start) or peak > start + PEAK * abs(start)

    def __str__(self) -> str:
        start, peak = self.losses[0], max(self.losses)
        more = f", at most {peak:.3g}" if peak > max(start, self.end) else ""
        return f"{self.optimizer} at {self.rate:.3g}: loss {start:.4g} to {self.end:.4g}{more}"


class SGD:
    """Plain gradient descent: torch's own loads the compiler first, which takes seconds."""

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        self.param_groups = [{"params": parameters, "lr": lr}]

    @torch.no_grad()
    def step(self) -> None:
        """Take a step."""
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-self.param_groups[0]["lr"])


def optimizer_maker(case: Case, optimizer: object, lr: float | None) -> MakeOptimizer:
    """Give the function that makes the optimizer that is asked about; it may raise `ValueError`.

    Args:
        case: its parameters are those of the optimizer.
        optimizer: one over parameters of the model, which is left as it is; what makes one of a
            list of parameters, such as a class; the name of one of torch's; None for plain SGD.
        lr: in place of the rates of all its groups.

    Raises:
        ValueError: a rate that is not positive, no optimizer, or one over other parameters.
    """
    if lr is not None and not (isinstance(lr, Real) and 0 < lr < math.inf):
        raise ValueError(f"lr={lr!r}: expected a positive number")
    named = {name.lower(): kind for name, kind in vars(torch.optim).items() if name[0].isupper()}
    given: Any = named.get(optimizer.lower()) if isinstance(optimizer, str) else optimizer or SGD
    if not isinstance(given, Optimizer) and not callable(given):
        expected = f"expected a torch.optim.Optimizer, or of {', '.join(named)}"
        raise ValueError(f"optimizer={optimizer!r}: {expected}")
    kind, trained = getattr(given, "__name__", type(given).__name__), case.parameters
    known = {id(parameter): name for name, parameter in trained.items()}
    groups = given.param_groups if isinstance(given, Optimizer) else []
    for other in (p for group in groups for p in group["params"] if id(p) not in known):
        raise ValueError(
            f"optimizer: {kind} holds a tensor of shape {tuple(other.shape)} that is no parameter "
            "of the model: expected one over model.parameters(), as they are now"
        )

    def make(copies: Mapping[str, Tensor]) -> Any:
        try:
            made: Any
            if isinstance(given, Optimizer):
                # Its class and groups, with the copies as parameters, at its start.
                memo = {place: copies[name] for place, name in known.items()}
                made = copy.deepcopy(given, {**memo, id(given.state): defaultdict(dict)})
            else:
                listed = [copies[name] for name, p in trained.items() if p.requires_grad]
                made = SGD(listed, lr or 0.0) if given is SGD else given(listed)
            for group in made.param_groups:
                group["lr"] = lr or group["lr"]
            if not any(group["lr"] for group in made.param_groups):
                raise ValueError("its rate is 0 (of a warm-up?), expected lr= with it")
            if any(group.get("maximize") for group in made.param_groups):
                raise ValueError("it maximizes, expected one that minimizes loss_fn")
        except Exception as error:  # whatever the code of others raises
            raise ValueError(f"optimizer: {kind} cannot be tried: {first_line(error)}") from error
        return made

    return make


def try_rate(case: Case, make: MakeOptimizer, factor: float = 1.0) -> Trial:
    """Train a copy of the weights for `STEPS` steps, at that cost, with the rates times a factor.

    Noise is off, batch normalization stays in its mode, and nothing of the model changes.

    Raises:
        ValueError: the optimizer cannot be made, or takes no step.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> case = Case(layer, torch.nn.MSELoss(), torch.ones(1, 1), torch.zeros(1, 1))
        >>> [try_rate(case, optimizer_maker(case, None, lr)).grows for lr in (0.9, 1.1)]
        [False, True]
    """
    pure = PureModel(case.model, [])
    for name, parameter in case.parameters.items():
        pure.state[name] = pure.state[name].clone().requires_grad_(parameter.requires_grad)
    optimizer = make({name: pure.state[name] for name in case.parameters})
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    leaves = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    name, losses = type(optimizer).__name__, []
    held = [(module, dict(vars(module))) for module in case.model.modules()]
    try:
        with pure.running(twice=False, training=True), torch.enable_grad():
            seed_streams(case.model)
            while len(losses) <= STEPS and all(map(math.isfinite, losses[-1:])):
                try:
                    value = evaluate(case.loss_fn, one_tensor(pure(case.inputs)), case.targets)
                except ValueError:  # what is not finite may be refused
                    losses.append(math.nan)
                    break
                losses.append(value.item())
                gradients = torch.autograd.grad(value, leaves, allow_unused=True)
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf.grad = gradient
                try:
                    optimizer.step()
                except Exception as error:  # whatever the code of others raises
                    why = f"{first_line(error)}; expected one that needs no closure, such as SGD"
                    raise ValueError(f"optimizer: {name} took no step: {why}") from error
    finally:
        for module, attributes in held:  # what a call sets, such as a weight that is recomputed
            vars(module).update(attributes)
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    return Trial(name, rate, tuple(losses))


def try_halves(case: Case, make: MakeOptimizer) -> list[Trial]:
    """Try a rate, and as long as the loss grows half of it."""
    trials = [try_rate(case, make)]
    while trials[-1].grows and len(trials) <= HALVINGS:
        trials.append(try_rate(case, make, 0.5 ** len(trials)))
    return trials
