"""FashionMNIST as the Debian package `dataset-fashion-mnist` holds it, for machines offline."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from hessinit_book.data.full import IDX, SETS, Split, whole
from hessinit_book.data.images import ImageData
from hessinit_lib.errors import DataError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the package puts its four files."""

KEY = "fashionmnist"


def is_present(key: str) -> bool:
    """Tell whether a data set is FashionMNIST and the package is installed.

    Example:
        >>> is_present("mnist")
        False
    """
    return key == KEY and all((FOLDER / f"{name}.gz").is_file() for name in IDX)


def read() -> ImageData:
    """Read FashionMNIST from the package's files.

    Returns:
        The data, checked against the known checksum.

    Raises:
        DataError: a file is damaged.

    Example:
        `read()` gives 60000 training images of shape (1, 28, 28).
    """
    try:
        data = whole(KEY, _read_split("train"), _read_split("t10k"))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(str(error)) from None
    if data.sha256 != SETS[KEY].sha256:
        raise _damaged("the images and labels do not match the known checksum")
    return data


def _read_split(name: str) -> Split:
    # Behind a header of four bytes and four more for each dimension, a byte a number.
    images = _bytes(f"{name}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    return images, _bytes(f"{name}-labels-idx1-ubyte.gz", header=8).long()


def _bytes(name: str, header: int) -> UInt8[Tensor, " n"]:
    with gzip.open(FOLDER / name) as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())


def _damaged(reason: str) -> DataError:
    return DataError(
        f"FashionMNIST in {FOLDER} is damaged ({' '.join(reason.split())}): install the package "
        "dataset-fashion-mnist again, or set HESSINIT_DATA to a folder that has the files"
    )
