"""Networks drawn by a `RandomNetwork`: their weights, as a module, and their layers' norms."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.theory import RandomNetwork
from hessinit_lib.hessians import layer_hessians


def draw_weights(network: RandomNetwork, weights: torch.Generator) -> list[Float[Tensor, "_ _"]]:
    """Draw the weights of a network, float32, each of shape (fan_out, fan_in)."""
    return [
        variance**0.5 * torch.randn(fan_out, fan_in, generator=weights)
        for variance, (fan_in, fan_out) in zip(
            network.variances, pairwise(network.widths), strict=True
        )
    ]


def make_model(network: RandomNetwork, weights: list[Float[Tensor, "_ _"]]) -> nn.Sequential:
    """Make the network of given weights as a module, without its masks and biases."""
    modules: list[nn.Module] = []
    for k, weight in enumerate(weights):
        linear = nn.Linear(*weight.mT.shape, bias=False, device="meta")
        linear.weight = nn.Parameter(weight)
        modules.append(linear)
        if k < len(network.activations):
            activation = network.activations[k]
            assert isinstance(activation, nn.Module)
            modules.append(activation)
    return nn.Sequential(*modules)


def hessian_norms(
    model: nn.Module, inputs: Float[Tensor, "b i"], labels: Int64[Tensor, " b"]
) -> list[float]:
    """Compute the Frobenius norm of each layer's whole Hessian, exactly.

    Args:
        model: without masks.
        inputs: shape (B, n_0).
        labels: shape (B,).

    Returns:
        One norm a layer.
    """
    report = layer_hessians(
        model,
        nn.CrossEntropyLoss(),
        inputs,
        labels,
        norms=("frobenius",),
        parts=False,
        method="exact",
    )
    return [layer.frobenius for layer in report.values()]
