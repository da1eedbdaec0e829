"""Downloading a full data set: quick to give up, and leaving nothing half done."""

from __future__ import annotations

import socket
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hessinit_book.data.full import SETS, absent

PROBE_S = 15.0
"""How long to wait for the server's first answer, in seconds."""

STALL_S = 30.0
"""How long a download may stand still, in seconds."""


def fetch(key: str, folder: Path, *, may_make_folder: bool) -> None:
    """Download a full set through torchvision.

    Files that are there are kept as they are; the missing ones appear when all have been
    downloaded and checked. After a failure the folder is as it was before.

    Args:
        key: of `hessinit_book.data.full.SETS`.
        folder: folder of the full sets.
        may_make_folder: make the folder if it does not exist.

    Raises:
        DataError: the download failed.

    Example:
        `fetch("mnist", Path("data"), may_make_folder=True)` makes "data/MNIST/raw/...".
    """
    try:
        _probe(_first_address(key))
        with (
            _folder(folder, may_make_folder),
            tempfile.TemporaryDirectory(dir=folder, prefix=".hessinit-download-") as temporary,
        ):
            with _socket_timeout(STALL_S):
                SETS[key].reader(temporary, download=True)
            for file in SETS[key].files:
                target = folder / file
                if not target.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    (Path(temporary) / file).replace(target)
    # A broken connection comes as any of many types, from urllib, http, ssl, tarfile, gzip
    # or torchvision, and all mean the same to the user.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise absent(key, folder, f"download failed: {reason[:200]}") from None


def _first_address(key: str) -> str:
    reader = SETS[key].reader
    if hasattr(reader, "mirrors"):  # MNIST and its like
        return reader.mirrors[0] + reader.resources[0][0]
    return reader.url


def _probe(address: str) -> None:
    """Wait for any answer from an address, at most `PROBE_S` seconds in all.

    Behind some firewalls each of a server's addresses, and the name look-up itself, runs
    into its own time-out, one after another, for minutes; only a second thread can be left
    waiting there.

    Raises:
        OSError: there was none.
    """
    outcome: list[OSError | None] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_S):
                outcome.append(None)
        except urllib.error.HTTPError as error:
            # An answer is an answer; whether the file can be had is for the download to see.
            error.close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)
        except Exception as error:
            outcome.append(OSError(str(error)))

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


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision sets no time-out of its own and offers no parameter for one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
