"""A plain convolutional network of any depth, without normalization or shortcuts."""

from __future__ import annotations

from torch import nn

WIDTH = 32


def plain_cnn(depth: int, width: int = WIDTH, classes: int = 10) -> nn.Sequential:
    """Make 3 x 3 convolutions with ReLU, the pixels' mean and a linear layer.

    The convolutions form three stages of 16 x 16, 8 x 8 and 4 x 4 pixels, as even as they can
    be; the first of each halves the sides of the image.

    Args:
        depth: layers with weights, at least 4.
        width: channels of every convolution.
        classes: outputs.

    Returns:
        A network from images (B, 3, 32, 32) to logits (B, classes).

    Raises:
        ValueError: fewer than four layers.

    Example:
        >>> [tuple(layer.stride) for layer in plain_cnn(5) if isinstance(layer, nn.Conv2d)]
        [(2, 2), (1, 1), (2, 2), (2, 2)]
    """
    if depth < 4:
        raise ValueError(f"depth={depth}: expected at least 4, a layer a stage and the last")
    convolutions = depth - 1
    halving = {-(-stage * convolutions // 3) for stage in range(3)}
    layers: list[nn.Module] = []
    for index in range(convolutions):
        channels = 3 if index == 0 else width
        stride = 2 if index in halving else 1
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(width, classes))
