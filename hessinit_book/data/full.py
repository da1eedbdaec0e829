"""Full data sets: where they lie, whether they are there, and reading them."""

from __future__ import annotations

import gzip
import os
import pickle
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.exceptions import VisibleDeprecationWarning
from platformdirs import user_cache_dir
from torch import Tensor

from hessinit_book.data.images import ImageData
from hessinit_book.errors import DataError

Split = tuple[UInt8[Tensor, "_ c h w"], Int64[Tensor, " _"]]
"""Images and their labels."""


@dataclass(frozen=True)
class ImageSet:
    """What is known of a data set before it is read.

    Attributes:
        name: the data set, as users call it.
        torchvision: name of torchvision's class for it.
        classes: name of each class.
        files: files of the full set, relative to the data folder.
        sha256: `ImageData.sha256` of the full set.
    """

    name: str
    torchvision: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str

    @property
    def reader(self) -> Any:
        """Torchvision's class, which knows where the set comes from; it reads CIFAR-10."""
        # Imported where full sets are wanted: it takes a second, and the samples do without.
        from torchvision import datasets

        return getattr(datasets, self.torchvision)


IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""Files of MNIST and FashionMNIST."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts these, compressed."""

# The checksums were taken from files whose MD5 sums are the published ones. They catch what
# torchvision lets pass: it does not check MNIST's unpacked files.
SETS = {
    "mnist": ImageSet(
        name="MNIST",
        torchvision="MNIST",
        classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
        files=tuple(f"MNIST/raw/{name}" for name in IDX),
        sha256="1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b",
    ),
    "fashionmnist": ImageSet(
        name="FashionMNIST",
        torchvision="FashionMNIST",
        classes=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        files=tuple(f"FashionMNIST/raw/{name}" for name in IDX),
        sha256="ece172613115fb18b120bec8f6c02271af90b8b8f0a5af5c51cbd5ceed68e619",
    ),
    "cifar10": ImageSet(
        name="CIFAR-10",
        torchvision="CIFAR10",
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        files=(
            "cifar-10-batches-py/data_batch_1",
            "cifar-10-batches-py/data_batch_2",
            "cifar-10-batches-py/data_batch_3",
            "cifar-10-batches-py/data_batch_4",
            "cifar-10-batches-py/data_batch_5",
            "cifar-10-batches-py/test_batch",
            "cifar-10-batches-py/batches.meta",
        ),
        sha256="9048fcbac9c08a64d57a7c5a5a66750a974ad4eab380914df129f7e223d823df",
    ),
}


def find_folder(key: str, data_dir: str | Path | None) -> tuple[Path, bool]:
    """Find the folder of the full sets.

    Args:
        key: of `SETS`.
        data_dir: the folder, or None for HESSINIT_DATA, or else the user's cache folder.

    Returns:
        The folder, and whether a user named it (then it exists).

    Raises:
        DataError: a user named a folder that does not exist. It is not made: a name with a
            slip would fill the disk at a place where nobody looks.

    Example:
        >>> find_folder("mnist", ".")[1]
        True
    """
    if data_dir is not None:
        folder, origin = Path(data_dir).expanduser(), "data_dir"
    elif os.environ.get("HESSINIT_DATA"):
        folder, origin = Path(os.environ["HESSINIT_DATA"]).expanduser(), "HESSINIT_DATA"
    else:
        return Path(user_cache_dir("hessinit")), False
    if not folder.is_dir():
        raise absent(key, folder, f"{origin} names no existing folder; nothing was downloaded")
    return folder, True


def is_offline() -> bool:
    """Tell whether the environment variable HESSINIT_OFFLINE forbids downloads."""
    value = os.environ.get("HESSINIT_OFFLINE", "").strip().lower()
    return value not in {"", "0", "false", "no", "off"}


