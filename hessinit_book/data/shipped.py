"""The sample that ships with the package: real images, few enough to travel along.

Each split is one lossless WebP picture, images in rows of `COLUMNS`. Image i is of class
i mod 10, so that every run of ten images has each class once and no labels need be stored.
`sample/README.md` says where the images come from; `tools/make_sample.py` made the files.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from hessinit_book.data.full import SETS
from hessinit_book.data.images import ImageData
from hessinit_book.errors import DataError

FOLDER = Path(__file__).parent / "sample"
"""Where the files are."""

COLUMNS = 50
"""Number of images in a row of a picture."""

SHAPES = {"mnist": (1, 28, 28), "fashionmnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Shape (c, h, w) of an image, in pixels."""

CHECKSUMS = {
    "mnist_train.webp": "3fcb3c48fe49c2ac2c20ab760a3b87b0d0e623f99cd5813ee305b306b2a37376",
    "mnist_test.webp": "5637a9e10f768954942cb484f5e24a3b2cf63c2e394fdcf32e28604dad41517c",
    "fashionmnist_train.webp": "a17b5baed06d092bff7dc8febbbfc039c529dfd9e7a99fa7ffaa583d08ed6189",
    "fashionmnist_test.webp": "12076833447f144e36acd06637f3c12457eb9337c79769c4cf8f2f952f1d8cf7",
    "cifar10_train.webp": "c366ab9b98bf0495e87aacb4d1196bf9dd65a65dcc84bc499574040d8ff59777",
    "cifar10_test.webp": "9a6ee759082a961146d54318d8ee63b3808c0c2fc01315c8660e4c739fa2729a",
}
"""SHA-256 of each file."""


def read(key: str) -> ImageData:
    """Read the shipped sample of a data set.

    Args:
        key: of `hessinit_book.data.full.SETS`.

    Returns:
        MNIST: 2000 train and 500 test images of shape (1, 28, 28), 200 and 50 a class.
        FashionMNIST: 1000 and 500 of that shape, 100 and 50 a class.
        CIFAR-10: 1500 and 500 of shape (3, 32, 32), 150 and 50 a class.

    Raises:
        DataError: a file is missing or damaged.

    Example:
        >>> read("cifar10").train_images.shape
        torch.Size([1500, 3, 32, 32])
    """
    train_images, train_labels = _read_split(key, "train")
    test_images, test_labels = _read_split(key, "test")
    return ImageData(
        name=SETS[key].name,
        kind="sample",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=SETS[key].classes,
    )


def _read_split(key: str, split: str) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    file = FOLDER / f"{key}_{split}.webp"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"sample file {file} cannot be read ({error.strerror}): install hessinit_lib again"
        ) from None
    if hashlib.sha256(content).hexdigest() != CHECKSUMS[file.name]:
        raise DataError(
            f"sample file {file} does not match its checksum: install hessinit_lib again"
        )
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as picture:
            pixels = np.array(picture.convert("RGB"))
    except OSError:
        # The content is right, so it is the reader that lacks something.
        raise DataError(
            f"sample file {file} cannot be decoded: this Pillow has no WebP support; "
            "install Pillow from a wheel"
        ) from None
    channels, height, width = SHAPES[key]
    # WebP stores gray pictures as RGB with three equal channels.
    pixels = pixels[..., :channels]
    grid = pixels.reshape(-1, height, COLUMNS, width, channels)
    images = np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3))
    images = images.reshape(-1, channels, height, width)
    return torch.from_numpy(images), torch.arange(len(images)) % len(SETS[key].classes)
