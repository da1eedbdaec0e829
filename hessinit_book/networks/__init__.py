"""Networks for 32 x 32 images, one file each, and their initial weights by named schemes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from hessinit_book.networks.googlenet import googlenet
from hessinit_book.networks.plain_cnn import plain_cnn
from hessinit_book.networks.resnet import resnet
from hessinit_book.networks.starts import build

__all__ = ["NETWORKS", "TITLES", "build"]


def _efficientnet() -> nn.Module:
    from torchvision.models import efficientnet_b0  # a second, which the others do without

    return efficientnet_b0(num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn4": partial(plain_cnn, 4),
    "cnn8": partial(plain_cnn, 8),
    "cnn16": partial(plain_cnn, 16),
    "googlenet": googlenet,
    "resnet20": partial(resnet, 20, norm=False),
    "resnet20_norm": partial(resnet, 20),
    # Made for 224 x 224 pixels: of 32 x 32 the last stages see one.
    "efficientnet": _efficientnet,
}
"""Networks by name; call one to make it."""

TITLES = {
    "cnn4": "plain CNN, 4 layers",
    "cnn8": "plain CNN, 8 layers",
    "cnn16": "plain CNN, 16 layers",
    "googlenet": "simplified GoogleNet",
    "resnet20": "ResNet-20, no norm",
    "resnet20_norm": "ResNet-20, batch norm",
    "efficientnet": "EfficientNet-B0",
}
"""Names of the networks for readers."""
