"""What inputs, targets, outputs and the loss show of themselves, whatever the layers do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hessinit_lib.diagnosis.moments import Moments
from hessinit_lib.diagnosis.wiring import bounds_of
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.inputs import tensors_of
from hessinit_lib.hessians.loss_value import evaluate

_ZEROS = 0.4  # share of outputs from which on a ReLU gave them
_FEWEST = 8  # samples of one class that are no chance


@dataclass(frozen=True)
class Batch:
    """A batch and its outputs.

    Attributes:
        targets: moments of floating-point targets that have the outputs' shape.
        largest_input: the largest absolute value; NaN where there are no floating-point inputs.
        one_class: whether all targets are the same class.
        alike: whether all samples of the inputs are the same.
        constant: whether the outputs are, though the samples are not.
        feature: of inputs of shape (B, features), the index of the largest feature.
        feature_rms: its root mean square; NaN for other inputs.
        usual_rms: the median of the features' root mean squares.
        zero_loss: the loss of outputs that are all zero; NaN if it takes no such ones.
        quadratic: whether the loss grows with the square of the outputs, and not like them.
        applied: what the outputs went through that the loss applies, or undoes, once more:
            "softmax", "sigmoid" or "".
        rectified: share of outputs that are zero, of such as a ReLU gives to a loss that takes
            the softmax of them; else 0.
        bounded: whether the outputs are from 0 to 1, and the loss takes the softmax of them.
        bounds: of the function that the outputs went through last.
        beyond: share of the targets that lie beyond these bounds.
    """

    targets: Moments = field(default_factory=Moments)
    largest_input: float = math.nan
    one_class: bool = False
    alike: bool = False
    constant: bool = False
    feature: int = 0
    feature_rms: float = math.nan
    usual_rms: float = math.nan
    zero_loss: float = math.nan
    quadratic: bool = False
    applied: str = ""
    rectified: float = 0.0
    bounded: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    beyond: float = 0.0

    @classmethod
    def of(cls, case: Case, outputs: Tensor) -> Batch:
        """Look at a batch and the outputs of a model on it.

        Example:
            >>> x, y = torch.eye(2), torch.tensor([0, 1])
            >>> case = Case(torch.nn.Softmax(-1), torch.nn.CrossEntropyLoss(), x, y)
            >>> Batch.of(case, case.model(x)).applied
            'softmax'
        """
        targets, several = case.targets, case.samples > 1
        (least, most), outputs = bounds_of(outputs), outputs.detach()
        same_shape = targets.is_floating_point() and targets.shape == outputs.shape
        tensors = tensors_of(case.inputs)
        numbers = [x.detach() for x in tensors if x.is_floating_point() and x.numel()]
        alike = several and all(map(is_constant, tensors))
        feature, largest, usual = _features(case)
        loss, doubled = _loss(case, outputs), _loss(case, 2 * outputs)
        zero_loss = _loss(case, torch.zeros_like(outputs))
        # A softmax takes no notice of what is added to all logits of a sample.
        several_logits = outputs.ndim > 1 and outputs.shape[1] > 1
        shifted = _loss(case, outputs + 1) if several_logits else math.nan
        invariant = math.isclose(shifted, loss, rel_tol=1e-4)
        # A likelihood that falls along a line takes probabilities for their logarithms.
        linear = math.isclose(doubled - loss, loss - zero_loss, rel_tol=1e-3) and loss < zero_loss
        zeros, bounded = Moments.of(outputs).zeros, _in_unit_interval(outputs)
        applied = ""
        if bounded and several_logits and _sum_to_one(outputs):
            likelihood = linear and _are_classes(targets, outputs)
            applied = "softmax" if invariant or likelihood else ""
        if bounded and not applied and same_shape and _is_sigmoid(case, outputs):
            applied = "sigmoid"
        classes = not targets.is_floating_point() and case.samples >= _FEWEST
        return cls(
            Moments.of(targets if same_shape else None),
            max((x.abs().max().item() for x in numbers), default=math.nan),
            classes and several_logits and is_constant(targets),
            alike,
            several and not alike and is_constant(outputs),
            feature,
            largest,
            usual,
            zero_loss,
            doubled > 3 * loss,
            applied,
            zeros if outputs.min() >= 0 and _ZEROS < zeros < 1 and invariant else 0.0,
            bounded and invariant,
            (least, most),
            ((targets < least) | (targets > most)).double().mean().item() if same_shape else 0.0,
        )


def is_constant(values: Tensor, rtol: float = 1e-6) -> bool:
    """Tell whether all rows are the same, up to rounding.

    Example:
        >>> is_constant(torch.ones(3, 2)), is_constant(torch.eye(2))
        (True, False)
    """
    if values.is_nested:
        return False
    first = values[:1].expand_as(values)
    if not values.is_floating_point():
        return torch.equal(values, first)
    if not values.numel() or not torch.isfinite(values[:2]).all():
        return False
    # Rows that differ mostly do so from the second on; if none does, the first is as large as all.
    allowed = rtol * values[0].abs().max().item()
    near = partial(torch.allclose, rtol=0.0, atol=allowed)
    return near(values[:2], first[:2]) and near(values, first)


def _features(case: Case) -> tuple[int, float, float]:
    tensors = tensors_of(case.inputs)
    if len(tensors) != 1 or tensors[0].is_nested:
        return 0, math.nan, math.nan
    x = tensors[0].detach()
    if x.ndim != 2 or not x.is_floating_point() or x.shape[1] < 2:
        return 0, math.nan, math.nan
    sizes = x.double().square().mean(0).sqrt()
    largest = int(sizes.argmax())
    return largest, sizes[largest].item(), sizes.median().item()


def _loss(case: Case, outputs: Tensor) -> float:
    try:
        return evaluate(case.loss_fn, outputs, case.targets).item()
    except (ValueError, NotImplementedError):
        return math.nan


def _is_sigmoid(case: Case, outputs: Tensor) -> bool:
    """Tell whether the loss is the binary cross-entropy of logits, at two places."""
    targets = case.targets
    if not (targets >= 0).all() or not (targets <= 1).all():
        return False
    elsewhere = 3 * outputs - 1  # not probabilities, where most other losses are not the same
    return all(
        math.isclose(
            _loss(case, z), F.binary_cross_entropy_with_logits(z, targets).item(), rel_tol=1e-4
        )
        for z in (outputs, elsewhere)
    )


def _in_unit_interval(outputs: Tensor) -> bool:
    if not outputs.numel() or not torch.isfinite(outputs).all():
        return False
    return bool(outputs.min() >= 0) and bool(outputs.max() <= 1)


def _sum_to_one(values: Tensor) -> bool:
    sums = values.double().sum(1)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def _are_classes(targets: Tensor, outputs: Tensor) -> bool:
    if not targets.is_floating_point():
        return True
    if targets.shape != outputs.shape or (targets < 0).any():
        return False
    return _sum_to_one(targets)
