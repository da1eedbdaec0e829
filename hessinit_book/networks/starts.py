"""Initial weights by a named scheme, from a random stream that is given."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


def fans(layer: Layer) -> tuple[int, int]:
    """Count the inputs of an output and the outputs of an input.

    Groups narrow both: of a depthwise 3 x 3 convolution they are 9.

    Returns:
        fan_in, fan_out.

    Example:
        >>> fans(nn.Conv2d(8, 16, 3)), fans(nn.Conv2d(8, 8, 3, groups=8))
        ((72, 144), (9, 9))
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight
    return weight[0].numel(), weight.shape[0] * weight[0, 0].numel() // groups


def _normal(variance: Callable[[int, int], float]) -> Callable[[Layer, torch.Generator], None]:
    def draw(layer: Layer, stream: torch.Generator) -> None:
        layer.weight.normal_(0, math.sqrt(variance(*fans(layer))), generator=stream)
        if layer.bias is not None:
            layer.bias.zero_()

    return draw


def _orthogonal(layer: Layer, stream: torch.Generator) -> None:
    nn.init.orthogonal_(layer.weight, math.sqrt(2), generator=stream)
    if layer.bias is not None:
        layer.bias.zero_()


def _torch_default(layer: Layer, stream: torch.Generator) -> None:
    bound = 1 / math.sqrt(fans(layer)[0])
    layer.weight.uniform_(-bound, bound, generator=stream)
    if layer.bias is not None:
        layer.bias.uniform_(-bound, bound, generator=stream)


SCHEMES: dict[str, Callable[[Layer, torch.Generator], None]] = {
    "torch": _torch_default,
    "lecun": _normal(lambda fan_in, fan_out: 1 / fan_in),
    "glorot": _normal(lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "he": _normal(lambda fan_in, fan_out: 2 / fan_in),
    "orthogonal": _orthogonal,
}
"""Draw a layer's weights: torch's default, LeCun, Glorot, He, orthogonal with gain sqrt(2)."""

LABELS = {
    "torch": "torch default",
    "lecun": "LeCun",
    "glorot": "Glorot",
    "he": "He",
    "orthogonal": "orthogonal",
}
"""Names of the schemes for readers."""


@torch.no_grad()
def draw_weights(model: nn.Module, scheme: str, stream: torch.Generator) -> nn.Module:
    """Draw all weights of a network anew, in place.

    Biases are zero, but for torch's own scheme, which draws them too; normalization starts
    as the identity.

    Args:
        model: of convolutions, linear layers and batch normalization.
        scheme: a key of `SCHEMES`.
        stream: source of randomness; no other is used.

    Returns:
        The model.

    Raises:
        ValueError: an unknown scheme, or a parameter of some other layer.

    Source: LeCun, Bottou, Orr, Müller (1998), Glorot and Bengio (2010), He et al. (2015),
        Saxe, McClelland, Ganguli (2014).

    Example:
        >>> layer = draw_weights(nn.Linear(1000, 50), "he", torch.Generator().manual_seed(0))
        >>> f"{layer.weight.std():.3f}", math.sqrt(2 / 1000)
        ('0.045', 0.044721359549995794)
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r}: expected one of {', '.join(SCHEMES)}")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            SCHEMES[scheme](module, stream)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif [*module.parameters(recurse=False)]:
            raise ValueError(f"{name}: got a {type(module).__name__}, which has no scheme here")
    return model


def build(make: Callable[[], nn.Module], scheme: str, stream: torch.Generator) -> nn.Module:
    """Make a network with weights of a scheme, without touching the global random state.

    Args:
        make: gives the network, whatever its weights.
        scheme: a key of `SCHEMES`.
        stream: source of randomness.

    Example:
        >>> before = torch.get_rng_state()
        >>> model = build(lambda: nn.Linear(3, 2), "he", torch.Generator())
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    with torch.device("meta"):  # no numbers are drawn there
        model = make()
    return draw_weights(model.to_empty(device="cpu"), scheme, stream)


def weight_layers(model: nn.Module) -> dict[str, Tensor]:
    """Name the weights of convolutions and linear layers, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}
