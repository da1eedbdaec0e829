"""The residual network for CIFAR, with and without batch normalization."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = (16, 32, 64)


class ResidualBlock(nn.Module):
    r"""Two 3 x 3 convolutions beside a shortcut: $z = f(x' + W_2 * f(W_1 * x))$, $f$ = ReLU.

    The shortcut $x'$ has no weights: where the block halves the sides of the image, it takes
    every second pixel and adds channels of zeros.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        stride: 2 to halve the sides, else 1.
        norm: whether batch normalization follows each convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, stride, norm)
        self.second = _convolution(channels_out, channels_out, 1, norm)
        self.stride, self.added = stride, channels_out - channels_in

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """Map (b, c, h, w) to (b, d, h / stride, w / stride)."""
        branch = self.second(F.relu(self.first(x)))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(branch + shortcut)


def resnet(depth: int = 20, norm: bool = True, classes: int = 10) -> nn.Sequential:
    """Make the residual network for 32 x 32 images, of depth 6 n + 2.

    Args:
        depth: layers with weights: 20, 32, 44, 56, 110 in the source.
        norm: with batch normalization, as in the source, or without, with biases instead.
        classes: outputs.

    Returns:
        A network from images (B, 3, 32, 32) to logits (B, classes).

    Raises:
        ValueError: a depth that is not 6 n + 2.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016),
        section 4.2, shortcuts of kind A.

    Example:
        >>> sum(p.numel() for p in resnet(20).parameters())
        269722
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise ValueError(f"depth={depth}: expected 6 n + 2, such as 8, 14, 20")
    layers: list[nn.Module] = [_convolution(3, CHANNELS[0], 1, norm), nn.ReLU()]
    before = CHANNELS[0]
    for channels in CHANNELS:
        for _ in range(blocks):
            layers.append(ResidualBlock(before, channels, 1 if before == channels else 2, norm))
            before = channels
    head = nn.Linear(before, classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _convolution(channels_in: int, channels_out: int, stride: int, norm: bool) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=not norm)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out)) if norm else convolution
