"""What a Hessian is of: a model, a loss and a batch, checked once where a computation starts."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Collection
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hessinit_lib.hessians.functional import PureModel, one_tensor, unwrapped
from hessinit_lib.hessians.inputs import Inputs, sample_count, tensors_of
from hessinit_lib.hessians.loss_value import LossFn, evaluate


class Case(NamedTuple):
    """A model, a loss and a batch.

    Attributes:
        model: any module, not compiled or wrapped for parallel training.
        loss_fn: function of (outputs, targets) that gives one number.
        inputs: what the model takes, see `hessinit_lib.hessians.inputs`: shape (B, ...).
        targets: shape (B, ...), what the loss takes.
        chosen: names of the parameters that have a Hessian block; those that require a gradient
            and have two or more axes if None.
    """

    model: nn.Module
    loss_fn: LossFn
    inputs: Inputs
    targets: Tensor
    chosen: tuple[str, ...] | None = None

    @classmethod
    def checked(
        cls,
        model: nn.Module,
        loss_fn: LossFn,
        inputs: Inputs,
        targets: Tensor,
        *,
        paired: bool = True,
        layers: str | Collection[str] | None = None,
        exclude: str | Collection[str] = (),
    ) -> Case:
        """Make a case; the model may be compiled, or wrapped for parallel training.

        Unless `paired`, targets may be as many as the loss likes: one for each token, say. For
        `layers` and `exclude` see `layer_hessians`.

        Raises:
            ValueError: something that is not what its name says, an empty batch, as many
                inputs as targets are not there, no weight to take derivatives in, or tensors on
                different devices; the message says what was given.
            NotImplementedError: complex or sharded weights.

        Example:
            >>> Case.checked(nn.Linear(3, 2), nn.MSELoss(), Tensor(4, 3), Tensor(5, 2))
            Traceback (most recent call last):
            ValueError: 4 inputs and 5 targets: expected as many, samples in the first axis of both
        """
        check_kinds(model, loss_fn, targets)
        samples = sample_count(inputs)
        if paired and (targets.ndim == 0 or samples != len(targets)):
            shown = len(targets) if targets.ndim else "one number as"
            raise ValueError(
                f"{samples} inputs and {shown} targets: expected as many, samples in the first "
                "axis of both"
            )
        if samples == 0:
            raise ValueError("an empty batch has no mean loss: expected at least one sample")
        case = cls(unwrapped(model), loss_fn, inputs, targets)
        if layers is not None or exclude:
            case = case._replace(chosen=_chosen(case.model, [*case.weights], layers, exclude))
        if not case.weights:
            raise ValueError(
                "model: no weight of two or more axes requires a gradient; expected one at least"
            )
        for name, weight in case.weights.items():
            if not weight.numel():
                raise ValueError(
                    f"{name}: no entries, shape {tuple(weight.shape)}; expected some in each layer"
                )
        parts = {**dict(case.model.named_parameters()), "targets": targets}
        parts.update((f"inputs {place}", x) for place, x in enumerate(tensors_of(inputs)))
        _check_devices(parts)
        return case

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that have a Hessian block, by name; a tied one by its first name."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.chosen is not None:
            return {name: trained[name] for name in self.chosen}
        return {name: p for name, p in trained.items() if p.ndim > 1}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the model, by name."""
        return dict(self.model.named_parameters())

    @property
    def samples(self) -> int:
        """B, how many samples the batch has."""
        return len(self.targets)


