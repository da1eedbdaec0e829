"""First and second derivatives of elementwise activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Derivatives = tuple[Float[Tensor, "b n"], Float[Tensor, "b n"] | None]


def _relu(module: nn.Module, a: Float[Tensor, "b n"]) -> Derivatives:
    return (a > 0).to(a.dtype), None


def _leaky_relu(module: nn.Module, a: Float[Tensor, "b n"]) -> Derivatives:
    assert isinstance(module, nn.LeakyReLU)
    return torch.where(a > 0, torch.ones_like(a), module.negative_slope), None


def _tanh(module: nn.Module, a: Float[Tensor, "b n"]) -> Derivatives:
    y = a.tanh()
    first = 1 - y * y
    return first, -2 * y * first


def _sigmoid(module: nn.Module, a: Float[Tensor, "b n"]) -> Derivatives:
    y = a.sigmoid()
    first = y * (1 - y)
    return first, first * (1 - 2 * y)


def _piecewise_linear(module: nn.Module, a: Float[Tensor, "b n"]) -> Derivatives:
    return _autograd(module, a, twice=False)[0], None


def _autograd(module: nn.Module, a: Float[Tensor, "b n"], twice: bool = True) -> Derivatives:
    # Elementwise, so the gradient of the sum is the derivative of each entry.
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        # A copy, since an in-place activation may not write to a leaf.
        (first,) = torch.autograd.grad(module(a.clone()).sum(), a, create_graph=twice)
        if not first.requires_grad:
            return first.detach(), torch.zeros_like(a)
        (second,) = torch.autograd.grad(first.sum(), a)
    return first.detach(), second


# Closed forms where they are hot; piecewise-linear ones, whose second derivative is zero
# almost everywhere; autograd for the rest. A subclass may compute anything, so the exact
# type decides.
_RULES: dict[type[nn.Module], Callable[[nn.Module, Tensor], Derivatives]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    **dict.fromkeys(
        (nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold),
        _piecewise_linear,
    ),
    **dict.fromkeys((nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.LogSigmoid, nn.Mish), _autograd),
    **dict.fromkeys((nn.SELU, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanhshrink), _autograd),
}


def is_elementwise(module: nn.Module) -> bool:
    """Tell whether the module is an elementwise activation that can be differentiated here."""
    return type(module) in _RULES


def is_piecewise_linear(module: nn.Module) -> bool:
    """Tell whether an elementwise activation's second derivative is zero almost everywhere."""
    return _RULES[type(module)] in (_relu, _leaky_relu, _piecewise_linear)


def activation_derivatives(module: nn.Module, a: Float[Tensor, "b n"]) -> Derivatives:
    r"""Differentiate an elementwise activation $f$ twice, at pre-activations a.

    The second derivative is None where the activation is piecewise linear, so that it is zero
    almost everywhere.

    Example:
        >>> first, second = activation_derivatives(nn.Tanh(), torch.zeros(1, 2))
        >>> first.tolist(), second.abs().tolist()
        ([[1.0, 1.0]], [[0.0, 0.0]])
    """
    return _RULES[type(module)](module, a)