def find_files(key: str, folder: Path) -> list[Path] | None:
    """Find the files of a full set; their content is not looked at.

    Returns:
        Those in the folder, or else FashionMNIST's in Debian's package; None if there are none.

    Example:
        >>> find_files("mnist", Path("no such folder")) is None
        True
    """
    places = [[folder / file for file in SETS[key].files]]
    if key == "fashionmnist":
        places.append([DEBIAN / f"{name}.gz" for name in IDX])
    return next((files for files in places if all(file.is_file() for file in files)), None)


def absent(key: str, folder: Path, reason: str) -> DataError:
    """Word the error for a full set that is not there: one line, with the ways out.

    Example:
        >>> str(absent("mnist", Path("data"), "download=False")).startswith("full MNIST not found")
        True
    """
    files = SETS[key].files
    return DataError(
        f"full {SETS[key].name} not found in {folder} ({reason}): put its {len(files)} unpacked "
        f"files there ({files[0]}, ...), or set data_dir or HESSINIT_DATA to a folder that has "
        'them, or allow internet access; or ask for the shipped sample: profile "quick" '
        "(sample=True)"
    )


def read(key: str, files: Sequence[Path]) -> ImageData:
    """Read a full set.

    Args:
        key: of `SETS`.
        files: as `find_files` gives them.

    Returns:
        The data, checked against the known checksum.

    Raises:
        DataError: a file is damaged or holds something else.

    Example:
        `read("mnist", files)` gives 60000 training images of shape (1, 28, 28).
    """
    try:
        if key == "cifar10":
            train, test = (_read_cifar10(files[0].parents[1], train=part) for part in (True, False))
        else:
            train, test = _read_idx(*files[:2]), _read_idx(*files[2:])
    # What a damaged file makes of a reader: torchvision's own check (RuntimeError), a short
    # file, a wrong length, or a file that may not be read.
    except (RuntimeError, ValueError, OSError, EOFError, zlib.error, pickle.PickleError) as error:
        raise _damaged(key, files[0].parent, str(error)) from None
    data = ImageData(
        name=SETS[key].name,
        kind="full",
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        classes=SETS[key].classes,
    )
    if data.sha256 != SETS[key].sha256:
        reason = "the images and labels do not match the known checksum"
        raise _damaged(key, files[0].parent, reason)
    return data


def _damaged(key: str, place: Path, reason: str) -> DataError:
    name = SETS[key].name
    remedy = "delete that folder and load again, or put the right files there"
    if place == DEBIAN:
        remedy = "install the package dataset-fashion-mnist again, or set HESSINIT_DATA"
    return DataError(
        f"the files of {name} in {place} are damaged or are not {name} "
        f"({' '.join(reason.split()) or 'unreadable'}): {remedy}"
    )


def _read_idx(images: Path, labels: Path) -> Split:
    return _content(images, header=16).reshape(-1, 1, 28, 28), _content(labels, header=8).long()


def _content(file: Path, header: int) -> UInt8[Tensor, " n"]:
    # Behind a header of four bytes and four more for each dimension, a byte a number.
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        return torch.from_numpy(np.frombuffer(opened.read(), np.uint8, offset=header).copy())


def _read_cifar10(folder: Path, *, train: bool) -> Split:
    # CIFAR-10's files are pickles, which could run code when read. torchvision compares each
    # with its published MD5 sum before it reads any, also with download=False, and that is
    # the protection here: it stops damage and mix-ups, not somebody able to forge MD5.
    with warnings.catch_warnings():
        # Old pickles of arrays make some versions of NumPy warn; users can do nothing about it.
        warnings.simplefilter("ignore", VisibleDeprecationWarning)
        cifar = SETS["cifar10"].reader(folder, train=train, download=False)
    # torchvision turns the stored n c h w into n h w c; turn it back.
    images = np.ascontiguousarray(cifar.data.transpose(0, 3, 1, 2))
    return torch.from_numpy(images), torch.tensor(cifar.targets, dtype=torch.int64)
