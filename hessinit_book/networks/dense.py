"""Fully connected networks: made without weights, or drawn with a generator of their own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from hessinit_lib.theory.activations import Activation, activation_function
from hessinit_lib.theory.critical import critical_variance


def dense_network(
    widths: Sequence[int],
    activation: Activation,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Make a fully connected network whose weights and biases are not set.

    Args:
        widths: $n_0$ (inputs) to $n_n$ (logits).
        activation: a name, or a module, which is then shared; between the layers.
        bias: whether the layers have biases.
        dtype: of the parameters.

    Raises:
        ValueError: an unknown name, or a function that is no module.

    Example:
        >>> dense_network((4, 3, 2), "tanh")
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): Tanh()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        # PyTorch's own initialization would draw from the global stream.
        linear = nn.Linear(fan_in, fan_out, bias=bias, device="meta", dtype=dtype)
        module = activation_function(activation)
        if not isinstance(module, nn.Module):
            raise ValueError(f"activation {activation!r}: expected a name or a module")
        layers += [linear.to_empty(device="cpu"), module]
    return nn.Sequential(*layers[:-1])


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """List the linear layers, first layer first."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def draw_network(
    widths: Sequence[int],
    stds: Sequence[float],
    activation: Activation,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Draw a network with normal weights and zero biases, one activation throughout.

    Args:
        widths: $n_0$ (inputs) to $n_n$ (logits).
        stds: deviations of the weights, one a layer.
        activation: a name, or a module, which is then shared.
        generator: standard normal numbers are drawn and then scaled, so that the same state
            gives the same directions at any scale and precision.
        dtype: of the parameters.

    Returns:
        Linear layers with the activation between them.

    Raises:
        ValueError: not one deviation for each layer, or a function that is no module.

    Example:
        >>> network = draw_network([4, 8, 2], [0.5, 0.1], "tanh", torch.Generator())
        >>> [type(module).__name__ for module in network]
        ['Linear', 'Tanh', 'Linear']
    """
    if len(stds) != len(widths) - 1:
        raise ValueError(f"{len(stds)} stds: expected {len(widths) - 1}, one for each layer")
    network = dense_network(widths, activation, dtype=dtype)
    for linear, std in zip(linear_layers(network), stds, strict=True):
        shape = linear.weight.shape
        directions = torch.randn(shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(std * directions)
            linear.bias.zero_()
    return network


def critical_network(
    activation: str,
    widths: Sequence[int],
    generator: torch.Generator,
    deviation: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    r"""Draw a network whose weights have a multiple of the critical deviation.

    The critical variance of statement 7 keeps the signal, $1 / (c \, n_{in})$, in the limit of
    small pre-activations. Where that has no limit, for activations that are not zero at
    zero, it is $1 / (c' n_{in})$, which keeps the gradient between layers of equal width.

    Args:
        activation: its name.
        widths: $n_0$ (inputs) to $n_n$ (logits).
        generator: see `draw_network`.
        deviation: relative to the critical one.
        dtype: of the parameters.

    Example:
        >>> network = critical_network("relu", [500, 500, 2], torch.Generator().manual_seed(0))
        >>> round(network[0].weight.var().item() * 500, 1)
        2.0
    """
    f = activation_function(activation)
    mode = "fan_in" if f(torch.zeros(())) == 0 else "fan_out"
    stds = [deviation * critical_variance(f, n, n, mode) ** 0.5 for n in widths[:-1]]
    return draw_network(widths, stds, activation, generator, dtype)
