"""The networks of the experiment `norm_propagation`: their laws, and their layers' norms."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.theory import Masks, RandomNetwork
from hessinit_lib.hessians import layer_hessians
from hessinit_lib.theory import critical_variance

INPUTS, CLASSES = 784, 10


class Scheme(NamedTuple):
    """A way to draw the weights, for an activation.

    Attributes:
        activation: its name.
        mode: of `critical_variance`.
        dropout: None, or whether the units that dropout keeps are rescaled.
        small: whether the images are scaled down, so that pre-activations are small.
    """

    activation: str
    mode: str = "fan_in"
    dropout: bool | None = None
    small: bool = False


SCHEMES = {
    "lecun_linear": Scheme("linear"),
    "lecun_tanh": Scheme("tanh", small=True),
    "glorot_tanh": Scheme("tanh", mode="fan_avg"),
    "he_relu": Scheme("relu"),
    "dropout_rescaled": Scheme("relu", dropout=True),
    "dropout_plain": Scheme("relu", dropout=False),
}


def make_network(scheme: Scheme, width: int, depth: int, keep: float) -> RandomNetwork:
    """Describe 784-width-...-width-10 with the variances of a scheme.

    The first layer reads pixels, which no activation or dropout has changed: its variance is
    1 / 784 or, with Glorot's rule, 2 / (784 + width).

    Example:
        >>> network = make_network(SCHEMES["he_relu"], 100, 3, 0.5)
        >>> [round(1 / variance) for variance in network.variances]
        [784, 50, 50]
    """
    widths = [INPUTS, *[width] * (depth - 1), CLASSES]
    variances = [critical_variance("linear", INPUTS, width, scheme.mode)]
    masks = Masks()
    if scheme.dropout is not None:
        masks = Masks(keep, rescale=scheme.dropout)
    for fan_in, fan_out in pairwise(widths[1:]):
        variances.append(
            critical_variance(
                scheme.activation,
                fan_in,
                fan_out,
                scheme.mode,
                dropout=1 - masks.keep,
                rescale=masks.rescale,
            )
        )
    return RandomNetwork.make(widths, variances, scheme.activation, masks)


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
