"""JSON files that carry the checksum of their own content, written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hessinit_book.errors import RecordError

M = TypeVar("M", bound=BaseModel)

_WRITES = 100  # attempts: another process may remove an empty folder, or a file taken for left
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")

# A string, which stays as it is, or a list of numbers: that goes on one line, so that a file
# stays small and readable.
_STRING_OR_FLAT_LIST = re.compile(r"\"(?:[^\"\\]|\\.)*\"|\[[^\[\]{}\"]*\]")


def write(body: dict[str, Any], path: Path) -> Path:
    """Write a JSON object with its checksum atomically; its folder is made.

    Raises:
        ValueError: a number in it is not finite.
        TypeError: JSON cannot hold a value in it.
    """
    text = json.dumps({"sha256": digest(body), **body}, indent=1, allow_nan=False) + "\n"
    text = _STRING_OR_FLAT_LIST.sub(
        lambda match: match[0] if match[0][0] == '"' else " ".join(match[0].split()), text
    )
    write_atomically(path, text)
    return path


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object and compare it with its checksum, which is left out.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: it is no plain file or cannot be read; it is not whole, of another version,
            or its content does not match its checksum.
    """
    content = _content(path)
    try:
        body = json.loads(content.decode(), parse_constant=_refuse)
        if _HALF_CHARACTER.search(content):  # which no page can hold
            json.dumps(body, ensure_ascii=False).encode()
        stated = body.pop("sha256", None) if isinstance(body, dict) else None
        found = digest(body)
    except (ValueError, RecursionError) as error:  # JSON's, the encoding's, or a number's
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RecordError(
            f"{path} is not a whole JSON file ({why}); delete it and run again"
        ) from None
    if not isinstance(body, dict):
        raise RecordError(f"{path}: expected a JSON object, got {type(body).__name__}")
    if body.get("version") != 1:
        raise RecordError(f"{path}: record version {body.get('version')!r}, expected 1")
    if stated != found:
        raise RecordError(f"{path}: the content does not match its checksum (altered by hand?)")
    return body


def _content(path: Path) -> bytes:
    """Read a plain file; of a pipe that nobody writes to, reading would never end.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: it is something else, or may not be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.read_bytes()
        why = "a folder" if stat.S_ISDIR(mode) else "no plain file"
    except FileNotFoundError:
        raise
    except OSError as error:
        why = f"not to be read ({error.strerror})"
    raise RecordError(f"{path} is {why}; expected a JSON file: remove it and run again")


def validated(model: type[M], body: dict[str, Any], path: Path) -> M:
    """Check what was read against a model.

    Raises:
        RecordError: a field is missing or of another type; one line that names it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(".".join(map(str, first["loc"])).split())
        raise RecordError(f"{path}: {where}: {first['msg']}") from None


def digest(body: dict[str, Any]) -> str:
    """Compute the checksum of a JSON object, whatever the order of its keys.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    for _ in range(_WRITES - 1):
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # as `mkdir` met it
            return _write_once(path, text)
    return _write_once(path, text)


def remove_unfinished(path: Path) -> None:
    """Remove what a writer of this file has left behind that was killed."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):  # gone, or not ours to remove
            part.unlink()


def _write_once(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; records are for everybody.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
