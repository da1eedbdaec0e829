"""A simplified GoogleNet: inception blocks, sized for 32 x 32 images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Inception(nn.Module):
    """Four branches side by side, concatenated: 1 x 1, 3 x 3 and 5 x 5 convolutions, a pool.

    Convolutions of 1 x 1 narrow the inputs of the larger ones. Each is followed by ReLU; there
    is no normalization.

    Args:
        channels_in: of the input.
        width: channels of the 1 x 1 and of the 3 x 3 branch; the other two have half of it, so
            that the output has 3 x width.
    """

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.point = _convolution(channels_in, width, 1)
        self.middle = nn.Sequential(
            _convolution(channels_in, half, 1), _convolution(half, width, 3)
        )
        self.large = nn.Sequential(_convolution(channels_in, half, 1), _convolution(half, half, 5))
        self.pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), _convolution(channels_in, half, 1)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Map (b, c, h, w) to (b, 3 width, h, w)."""
        return torch.cat([self.point(x), self.middle(x), self.large(x), self.pool(x)], 1)


def googlenet(classes: int = 10) -> nn.Sequential:
    """Make a stem and four inception blocks, at 8 x 8 and at 4 x 4 pixels.

    Left out of the source's network: five of nine blocks, the auxiliary classifiers,
    response normalization and dropout; fewer channels, and a stem for small images.

    Args:
        classes: outputs.

    Returns:
        A network from images (B, 3, 32, 32) to logits (B, classes).

    Source: Szegedy et al., "Going deeper with convolutions" (2015).

    Example:
        >>> googlenet()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        *(_convolution(3, 32, 3, stride=2), nn.MaxPool2d(2)),
        *(Inception(32, 16), Inception(48, 24), nn.MaxPool2d(2)),
        *(Inception(72, 32), Inception(96, 40)),
        *(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(120, classes)),
    )


def _convolution(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2)
    return nn.Sequential(convolution, nn.ReLU())
