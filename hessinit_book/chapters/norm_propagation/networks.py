"""The networks of the experiment `norm_propagation`: their laws."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from hessinit_book.theory import Masks, RandomNetwork
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
