"""What a model takes: one tensor, several in order, or several by keyword."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor; tensors in order; or tensors by keyword, with whatever else the model takes."""


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """List the tensors among the inputs.

    Example:
        >>> [tuple(x.shape) for x in tensors_of({"ids": torch.ones(4, 2), "scale": None})]
        [(4, 2)]
    """
    if isinstance(inputs, Tensor):
        return [inputs]
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [value for value in values if isinstance(value, Tensor)]


def sample_count(inputs: Inputs) -> int:
    """Count the samples, rows of the first axis.

    Raises:
        ValueError: no tensors, one without axes, or not as many rows in each; the message
            says what was given.
        NotImplementedError: a sparse or nested tensor.

    Example:
        >>> sample_count((torch.ones(4, 2), torch.ones(4, 3)))
        4
    """
    if not isinstance(inputs, Tensor | Mapping | tuple | list):
        raise ValueError(
            f"inputs: got {type(inputs).__name__}, expected a tensor, or tensors in a tuple or dict"
        )
    found = tensors_of(inputs)
    if any(tensor.is_nested or tensor.layout != torch.strided for tensor in found):
        raise NotImplementedError(
            "inputs: got a sparse or nested tensor, expected dense ones: x.to_dense(), or "
            "x.to_padded_tensor(0.0)"
        )
    if not found or any(tensor.ndim == 0 for tensor in found):
        shown = next((repr(tensor) for tensor in found if tensor.ndim == 0), "none")
        raise ValueError(
            f"inputs: got {shown} among them, expected tensors of shape (B, ...), samples first"
        )
    lengths = [len(tensor) for tensor in found]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"inputs: got {lengths} samples, expected as many in each, in its first axis"
        )
    return lengths[0]


def mapped(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply a function to each tensor among the inputs; all else stays.

    Example:
        >>> mapped([torch.ones(2), None], torch.neg)
        (tensor([-1., -1.]), None)
    """

    def apply(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    if isinstance(inputs, Mapping):
        return {key: apply(value) for key, value in inputs.items()}
    return apply(inputs) if isinstance(inputs, Tensor) else tuple(apply(each) for each in inputs)


def take(inputs: Inputs, samples: slice | Tensor) -> Inputs:
    """Take some samples of all inputs.

    Example:
        >>> tuple(take(torch.ones(4, 2), slice(1)).shape)
        (1, 2)
    """
    return mapped(inputs, lambda tensor: tensor[samples])


def fresh(
    inputs: Inputs, dtype: torch.dtype | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy the inputs for one call of a model, which may write into them.

    Args:
        inputs: floating-point ones are converted.
        dtype: to this type; None to leave them as they are.

    Returns:
        The arguments in order, and those by keyword.
    """

    def copy(tensor: Tensor) -> Tensor:
        kept = dtype is None or not tensor.is_floating_point()
        return tensor.detach().clone() if kept else tensor.detach().to(dtype, copy=True)

    copied = mapped(inputs, copy)
    if isinstance(copied, Mapping):
        return (), dict(copied)
    return (copied,) if isinstance(copied, Tensor) else tuple(copied), {}
