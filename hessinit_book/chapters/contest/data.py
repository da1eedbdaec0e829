"""What the contest's networks train on: digits, small pictures, and characters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hessinit_book.chapters.contest.text import draw_text, read_text
from hessinit_book.data import load
from hessinit_book.randomness import generator
from hessinit_book.records.records import DatasetInfo


@dataclass(frozen=True)
class Data:
    """What the networks train on.

    Attributes:
        flat: MNIST, shape (n, 784), and its classes.
        images: CIFAR-10 at 16 x 16, standardized by channel, and its classes.
        text: letters as numbers.
    """

    flat: tuple[Tensor, Tensor]
    images: tuple[Tensor, Tensor]
    text: Tensor

    def to(self, device: torch.device) -> Data:
        """Give the same on a device."""
        (flat, digits), (images, labels) = self.flat, self.images
        moved = (flat.to(device), digits.to(device)), (images.to(device), labels.to(device))
        return Data(*moved, self.text.to(device))

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.text.device


def load_data(sample: bool, data_dir: Path | None) -> tuple[Data, DatasetInfo]:
    """Load all data, and put together what is said of them.

    Args:
        sample: whether the shipped samples do, and drawn letters.
        data_dir: folder of the full data sets, see `load`.

    Raises:
        DataError: a data set cannot be had.
    """
    mnist = load("mnist", sample=sample, data_dir=data_dir)
    cifar = load("cifar10", sample=sample, data_dir=data_dir)
    if sample:
        text, info = draw_text(generator(0, "letters"))
    else:
        text, info = read_text(data_dir)
    flat, digits = mnist.tensors("train", "cpu")
    images, labels = cifar.tensors("train", "cpu")
    small = F.avg_pool2d(images, 2)
    deviation, mean = torch.std_mean(small, (0, 2, 3), keepdim=True)
    parts = (mnist.info, cifar.info, info)
    together = DatasetInfo(
        name=", ".join(part.name for part in parts),
        kind="sample" if sample else "full",
        train_size=sum(part.train_size for part in parts),
        test_size=sum(part.test_size for part in parts),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
    )
    return Data((flat.flatten(1), digits), ((small - mean) / deviation, labels), text), together
