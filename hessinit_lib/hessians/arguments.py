"""Checks of what a caller gives, before work starts."""

from __future__ import annotations

from torch import Tensor, nn


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


def check_batch(inputs: Tensor, targets: Tensor) -> None:
    """Make sure that there are samples and as many targets.

    Raises:
        ValueError: no tensor of inputs, an empty batch, or sizes that differ.
    """
    if not isinstance(inputs, Tensor):
        raise ValueError(f"inputs: got {_kind(inputs)}, expected a tensor")
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: expected as many")
    if len(inputs) == 0:
        raise ValueError("an empty batch has no mean loss: expected at least one sample")


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
