"""Initial weights by a named scheme, from a random stream that is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hessinit_lib.init import apply

SCHEMES: dict[str, dict[str, Any]] = {
    "torch": {},
    "lecun": {},
    "glorot": {"law": "normal"},
    "he": {},
    "orthogonal": {"gain": math.sqrt(2)},
}
"""Schemes of `hessinit_lib.init.apply`, with their options."""

LABELS = {
    "torch": "torch default",
    "lecun": "LeCun",
    "glorot": "Glorot",
    "he": "He",
    "orthogonal": "orthogonal",
}
"""Names of the schemes for readers."""


def draw_weights(model: nn.Module, scheme: str, stream: torch.Generator) -> nn.Module:
    """Draw all weights of a network anew, in place, by `hessinit_lib.init.apply`.

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

    Example:
        >>> layer = draw_weights(nn.Linear(1000, 50), "he", torch.Generator().manual_seed(0))
        >>> f"{layer.weight.std():.3f}", math.sqrt(2 / 1000)
        ('0.045', 0.044721359549995794)
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r}: expected one of {', '.join(SCHEMES)}")
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif not isinstance(module, nn.Conv2d | nn.Linear) and [*module.parameters(recurse=False)]:
            raise ValueError(f"{name}: got a {type(module).__name__}, which has no scheme here")
    return apply(model, scheme, generator=stream, **SCHEMES[scheme])


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
