"""Downloading a full data set: quick to give up, and leaving nothing half done."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from hessinit_book.data.full import SETS, absent, is_offline
from hessinit_book.errors import DataError

PROBE_S = 15.0
"""How long to wait for the server's first answer, in seconds."""

STALL_S = 30.0
"""How long a download may stand still, in seconds."""

# The text that gensim's downloader gives, which also runs a file that it downloads.
_TEXT8 = "https://github.com/RaRe-Technologies/gensim-data/releases/download/text8/text8.gz"
_TEXT8_PACKED_MD5 = "68799af40b6bda07dfa47a32612e5364"
_TEXT8_MD5 = "3bea1919949baf155f99411df5fada7e"


def fetch(key: str, folder: Path, *, may_make_folder: bool) -> list[Path]:
    """Download a full set, with a progress bar for each file.

    Files that are there are kept as they are; the missing ones appear when all have been
    downloaded and checked. After a failure the folder is as it was before.

    Args:
        key: of `hessinit_book.data.full.SETS`.
        folder: folder of the full sets.
        may_make_folder: make the folder if it does not exist.

    Returns:
        The files.

    Raises:
        DataError: the download failed.

    Example:
        `fetch("mnist", Path("data"), may_make_folder=True)` makes "data/MNIST/raw/...".
    """
    try:
        archives = _archives(key)
        _probe(archives[0][0])
        with (
            _folder(folder, may_make_folder),
            tempfile.TemporaryDirectory(dir=folder, prefix=".hessinit-download-") as temporary,
        ):
            for address, md5 in archives:
                _retrieve(address, md5, Path(temporary) / Path(SETS[key].files[0]).parent)
            for file in SETS[key].files:
                target = folder / file
                if not target.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (Path(temporary) / file).replace(target)
        return [folder / file for file in SETS[key].files]
    # A broken connection comes as any of many types, from requests, urllib3, ssl, tarfile or
    # gzip, and all mean the same to the user.
    except Exception as error:
        raise absent(key, folder, f"download failed: {_reason(error)}") from None


def text8(data_dir: Path | None) -> Path:
    """Give the file of text8, the first 100 MB of a cleaned Wikipedia; it is downloaded if absent.

    Args:
        data_dir: folder that holds it, as "text8"; None: HESSINIT_DATA, or the user's cache.

    Returns:
        The file; its MD5 sum is the published one.

    Raises:
        DataError: the file is not there and could not be downloaded, or is another text.

    Source: Mahoney, "About the test data" (2011), mattmahoney.net/dc/textdata.
    """
    named = data_dir or os.environ.get("HESSINIT_DATA")
    folder = Path(named or user_cache_dir("hessinit")).expanduser()
    file = folder / "text8"
    try:
        if file.exists():
            found = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
            if found == _TEXT8_MD5:
                return file
            raise ValueError(f"{file} is another text; for that one, corpus 'file:text8'")
        if named and not folder.is_dir():
            raise ValueError("there is no such folder; nothing was downloaded")
        if is_offline():
            raise ValueError("HESSINIT_OFFLINE forbids a download")
        _probe(_TEXT8)
        with (
            _folder(folder, may_make_folder=not named),
            tempfile.TemporaryDirectory(dir=folder, prefix=".hessinit-download-") as temporary,
        ):
            _retrieve(_TEXT8, _TEXT8_PACKED_MD5, Path(temporary))
            (Path(temporary) / "text8").replace(file)
        return file
    except Exception as error:  # see above
        raise DataError(
            f"corpus 'text8' not found in {folder} ({_reason(error)}): put the file text8 there, "
            "or allow internet access; or choose corpus 'file:PATH' or 'sample'"
        ) from None


def _reason(error: BaseException) -> str:
    """Say in short what happened, without the story of who passed it on."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return (" ".join(str(cause).split()) or type(cause).__name__)[:200]


def _archives(key: str) -> list[tuple[str, str]]:
    """Give address and published MD5 sum of each file to download, which torchvision knows."""
    reader = SETS[key].reader
    if key == "cifar10":
        return [(reader.url, reader.tgz_md5)]
    return [(reader.mirrors[0] + name, md5) for name, md5 in reader.resources]


def _retrieve(address: str, md5: str, folder: Path) -> None:
    """Download one archive and unpack it into a folder."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # the progress bar says enough
    name = address.rpartition("/")[2]
    is_tar = name.endswith(".tar.gz")
    # Its type is another than pooch itself asks for.
    downloader: Any = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=STALL_S)
    pooch.retrieve(
        address,
        known_hash=f"md5:{md5}",
        fname=name,
        # A tar holds the folder, too.
        path=folder.parent if is_tar else folder,
        downloader=downloader,
        processor=pooch.Untar(extract_dir=".")
        if is_tar
        else pooch.Decompress(name=name.removesuffix(".gz")),
    )


def _probe(address: str) -> None:
    """Wait for any answer from an address, at most `PROBE_S` seconds in all.

    Behind some firewalls each of a server's addresses, and the name look-up itself, runs
    into its own time-out, one after another, for minutes; only a second thread can be left
    waiting there.

    Raises:
        Exception: there was none; what the connection failed with.
    """
    import requests

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            # Any answer will do; whether the file can be had is for the download to see.
            requests.head(address, timeout=PROBE_S).close()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, name="hessinit-probe", daemon=True)
    thread.start()
    thread.join(PROBE_S)
    if not outcome:
        raise TimeoutError(f"no answer within {PROBE_S:g} s")
    if outcome[0] is not None:
        raise outcome[0]


@contextmanager
def _folder(folder: Path, may_make_folder: bool) -> Iterator[None]:
    """Make a folder and its parents; after a failure remove those made."""
    made: list[Path] = []
    if may_make_folder:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        # It fails where somebody else has put something there meanwhile; then it stays.
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise
