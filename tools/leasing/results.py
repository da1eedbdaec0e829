"""What comes back from the machine: an archive for each stage, and how it gets into `results`."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

LARGEST = 16 * 2**20
"""Bytes of a file that comes back."""

FOLDERS = ("records", "logs", "done", "pace.json")
"""What an archive holds; the last is a file."""


def keep(work: Path, archive: Path) -> None:
    """Write all that runs have left so far into an archive: it is whole or as it was before."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as opened:
        for name in FOLDERS:
            if (work / name).exists():
                opened.add(work / name, name, filter=_plain)
    if out.tell() > LARGEST:
        print(f"warning: {archive.name} has {out.tell() / 2**20:.1f} MiB: it will not come back")
    archive.parent.mkdir(parents=True, exist_ok=True)
    new = work / "archive.part"  # not beside the archive, from where all comes back
    new.write_bytes(out.getvalue())
    shutil.move(new, archive)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith(".part") else member


def resume(archives: Sequence[Path], work: Path) -> None:
    """Go on from archives of earlier calls, those that are there; the first ones count.

    Raises:
        SystemExit: one is damaged; one line.
    """
    for archive in reversed(archives):
        for name, content in _members(archive) if archive.is_file() else ():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def unpack(archives: Sequence[Path], results: Path, *, replace: bool = False) -> list[Path]:
    """Put the records of archives where they belong: all of them, or none.

    Args:
        archives: what came back.
        results: folder of the records.
        replace: whether records that are there may be replaced by others.

    Returns:
        The places of the records that were written.

    Raises:
        SystemExit: an archive holds what is no record, or one is in the way; one line.
    """
    from hessinit_book.errors import RecordError
    from hessinit_book.records import records

    with tempfile.TemporaryDirectory() as made:
        found: dict[Path, Path] = {}
        for number, archive in enumerate(archives):
            for name, content in _members(archive):
                place = PurePosixPath(name)
                if place.parts[0] != "records" or "parts" in place.parts:
                    continue
                path = Path(made, str(number), *place.parts[1:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                try:
                    records.read_in_place(path)
                except (RecordError, ValueError, OSError) as error:
                    sys.exit(f"{archive}: {name} is no record ({str(error).splitlines()[0]})")
                target = results.joinpath(*place.parts[1:])
                there = target.is_file() and target.read_bytes() != content
                if (there and not replace) or (target in found):
                    sys.exit(f"{archive}: {target} is there already, and another; --replace")
                found[target] = path
        for target, path in found.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(f".{target.name}.part")
            shutil.copyfile(path, new)
            new.replace(target)
    return [*found]


def _members(archive: Path) -> list[tuple[str, bytes]]:
    """Read an archive: plain files in its folders, nothing else.

    Raises:
        SystemExit: it is damaged, or holds anything else.
    """
    found = []
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                place = PurePosixPath(member.name)
                inside = place.parts[:1] and place.parts[0] in FOLDERS and ".." not in place.parts
                if not (inside and (member.isfile() or member.isdir())):
                    sys.exit(f"{archive}: {member.name!r} does not belong there")
                file = opened.extractfile(member)
                if file is not None:
                    found.append((os.fspath(place), file.read()))
    except (tarfile.TarError, OSError, EOFError) as error:
        sys.exit(f"{archive}: no archive of a stage ({str(error).partition(chr(10))[0]})")
    return found
