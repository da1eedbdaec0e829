"""`ImageData`: labeled images for training and testing, and their checksum."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from hessinit_book.records.records import DatasetInfo


# eq=False: comparing tensors gives tensors, not a truth value; compare `sha256` instead.
@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Labeled images of a data set, as stored: bytes, not yet scaled.

    Attributes:
        name: the data set, as users call it ("MNIST", "CIFAR-10").
        kind: "full" or "sample".
        train_images: training images, gray or RGB values 0 to 255; shape (n, c, h, w).
        train_labels: class of each training image, 0 to the number of classes less one;
            shape (n,).
        test_images: test images; shape (m, c, h, w).
        test_labels: class of each test image; shape (m,).
        classes: name of each class.

    Example:
        >>> from hessinit_book.data import load
        >>> load("mnist", sample=True)
        ImageData(MNIST sample: 2000 train and 500 test images, 1 x 28 x 28, 10 classes)
    """

    name: str
    kind: Literal["full", "sample"]
    train_images: UInt8[Tensor, "n c h w"]
    train_labels: Int64[Tensor, " n"]
    test_images: UInt8[Tensor, "m c h w"]
    test_labels: Int64[Tensor, " m"]
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        size = " x ".join(str(length) for length in self.train_images.shape[1:])
        return (
            f"ImageData({self.name} {self.kind}: {len(self.train_images)} train and "
            f"{len(self.test_images)} test images, {size}, {len(self.classes)} classes)"
        )

    @cached_property
    def sha256(self) -> str:
        """Checksum of all images and labels, computed from the tensors held here.

        Over the bytes of train images (uint8, n c h w), train labels (int64, little-endian),
        test images and test labels, in that order.

        Example:
            >>> from hessinit_book.data import load
            >>> load("mnist", sample=True).sha256[:8]
            'f391e931'
        """
        digest = hashlib.sha256()
        for images, labels in (
            (self.train_images, self.train_labels),
            (self.test_images, self.test_labels),
        ):
            # `.data` is a view: no second copy of a large set.
            digest.update(images.cpu().contiguous().numpy().data)
            digest.update(labels.cpu().numpy().astype("<i8").data)
        return digest.hexdigest()

    @property
    def info(self) -> DatasetInfo:
        """What a result record keeps of the data: name, kind, sizes and checksum.

        Example:
            >>> from hessinit_book.data import load
            >>> load("cifar10", sample=True).info.train_size
            1500
        """
        return DatasetInfo(
            name=self.name,
            kind=self.kind,
            train_size=len(self.train_images),
            test_size=len(self.test_images),
            sha256=self.sha256,
        )

    def tensors(
        self,
        split: Literal["train", "test"],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """Give one split's images as numbers in [0, 1], and its labels.

        Args:
            split: "train" or "test".
            device: where the tensors shall lie.
            dtype: floating-point type of the images.

        Returns:
            Images of shape (n, c, h, w), the stored bytes divided by 255 (no unit; no mean is
            subtracted), and labels of shape (n,). The labels may share memory with this object.

        Raises:
            ValueError: the split is neither "train" nor "test".

        Example:
            >>> from hessinit_book.data import load
            >>> images, labels = load("mnist", sample=True).tensors("test")
            >>> images.shape, images.max().item(), labels[:3].tolist()
            (torch.Size([500, 1, 28, 28]), 1.0, [0, 1, 2])
        """
        if split == "train":
            images, labels = self.train_images, self.train_labels
        elif split == "test":
            images, labels = self.test_images, self.test_labels
        else:
            raise ValueError(f'split {split!r}: expected "train" or "test"')
        # Bytes travel to the device, not floats: a quarter of the transfer.
        return images.to(device).to(dtype) / 255, labels.to(device)
