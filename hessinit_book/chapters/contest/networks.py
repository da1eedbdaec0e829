"""The networks of the contest, small and without normalization, but for the transformer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.networks.gpt import Gpt


class Block(nn.Module):
    """A residual branch of two convolutions, with the scalars that Fixup asks for.

    Scalar biases start from 0 and the multiplier from 1: other schemes leave them there.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shifts = nn.Parameter(torch.zeros(4))
        self.multiplier = nn.Parameter(torch.ones(1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Add the branch to its input."""
        z = self.first(x + self.shifts[0]) + self.shifts[1]
        z = self.second(z.relu() + self.shifts[2])
        return (x + (z * self.multiplier + self.shifts[3])).relu()


def resnet(blocks: int, channels: int) -> nn.Sequential:
    """Make a residual network without normalization for images of 16 x 16.

    Args:
        blocks: residual blocks of two convolutions, on maps of 8 x 8.
        channels: of all maps.

    Example:
        >>> resnet(2, 8)(torch.ones(3, 3, 16, 16)).shape
        torch.Size([3, 10])
    """
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        *(Block(channels) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


def vgg(stage: int, channels: int) -> nn.Sequential:
    """Make a VGG network without normalization for images of 16 x 16.

    Args:
        stage: convolutions in each of the three stages between poolings.
        channels: of the first stage; twice and four times as many in the others.

    Example:
        >>> vgg(2, 8)(torch.ones(3, 3, 16, 16)).shape
        torch.Size([3, 10])
    """
    layers: list[nn.Module] = []
    before = 3
    for factor in (1, 2, 4):
        for _ in range(stage):
            layers += [nn.Conv2d(before, factor * channels, 3, padding=1), nn.ReLU()]
            before = factor * channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * before, 10))


class CharacterGpt(Gpt):
    """A `Gpt` whose positions are a layer that is called, so that initializers see it.

    Args:
        letters: size of the alphabet.
        layers: blocks of attention and two-layer network.
        width: of the residual stream.
        heads: of attention.
        context: longest text.

    Example:
        >>> CharacterGpt(27, 2, 16, 2, 8)(torch.zeros(3, 8, dtype=torch.long)).shape
        torch.Size([24, 27])
    """

    def __init__(self, letters: int, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__(letters, context, width, heads, layers, torch.Generator())
        self.head = nn.Linear(width, letters)  # with biases

    def forward(self, tokens: Int64[Tensor, "b t"]) -> Float[Tensor, "bt v"]:
        """Give the logits of the character that follows each position, positions in a row."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.decode(self.tokens(tokens) + self.positions(places)).flatten(0, 1)
