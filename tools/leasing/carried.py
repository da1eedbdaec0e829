"""What a call carries to the machine beside the working tree: wheels, and parts of the real data.

Full data sets are larger than one call may carry, so parts of them go ahead with earlier calls;
they are kept there until all parts of a file have come. CIFAR-10's files are stored as pictures,
half as large; each file comes out again byte for byte. Nothing here needs a package that is
carried.
"""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import io
import lzma
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT, SPARE = 64 * 2**20, 0.2
"""Bytes that may travel with one call, and the share of them that stays free."""

WHEELS = (
    *("annotated-types", "jaxtyping", "platformdirs", "pydantic", "pydantic-core"),
    *("tqdm", "typing-extensions", "typing-inspection", "wadler-lindig"),
)
FOR_TESTS = (
    "beartype",
    "hypothesis",
    "iniconfig",
    "packaging",
    "pluggy",
    "pygments",
    "pytest",
    "pyyaml",
    "sortedcontainers",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

_IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
MNIST = tuple(f"MNIST/raw/{name}-ubyte" for name in _IDX)
_BATCHES = ("test_batch", *(f"data_batch_{number}" for number in range(1, 6)))
CIFAR = tuple(f"cifar-10-batches-py/{name}" for name in (*_BATCHES, "batches.meta"))
TEXT = ("wiki8", "wordsim353.tsv", "simlex999.txt", "questions-words.txt")
"""A text, and words that people judged, which are among gensim's test data."""

THIRDS = 3
_CIFAR = [(file, part) for file in CIFAR for part in range(THIRDS)]
DATA = {
    "probe": [*((file, part) for file in MNIST for part in range(THIRDS)), *_CIFAR[:3]],
    "bench": _CIFAR[3:8],
    "mnist": _CIFAR[8:13],
    "cifar": _CIFAR[13:],
    "word2vec": [(file, part) for file in TEXT for part in range(THIRDS)],
    "contest": [],  # all that it takes is there
}
"""For each stage the parts of files that its call carries."""

_PART = re.compile(r"(?P<name>[\w.-]+)\.(?P<part>\d)of(?P<parts>\d)\.(?P<sum>[0-9a-f]{64})")


# Here ---------------------------------------------------------------------------------------------


def pack(folder: Path, stages: Sequence[str]) -> dict[str, int]:
    """Make what stages carry, a folder for each; give the bytes that travel with each.

    Raises:
        SystemExit: data or wheels cannot be had, or it is too much; one line.
    """
    tree, travels = tree_bytes(), {}
    for stage in stages:
        target = folder / stage
        for old in (*target.glob("wheels/*.whl"), *target.glob("data/*")):
            old.unlink()
        download((*WHEELS, *FOR_TESTS) if stage == "probe" else WHEELS, target / "wheels")
        (target / "data").mkdir(parents=True, exist_ok=True)
        for file, part in DATA[stage]:
            content, total = encoded(file)
            third = -(-len(content) // THIRDS)
            name = f"{file.replace('/', '__')}.{part}of{THIRDS}.{total}"
            (target / "data" / name).write_bytes(content[part * third : (part + 1) * third])
        travels[stage] = tree + sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
        if travels[stage] > LIMIT * (1 - SPARE):
            sys.exit(
                f"stage {stage}: {travels[stage] / 2**20:.1f} MiB travel, "
                f"expected at most {LIMIT * (1 - SPARE) / 2**20:.1f}"
            )
    return travels


def tree_bytes() -> int:
    """Add up the files of the working tree that travel: tracked, and untracked but not ignored."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    files = (ROOT / name for name in {*done.stdout.split("\0")} - {""})
    return sum(file.stat().st_size for file in files if file.is_file())


def download(names: Sequence[str], folder: Path) -> None:
    """Fetch wheels for the machine, in the versions that `constraints.txt` locks."""
    locked = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        locked[name] = version
    wanted = [f"{name}=={locked[name]}" for name in names]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    command += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["pip failed"]
        sys.exit(f"wheels: {said[-1]}")


@lru_cache(maxsize=2)
def encoded(file: str) -> tuple[bytes, str]:
    """Compress a file of the data folder; give that and the file's checksum."""
    path = source(file)
    if path is None:
        sys.exit(f"{file}: not found in {os.environ.get('HESSINIT_DATA') or 'HESSINIT_DATA'}")
    content = path.read_bytes()
    if Path(file).name in _BATCHES:
        packed = picture(content)
    elif file in TEXT:  # LZMA takes minutes for a text, and saves little
        packed = b"b" + bz2.compress(content)
    else:
        packed = b"x" + lzma.compress(content)
    assert decoded(packed) == content
    return packed, hashlib.sha256(content).hexdigest()


def source(file: str) -> Path | None:
    """Find a file in HESSINIT_DATA, or among gensim's test data."""
    from hessinit_book.word2vec import judged_set

    path = Path(os.environ.get("HESSINIT_DATA") or ".", file)
    return path if path.is_file() else judged_set(file)


_SIDE = 100  # images of a file of CIFAR-10 in a row and in a column of its picture
_IMAGE = 3 * 32 * 32
_HEAD = struct.Struct("<II")  # bytes before the pixels; bytes of all but them, compressed


def picture(content: bytes) -> bytes:
    """Store a file of CIFAR-10: its pixels as a picture, beside what stands around them."""
    import numpy as np
    from PIL import Image

    size = _SIDE**2 * _IMAGE
    start = content.index(b"T" + struct.pack("<I", size)) + 5
    pixels = np.frombuffer(content, np.uint8, size, start)
    grid = pixels.reshape(_SIDE, _SIDE, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    out, rest = io.BytesIO(), lzma.compress(content[:start] + content[start + size :])
    Image.fromarray(grid.reshape(_SIDE * 32, _SIDE * 32, 3)).save(
        out, "webp", lossless=True, quality=90, method=4
    )
    return b"p" + _HEAD.pack(start, len(rest)) + rest + out.getvalue()


# There --------------------------------------------------------------------------------------------


def decoded(packed: bytes) -> bytes:
    """Undo `encoded`."""
    if packed[:1] in b"xb":
        return (lzma if packed[:1] == b"x" else bz2).decompress(packed[1:])
    import numpy as np
    from PIL import Image

    start, size = _HEAD.unpack_from(packed, 1)
    at = 1 + _HEAD.size
    rest = lzma.decompress(packed[at : at + size])
    with Image.open(io.BytesIO(packed[at + size :]), formats=["WEBP"]) as opened:
        grid = np.asarray(opened.convert("RGB")).reshape(_SIDE, 32, _SIDE, 32, 3)
    pixels = np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3)).tobytes()
    return rest[:start] + pixels + rest[start:]


def install(carried: Path, home: Path) -> list[str]:
    """Take in what a call carried: wheels onto `sys.path`, parts of data to those that are there.

    Args:
        carried: the folder that `pack` made for a stage; it may be absent.
        home: where things are kept from call to call, outside of the working tree.

    Returns:
        A line for each file of data that became whole or is damaged.
    """
    site, parts, data = home / "site", home / "parts", home / "data"
    for wheel in sorted(carried.glob("wheels/*.whl")):
        there = site / f".{wheel.name}"
        if not there.exists():  # written anew, a library that is loaded would break its process
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(site)
            there.touch()
    if site.is_dir() and str(site) not in sys.path:
        sys.path.insert(0, str(site))
    for folder in (parts, data):
        folder.mkdir(parents=True, exist_ok=True)
    for part in carried.glob("data/*"):
        _write(parts / part.name, part.read_bytes())
    said = []
    for first in sorted(parts.iterdir()):
        match = _PART.fullmatch(first.name)
        if not match or match["part"] != "0":
            continue
        names = [
            f"{match['name']}.{number}of{match['parts']}.{match['sum']}"
            for number in range(int(match["parts"]))
        ]
        target = data / match["name"].replace("__", "/")
        if target.is_file() or not all((parts / name).is_file() for name in names):
            continue
        content = b""
        with contextlib.suppress(lzma.LZMAError, OSError, struct.error, ValueError):
            content = decoded(b"".join((parts / name).read_bytes() for name in names))
        if hashlib.sha256(content).hexdigest() == match["sum"]:
            _write(target, content)
            said.append(f"{match['name'].replace('__', '/')}: all parts are there")
        else:
            said.append(f"{match['name'].replace('__', '/')}: its parts are damaged")
    return said


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.part")
    new.write_bytes(content)
    new.replace(path)