def _chosen(
    model: nn.Module,
    default: list[str],
    layers: str | Collection[str] | None,
    exclude: str | Collection[str],
) -> tuple[str, ...]:
    """Give the names that patterns choose, in the order of the model."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]

    def matching(option: str, patterns: str | Collection[str]) -> set[str]:
        found: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            names = fnmatch.filter(trained, str(pattern))
            if not names:
                raise ValueError(
                    f"{option}: {pattern!r} matches no trainable parameter; expected some of "
                    f"{shorten(', '.join(trained), 200)}"
                )
            found.update(names)
        return found

    wanted = set(default) if layers is None else matching("layers", layers)
    names = wanted - matching("exclude", exclude)
    if not names:
        raise ValueError(f"layers={layers!r} and exclude={exclude!r} leave no parameter")
    return tuple(name for name in trained if name in names)


def what_is_not_finite(case: Case) -> str:
    """Say what it may be that makes the loss of a case, or its gradient, not finite.

    Example:
        >>> x = torch.full((1, 1), torch.inf)
        >>> what_is_not_finite(Case(nn.Linear(1, 1), nn.MSELoss(), x, torch.ones(1)))
        'not all inputs are finite'
        >>> none = torch.tensor([-100])
        >>> what_is_not_finite(Case(nn.Linear(1, 1), nn.CrossEntropyLoss(), torch.ones(1, 1), none))
        'the loss is nan: each target is the ignore_index, -100'
    """
    named = {**case.parameters, **dict(case.model.named_buffers())}
    parts = [("inputs", x) for x in tensors_of(case.inputs)] + [("targets", case.targets)]
    for name, tensor in [*parts, *named.items()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            where = name if name in ("inputs", "targets") else f"entries of {name}"
            return f"not all {where} are finite"
    pure = PureModel(case.model, [])
    with warnings.catch_warnings(), pure.running(), torch.enable_grad():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            outputs = one_tensor(pure(case.inputs))
        loss = evaluate(case.loss_fn, outputs.requires_grad_(), case.targets)
    if not torch.isfinite(outputs).all():
        return "not all outputs are finite, though weights and batch are: activations overflow"
    if torch.isfinite(loss):
        (gradient,) = torch.autograd.grad(loss, outputs, materialize_grads=True)
        if torch.isfinite(gradient).all():
            return "derivatives of the model are not: a root, norm or quotient of zero in it"
        return "the gradient of the loss in the outputs is not finite, though the loss is"
    ignored = getattr(case.loss_fn, "ignore_index", -100)
    none_counts = not case.targets.is_floating_point() and bool((case.targets == ignored).all())
    why = f": each target is the ignore_index, {ignored}" if none_counts else ""
    return f"the loss is {loss.item()}{why or ', though weights, batch and outputs are finite'}"


def check_kinds(model: object, loss_fn: object, targets: object) -> None:
    """Make sure that a model, a loss and targets are what their names say.

    Raises:
        ValueError: one of them is not; the message says what it is.

    Example:
        >>> check_kinds(nn.Linear(3, 2), nn.CrossEntropyLoss, Tensor([0.0]))
        Traceback (most recent call last):
        ValueError: loss_fn: got the class CrossEntropyLoss, expected CrossEntropyLoss()
    """
    check_model(model)
    check_loss(loss_fn)
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"targets: got {_kind(targets)}, expected a tensor; what else the loss takes can be "
            "bound to it by a lambda or functools.partial"
        )


def check_loss(loss_fn: object) -> None:
    """Make sure that a loss is a function.

    Raises:
        ValueError: it is not; the message says what it is.
    """
    if isinstance(loss_fn, type):
        name = loss_fn.__name__
        raise ValueError(f"loss_fn: got the class {name}, expected {name}()")
    if not callable(loss_fn):
        raise ValueError(f"loss_fn: got {_kind(loss_fn)}, expected a function")


def check_model(model: Any) -> None:
    """Make sure that a model is a module whose parameters are real tensors with values.

    Raises:
        ValueError: no module; or a parameter of a lazy module that was not called yet, or on
            the device "meta".
        NotImplementedError: a complex one, or one that is sharded over processes.

    Example:
        >>> check_model(nn.LazyLinear(2))
        Traceback (most recent call last):
        ValueError: weight has no shape yet: expected a model that was called once
    """
    for name, parameter in unwrapped(model).named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet: expected a model that was called once")
        if parameter.is_meta:
            raise ValueError(f"{name} is on the device 'meta' and has no values: expected some")
        if parameter.is_complex():
            raise NotImplementedError(
                f"{name} is complex ({parameter.dtype}): expected real weights, such as the real "
                "and imaginary parts as two parameters"
            )
        if hasattr(parameter, "placements") or type(parameter).__name__ == "FlatParameter":
            raise NotImplementedError(
                f"{name} is sharded over processes: expected whole weights, such as "
                "a copy of the model before it is sharded"
            )


def _check_devices(parts: dict[str, Tensor]) -> None:
    found = {str(tensor.device): f"{name} on {tensor.device}" for name, tensor in parts.items()}
    if len(found) > 1:
        raise ValueError(f"{', '.join(sorted(found.values()))}: expected one device for all")


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
