"""What a Hessian is of: a model, a loss and a batch, checked once where a computation starts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from hessinit_lib.hessians.functional import unwrap_compiled
from hessinit_lib.hessians.loss import LossFn


class Case(NamedTuple):
    """A model, a loss and a batch.

    Attributes:
        model: any module, not compiled.
        loss_fn: function of (outputs, targets) that gives one number.
        inputs: shape (B, ...), what the model takes.
        targets: shape (B, ...), what the loss takes.
    """

    model: nn.Module
    loss_fn: LossFn
    inputs: Tensor
    targets: Tensor

    @classmethod
    def checked(cls, model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor) -> Case:
        """Make a case; the model may be a compiled one.

        Raises:
            ValueError: something that is not what its name says, an empty batch, or as many
                inputs as targets are not there; the message says what was given.

        Example:
            >>> Case.checked(nn.Linear(3, 2), nn.MSELoss(), Tensor(4, 3), Tensor(5, 2))
            Traceback (most recent call last):
            ValueError: 4 inputs and 5 targets: expected as many
        """
        check_kinds(model, loss_fn, targets)
        if not isinstance(inputs, Tensor):
            raise ValueError(f"inputs: got {_kind(inputs)}, expected a tensor")
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: expected as many")
        if len(inputs) == 0:
            raise ValueError("an empty batch has no mean loss: expected at least one sample")
        return cls(unwrap_compiled(model), loss_fn, inputs, targets)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that have a Hessian block, by name; a tied one by its first name."""
        named = self.model.named_parameters()
        return {name: p for name, p in named if p.requires_grad and p.ndim > 1}


def check_kinds(model: object, loss_fn: object, targets: object) -> None:
    """Make sure that a model, a loss and targets are what their names say.

    Raises:
        ValueError: one of them is not; the message says what it is.

    Example:
        >>> check_kinds(nn.Linear(3, 2), nn.CrossEntropyLoss, Tensor([0.0]))
        Traceback (most recent call last):
        ValueError: loss_fn: got the class CrossEntropyLoss, expected CrossEntropyLoss()
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: got {_kind(model)}, expected a torch.nn.Module")
    if isinstance(loss_fn, type):
        name = loss_fn.__name__
        raise ValueError(f"loss_fn: got the class {name}, expected {name}()")
    if not callable(loss_fn):
        raise ValueError(f"loss_fn: got {_kind(loss_fn)}, expected a function")
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets: got {_kind(targets)}, expected a tensor")


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
