"""The data sets: the shipped sample, and the full sets where they are at hand."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from hessinit_book import data
from hessinit_book.data import full, shipped
from hessinit_book.errors import DataError, ParameterError

KEYS = ("mnist", "fashionmnist", "cifar10")
SIZES = {
    "mnist": (2000, 500, (1, 28, 28)),
    "fashionmnist": (1000, 500, (1, 28, 28)),
    "cifar10": (1500, 500, (3, 32, 32)),
}
FULL_SIZES = {
    "mnist": (60000, 10000),
    "fashionmnist": (60000, 10000),
    "cifar10": (50000, 10000),
}
SAMPLE_SHA256 = {
    "mnist": "f391e93121c606213c40a89017888b98db0d5c062c3296348ac3b7b2d93c8001",
    "fashionmnist": "3cc93067e39bf28b88985a9efb1d9912ef5ab7c23a0a4c1cdecfc3745a9d6008",
    "cifar10": "b6611bff662fc8bf045d56246e9dc876553aeacb58943f00528ec325d72fe1ee",
}


def as_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_samples_do_not_wait_for_torchvision() -> None:
    code = "import sys; from hessinit_book.data import load; load('mnist', sample=True); "
    code += "sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the sample -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_sample_has_the_stated_shapes(key: str) -> None:
    sample = data.load(key, sample=True)
    train, test, shape = SIZES[key]
    assert sample.kind == "sample"
    assert sample.train_images.shape == (train, *shape)
    assert sample.test_images.shape == (test, *shape)
    assert sample.train_labels.shape == (train,)
    assert sample.test_labels.shape == (test,)
    assert sample.train_images.dtype == sample.test_images.dtype == torch.uint8
    assert sample.train_labels.dtype == sample.test_labels.dtype == torch.int64
    assert len(sample.classes) == 10


@pytest.mark.parametrize("key", KEYS)
def test_sample_is_balanced_in_every_run_of_ten(key: str) -> None:
    sample = data.load(key, sample=True)
    for labels in (sample.train_labels, sample.test_labels):
        assert (labels.reshape(-1, 10) == torch.arange(10)).all()


@pytest.mark.parametrize("key", KEYS)
def test_sample_images_are_all_different(key: str) -> None:
    sample = data.load(key, sample=True)
    train, test = as_set(sample.train_images), as_set(sample.test_images)
    assert len(train) == len(sample.train_images)
    assert len(test) == len(sample.test_images)
    assert not train & test


@pytest.mark.parametrize("key", KEYS)
def test_sample_checksum_is_that_of_what_was_loaded(key: str) -> None:
    sample = data.load(key, sample=True)
    content = b"".join(
        tensor.numpy().tobytes()
        for tensor in (
            sample.train_images,
            sample.train_labels,
            sample.test_images,
            sample.test_labels,
        )
    )
    assert sample.sha256 == hashlib.sha256(content).hexdigest() == SAMPLE_SHA256[key]


def test_sample_info_says_that_it_is_a_sample() -> None:
    info = data.load("CIFAR-10", sample=True).info
    assert (info.name, info.kind, info.train_size, info.test_size) == (
        "CIFAR-10",
        "sample",
        1500,
        500,
    )
    assert info.sha256 == SAMPLE_SHA256["cifar10"]


def test_sample_pictures_look_as_they_should() -> None:
    # The first handwritten 1 is a thin stroke: bright in few pixels, dark at the border.
    one = data.load("mnist", sample=True).train_images[1, 0]
    assert one[0].sum() == 0
    assert one[:, 0].sum() == 0
    assert 0.03 < (one > 127).float().mean() < 0.2
    # A T-shirt is broad in the middle, trousers are narrow.
    clothes = data.load("fashion_mnist", sample=True).train_images[:10, 0]
    assert (clothes[0] > 0).float().mean() > 1.3 * (clothes[1] > 0).float().mean()
    # Colors are in the order red, green, blue: ships have water and sky about them.
    sample = data.load("cifar10", sample=True)
    ships = sample.train_images[sample.train_labels == 8].float().mean(dim=(0, 2, 3))
    assert ships[2] > ships[1] > ships[0]


def test_sample_files_are_small_and_documented() -> None:
    files = sorted(shipped.FOLDER.glob("*.webp"))
    assert {file.name for file in files} == set(shipped.CHECKSUMS)
    assert sum(file.stat().st_size for file in files) < 6_000_000
    readme = (shipped.FOLDER / "README.md").read_text(encoding="utf-8")
    for name, checksum in shipped.CHECKSUMS.items():
        assert f"`{name}`" in readme
        assert checksum in readme


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_damaged_sample_file_is_an_error(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sample"
    shutil.copytree(shipped.FOLDER, folder)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    file = folder / "mnist_test.webp"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-100])
    else:
        content[5000] ^= 1
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"mnist_test\.webp"):
        data.load("mnist", sample=True)
    data.load("cifar10", sample=True)


def test_missing_webp_support_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("cannot identify image file")

    monkeypatch.setattr(shipped.Image, "open", refuse)
    with pytest.raises(DataError, match="no WebP support"):
        data.load("mnist", sample=True)


# ---- names and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "CIFAR-10", "Cifar_10", "CIFAR 10"])
def test_spelling_of_a_name_does_not_matter(name: str) -> None:
    assert data.load(name, sample=True).name == "CIFAR-10"


@pytest.mark.parametrize("name", ["", "cifar", "cifar100", "imagenet"])
def test_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(ParameterError, match=r'"mnist", "fashion_mnist" and "cifar10"'):
        data.load(name, sample=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_bytes_over_255(dtype: torch.dtype) -> None:
    sample = data.load("mnist", sample=True)
    images, labels = sample.tensors("train", dtype=dtype)
    assert images.dtype == dtype
    assert (images.min(), images.max()) == (0, 1)
    assert (images * 255).round().to(torch.uint8).equal(sample.train_images)
    assert labels.equal(sample.train_labels)
    assert len(sample.tensors("test")[0]) == 500


def test_tensors_refuses_an_unknown_split() -> None:
    # TypeError where annotations are checked when the tests run.
    with pytest.raises((ValueError, TypeError), match="validation"):
        data.load("mnist", sample=True).tensors("validation")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("key", KEYS)
def test_tensors_on_the_accelerator(key: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sample = data.load(key, sample=True)
    images, labels = sample.tensors("test", device="cuda")
    assert images.device.type == labels.device.type == "cuda"
    assert images.cpu().equal(sample.tensors("test")[0])


# ---- full sets --------------------------------------------------------------------------------


def real_folder(key: str) -> Path:
    """Give the folder of the real full sets, or skip."""
    stated = os.environ.get("HESSINIT_DATA")
    if not stated:
        pytest.skip("HESSINIT_DATA is not set: the full sets are not tested")
    if not full.find_files(key, Path(stated)):
        pytest.skip(f"HESSINIT_DATA={stated} does not hold {full.SETS[key].name}")
    return Path(stated)


@pytest.mark.parametrize("key", KEYS)
def test_full_set_is_whole_and_contains_the_sample(key: str) -> None:
    real_folder(key)
    whole, sample = data.load(key, sample=False), data.load(key, sample=True)
    train, test = FULL_SIZES[key]
    shape = SIZES[key][2]
    assert whole.train_images.shape == (train, *shape)
    assert whole.test_images.shape == (test, *shape)
    assert whole.train_labels.bincount().sum() == train
    assert whole.test_labels.bincount().sum() == test
    assert whole.info.kind == "full"
    assert whole.sha256 == full.SETS[key].sha256 != sample.sha256
    assert whole.classes == sample.classes

    # MNIST's test sample is of the training set, CIFAR-10's of the test set.
    for sample_split, split in (
        ("train", "train"),
        ("test", "train" if key == "mnist" else "test"),
    ):
        images = getattr(whole, f"{split}_images")
        labels = getattr(whole, f"{split}_labels").tolist()
        known = {i.numpy().tobytes(): label for i, label in zip(images, labels, strict=True)}
        chosen = getattr(sample, f"{sample_split}_images")
        expected = getattr(sample, f"{sample_split}_labels").tolist()
        assert [known.get(image.numpy().tobytes()) for image in chosen] == expected


def test_fashion_mnist_is_named_as_in_torchvision() -> None:
    named = [name.lower() for name in torchvision.datasets.FashionMNIST.classes]
    assert named == [name.lower() for name in full.SETS["fashionmnist"].classes]


def test_class_names_are_those_of_the_files() -> None:
    folder = real_folder("cifar10")
    cifar = torchvision.datasets.CIFAR10(folder, train=False)
    assert tuple(cifar.classes) == full.SETS["cifar10"].classes


@pytest.mark.parametrize("damage", ["changed", "cut", "empty"])
@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("fashionmnist", "FashionMNIST/raw/train-labels-idx1-ubyte"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
    ],
)
def test_damaged_full_set_is_an_error(key: str, file: str, damage: str, tmp_path: Path) -> None:
    folder = real_folder(key)
    if not (folder / file).is_file():
        pytest.skip(f"{full.SETS[key].name} is at hand as a package of Debian, compressed")
    for name in full.SETS[key].files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name != file:
            (tmp_path / name).symlink_to((folder / name).resolve())
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"changed": len(content), "cut": len(content) // 2, "empty": 0}[damage]
    (tmp_path / file).write_bytes(content[:kept])
    with pytest.raises(DataError, match="damaged") as caught:
        data.load(key, sample=False, data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
