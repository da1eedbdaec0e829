"""A full data set that is not there: clear errors, and downloads that leave nothing half done."""

from __future__ import annotations

import gc
import gzip
import hashlib
import http.server
import socket
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import torch
import torchvision

from hessinit_book import data
from hessinit_book.data import download, full
from hessinit_book.errors import DataError

KEYS = ("mnist", "fashionmnist", "cifar10")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No data set, no settings of the user's; gives the cache folder, which does not exist."""
    monkeypatch.delenv("HESSINIT_DATA", raising=False)
    monkeypatch.delenv("HESSINIT_OFFLINE", raising=False)
    cache = tmp_path / "cache" / "hessinit"
    for module in (full, download):
        monkeypatch.setattr(module, "user_cache_dir", lambda _name: str(cache))
    monkeypatch.setattr(full, "DEBIAN", tmp_path / "not installed")
    return cache


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request fails at once; gives the addresses asked for."""
    asked: list[str] = []

    def send(_: object, request: requests.PreparedRequest, **__: object) -> None:
        asked.append(str(request.url))
        try:
            raise socket.gaierror(-2, "Name or service not known")
        except socket.gaierror:
            raise requests.ConnectionError("a long story with a pool in it") from None

    monkeypatch.setattr(requests.Session, "send", send)
    return asked


def check_absent(message: str, folder: Path) -> None:
    """One line that names the folder and both ways out."""
    assert "\n" not in message
    assert str(folder) in message
    for part in ("HESSINIT_DATA", "data_dir", "internet", '"quick"', "sample=True"):
        assert part in message


def test_sample_needs_neither_folder_nor_network(alone: Path, no_network: list[str]) -> None:
    data.load("mnist", sample=True)
    assert not no_network
    assert not alone.exists()


# ---- a full set that is not there -------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_absent_without_download(key: str, alone: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load(key, sample=False, data_dir=tmp_path, download=False)
    check_absent(str(caught.value), tmp_path)
    with pytest.raises(DataError) as caught:
        data.load(key, sample=False, download=False)
    check_absent(str(caught.value), alone)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_setting_forbids_a_download(
    value: str, alone: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HESSINIT_OFFLINE", value)
    with pytest.raises(DataError, match="HESSINIT_OFFLINE") as caught:
        data.load("mnist", sample=False)
    check_absent(str(caught.value), alone)
    assert not no_network


@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
@pytest.mark.parametrize("key", KEYS)
def test_failed_download_leaves_nothing(
    key: str,
    value: str,
    alone: Path,
    no_network: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HESSINIT_OFFLINE", value)
    start = time.monotonic()
    with pytest.raises(DataError, match="Name or service not known") as caught:
        data.load(key, sample=False)
    assert time.monotonic() - start < 2
    check_absent(str(caught.value), alone)
    assert len(no_network) == 1
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_explicit_download_wins_over_the_offline_setting(
    alone: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HESSINIT_OFFLINE", "1")
    with pytest.raises(DataError, match="download failed"):
        data.load("mnist", sample=False, download=True)
    assert no_network


def test_name_lookup_that_hangs_is_given_up(
    alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> None:
        release.wait(10)
        raise OSError("released")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(download, "PROBE_S", 0.2)
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer within"):
        data.load("cifar10", sample=False)
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())
    release.set()


@pytest.mark.parametrize("how", ["data_dir", "HESSINIT_DATA"])
def test_folder_that_does_not_exist_is_an_error_at_once(
    how: str, alone: Path, no_network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mistyped"
    monkeypatch.setenv("HESSINIT_DATA", str(folder if how == "HESSINIT_DATA" else tmp_path))
    explicit = folder if how == "data_dir" else None
    with pytest.raises(DataError, match=f"{how} names no existing folder") as caught:
        data.load("mnist", sample=False, data_dir=explicit, download=True)
    check_absent(str(caught.value), folder)
    assert not no_network
    assert not folder.exists()


def test_environment_variable_is_honored(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("HESSINIT_DATA", str(tmp_path))
    assert full.find_folder("mnist", None) == (tmp_path, True)
    assert full.find_folder("mnist", other) == (other, True)
    monkeypatch.setenv("HESSINIT_DATA", "")
    assert full.find_folder("mnist", None) == (alone, False)


def write_like_mnist(folder: Path) -> list[tuple[str, str]]:
    """Write compressed files of two black images a split; gives names and MD5 sums."""
    folder.mkdir()
    resources = []
    for name, magic, shape in (
        ("train-images-idx3-ubyte", 0x0803, (2, 28, 28)),
        ("train-labels-idx1-ubyte", 0x0801, (2,)),
        ("t10k-images-idx3-ubyte", 0x0803, (2, 28, 28)),
        ("t10k-labels-idx1-ubyte", 0x0801, (2,)),
    ):
        header = b"".join(number.to_bytes(4, "big") for number in (magic, *shape))
        content = gzip.compress(header + bytes(torch.Size(shape).numel()), mtime=0)
        (folder / f"{name}.gz").write_bytes(content)
        resources.append((f"{name}.gz", hashlib.md5(content, usedforsecurity=False).hexdigest()))
    return resources


# ---- Debian's package of FashionMNIST ----------------------------------------------------------


def test_debian_package_is_found_and_checked(
    alone: Path, no_network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    write_like_mnist(folder)
    monkeypatch.setattr(full, "DEBIAN", folder)
    with pytest.raises(DataError, match="known checksum") as caught:
        data.load("fashion_mnist", sample=False, data_dir=tmp_path)
    assert str(folder) in str(caught.value)
    with pytest.raises(DataError, match="full MNIST not found"):
        data.load("mnist", sample=False, data_dir=tmp_path, download=False)

    black = torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2).long()
    digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x in (*black, *black))).hexdigest()
    known = replace(full.SETS["fashionmnist"], sha256=digest)
    monkeypatch.setitem(full.SETS, "fashionmnist", known)
    assert len(data.load("fashion_mnist", sample=False, data_dir=tmp_path).train_images) == 2
    assert not no_network

    file = folder / "t10k-images-idx3-ubyte.gz"
    for content in (file.read_bytes()[:-9], b"altered", b""):
        file.write_bytes(content)
        with pytest.raises(DataError, match="are damaged"):
            data.load("fashion_mnist", sample=False, data_dir=tmp_path)


# ---- downloading, from a server of our own ----------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve what looks like MNIST: two images a split; gives the folder served."""
    folder = tmp_path / "served"
    resources = write_like_mnist(folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)  # pyright: ignore

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{running.server_address[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        running.shutdown()
        thread.join()


def files_in(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def test_download_leaves_the_four_files(server: Path, alone: Path) -> None:
    # The download itself succeeds; two images are not MNIST, and are not taken for it.
    with pytest.raises(DataError, match="known checksum") as caught:
        data.load("mnist", sample=False)
    assert "\n" not in str(caught.value)
    assert files_in(alone) == sorted(full.SETS["mnist"].files)


def test_download_keeps_files_that_are_there(server: Path, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    kept = folder / "MNIST/raw/train-labels-idx1-ubyte"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    download.fetch("mnist", folder, may_make_folder=False)
    assert kept.read_text() == "mine"
    assert full.find_files("mnist", folder)
    assert files_in(folder) == sorted(full.SETS["mnist"].files)


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_download_that_breaks_off_leaves_nothing(damage: str, server: Path, alone: Path) -> None:
    file = server / "t10k-images-idx3-ubyte.gz"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"altered")
    said = {"missing": "404", "altered": "does not match the known hash"}[damage]
    with warnings.catch_warnings():
        # pooch does not close the connection on which a file was refused.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(DataError, match=f"download failed: .*{said}") as caught:
            data.load("mnist", sample=False)
        message = str(caught.value)
        del caught
        gc.collect()
    check_absent(message, alone)
    assert not alone.parent.exists()


def test_cifar10_is_unpacked_where_it_belongs(
    server: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = server / "cifar-10-batches-py"
    inside.mkdir()
    for file in full.SETS["cifar10"].files:
        (server / file).write_bytes(b"not a pickle")
    archive = server / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inside, inside.name)
    address = torchvision.datasets.MNIST.mirrors[0] + archive.name
    digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", digest)
    with pytest.raises(DataError, match="damaged"):  # torchvision knows what it should be
        data.load("cifar10", sample=False)
    assert files_in(alone) == sorted(full.SETS["cifar10"].files)


# ---- text8 --------------------------------------------------------------------------------------


def test_text8_is_absent_in_one_line(
    alone: Path, no_network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="Name or service not known"):
        download.text8(None)
    assert len(no_network) == 1
    with pytest.raises(DataError, match="there is no such folder"):
        download.text8(tmp_path / "mistyped")
    monkeypatch.setenv("HESSINIT_OFFLINE", "1")
    with pytest.raises(DataError, match="HESSINIT_OFFLINE forbids") as caught:
        download.text8(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(no_network) == 1
    assert not list(tmp_path.iterdir())


def test_text8_is_downloaded_and_nothing_is_run(
    server: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gensim's downloader fetches `__init__.py`, too, and imports it."""
    packed = gzip.compress(b" anarchism", mtime=0)
    (server / "text8.gz").write_bytes(packed)
    (server / "__init__.py").write_text("raise SystemExit")
    monkeypatch.setattr(download, "_TEXT8", f"{torchvision.datasets.MNIST.mirrors[0]}text8.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # see above
        with pytest.raises(DataError, match="does not match the known hash"):
            download.text8(None)
        gc.collect()
    assert not alone.parent.exists()
    digest = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(download, "_TEXT8_PACKED_MD5", digest)
    assert download.text8(None).read_bytes() == b" anarchism"
    assert files_in(alone) == ["text8"]
    assert "gensim.downloader" not in sys.modules


def test_pooch_is_imported_for_a_download_alone() -> None:
    code = "import sys; from hessinit_book.data import load; load('mnist', sample=True); "
    code += "sys.exit('pooch' in sys.modules or 'requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
