"""Activations by name, their kinks, and their values with two derivatives at given points."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Activation = str | Callable[[Tensor], Tensor]

_NAMES: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
}


class Values(NamedTuple):
    """f, f' and f'' at the same points."""

    value: Tensor
    first: Tensor
    second: Tensor


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Look an activation up by its name; a module or function is given back as it is.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> activation_function("relu")
        ReLU()
    """
    if not isinstance(activation, str):
        return activation
    if activation not in _NAMES:
        raise ValueError(f"activation {activation!r}: expected a module or one of {list(_NAMES)}")
    return _NAMES[activation]()


def kinks(function: Callable[[Tensor], Tensor]) -> list[float]:
    """List the points where an activation or one of its derivatives jumps.

    Any function may have a kink at 0, where most of them are; to split an integral there
    does no harm.

    Example:
        >>> kinks(nn.ReLU6())
        [0.0, 6.0]
    """
    match function:
        case nn.Hardtanh():  # nn.ReLU6 is one of them
            return [float(function.min_val), float(function.max_val)]
        case nn.Hardswish() | nn.Hardsigmoid():
            return [-3.0, 0.0, 3.0]
        case nn.Hardshrink() | nn.Softshrink():
            return [-float(function.lambd), 0.0, float(function.lambd)]
        case nn.Threshold():
            return [0.0, float(function.threshold)]
        case nn.Softplus():  # linear above its threshold
            return [0.0, function.threshold / function.beta]
    return [0.0]


def differentiate(function: Callable[[Tensor], Tensor], u: Float[Tensor, "*s"]) -> Values:
    """Evaluate an elementwise function and two derivatives, by automatic differentiation.

    Args:
        function: elementwise; derivatives are those of the piece that a point lies on.
        u: points, any shape.

    Returns:
        Three tensors of the shape of u.

    Example:
        >>> differentiate(torch.square, torch.tensor([3.0]))
        Values(value=tensor([9.]), first=tensor([6.]), second=tensor([2.]))
    """
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = function(u.clone())  # an in-place activation may not write to a leaf
        first = _derivative(value, u)
        second = _derivative(first, u)
    return Values(value.detach(), first.detach(), second.detach())


def _derivative(values: Tensor, u: Tensor) -> Tensor:
    # Elementwise, so the gradient of the sum is the derivative of each entry.
    if not values.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(values.sum(), u, create_graph=True)[0]
