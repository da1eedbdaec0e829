"""Folders to write to: could they be made, and may one write there?"""

from __future__ import annotations

import stat
import tempfile
from itertools import chain
from pathlib import Path

_LOOKS = 100  # while other processes remove empty folders


def fault_of(folder: Path) -> str | None:
    """Say why there is no such folder and none can be made; None: nothing is against it.

    Nothing is written: the nearest folder above that exists counts.

    Example:
        >>> fault_of(Path("made/later"))
        >>> fault_of(Path(__file__) / "below")  # doctest: +ELLIPSIS
        '...places.py is no folder'
    """
    found = _nearest(folder)
    return found if isinstance(found, str) else None


def fault_of_writing(folder: Path) -> str | None:
    """Say why no file can be written in a folder, or in the one in which it would be made.

    A nameless temporary file is tried, so that nothing stays behind. A folder that another process
    removes in the meantime is no fault: then the one above counts.
    """
    fault = None
    for _ in range(_LOOKS):
        found = _nearest(folder)
        if isinstance(found, str):
            return found
        try:
            with tempfile.TemporaryFile(dir=found) as file:
                file.write(b"0")
        except OSError as error:
            fault = f"{found}: {error.strerror or error}"
            if not isinstance(error, FileNotFoundError):
                break
        else:
            return None
    return fault


def _nearest(folder: Path) -> Path | str:
    """Find the nearest folder that exists, or what stands in the way."""
    try:
        absolute = Path.cwd() / folder
        for path in chain((absolute,), absolute.parents):
            try:
                mode = path.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                if path.is_symlink():
                    return f"{path} is a link to nowhere"
                continue  # what is in the way, if anything, is further up
            return path if stat.S_ISDIR(mode) else f"{path} is no folder"
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a zero byte
        return getattr(error, "strerror", None) or str(error)
    return "there is no folder at all"
