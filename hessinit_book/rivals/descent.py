"""The loss of a model as a function of its parameters, for methods that descend in their scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessinit_lib.hessians.case import check_loss, check_model
from hessinit_lib.hessians.functional import (
    calling,
    compute_dtype,
    one_tensor,
    plain_errors,
    state_of,
)
from hessinit_lib.hessians.inputs import Inputs, fresh, sample_count
from hessinit_lib.hessians.isolation import dense_gradients, random_state_kept
from hessinit_lib.hessians.loss_value import LossFn, evaluate, refuse_reach
from hessinit_lib.hessians.noise import without_noise

Batches = Iterable[tuple[Inputs, Tensor]]
"""Pairs of inputs and targets; one step for each."""


WINDOW = 10  # steps over which an objective is averaged before it is compared


class Lowest:
    """Keeps the values at which an objective was lowest, averaged over `WINDOW` steps.

    Args:
        values: by name; they are changed in place from step to step.
        patience: steps without a new lowest after which to stop; None never to.

    Example:
        >>> import torch
        >>> scale = {"s": torch.zeros(())}
        >>> best = Lowest(scale, patience=20)
        >>> found = [abs(s - 12.0) for s in range(60)]
        >>> for step in range(60):
        ...     _ = scale["s"].fill_(step)
        ...     if best.seen(found[: step + 1]):
        ...         break
        >>> step, best.values["s"].item()
        (36, 16.0)
    """

    def __init__(self, values: Mapping[str, Tensor], patience: int | None) -> None:
        self._now, self._patience = values, patience
        self._least, self._since = math.inf, 0
        self.values = self._copy()

    def seen(self, objective: Sequence[float]) -> bool:
        """Look at the objective of all steps so far; say whether to stop."""
        mean = sum(objective[-WINDOW:]) / len(objective[-WINDOW:])
        if not math.isfinite(mean):
            return True
        self._since += 1
        if mean < self._least:
            self._least, self._since = mean, 0
            self.values = self._copy()
        return self._patience is not None and self._since >= self._patience

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._now.items()}


class ParameterLoss:
    """The loss of a model at parameters of one's choice; the model itself is left alone.

    Args:
        model: any module; dropout is left out.
        loss_fn: function of (outputs, targets).

    Attributes:
        start: the trainable parameters by name, detached, in float32 or float64.

    Example:
        >>> import torch
        >>> loss = ParameterLoss(nn.Linear(2, 1, bias=False), nn.MSELoss())
        >>> loss({"weight": torch.zeros(1, 2)}, torch.ones(3, 2), torch.ones(3, 1)).item()
        1.0
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        check_model(model)
        check_loss(loss_fn)
        self._model, self._loss_fn = model, loss_fn
        self._parameters = dict(model.named_parameters())
        self._call = calling(model)
        self._dtype = compute_dtype(model)
        state = state_of(model, self._dtype)
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        if not trained:
            raise ValueError("model: no parameter requires a gradient; expected one at least")
        self.start = {name: state.pop(name) for name in trained}
        self._rest = {name: value.clone() for name, value in state.items()}

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Inputs, targets: Tensor) -> Tensor:
        """Compute the loss of a batch, differentiable more than once."""
        sample_count(inputs)
        arguments, keywords = fresh(inputs, self._dtype)
        state = {**self._rest, **parameters}
        with ExitStack() as stack:
            stack.enter_context(without_noise(self._model, inputs))
            stack.enter_context(random_state_kept(self._model.parameters()))
            stack.enter_context(dense_gradients(self._model.modules()))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            with plain_errors(inputs):
                outputs = self._call(state, arguments, keywords)
            graph = any(value.requires_grad for value in parameters.values())
            value = evaluate(self._loss_fn, one_tensor(outputs, graph=graph), targets)
        refuse_reach(self._loss_fn, value, self._parameters)
        return value
