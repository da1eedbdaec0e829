"""Data: MNIST, FashionMNIST and CIFAR-10, in full or as the samples that ship with the package."""

from __future__ import annotations

from hessinit_book.data.datasets import load
from hessinit_book.data.images import ImageData

__all__ = ["ImageData", "load"]
