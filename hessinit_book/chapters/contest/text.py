"""Characters for the contest's transformer: real text, or letters that are drawn."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from hessinit_book.errors import DataError
from hessinit_book.records.records import DatasetInfo

LETTERS = 27  # space, a to z
_LENGTH = 5_000_000  # characters of the full text that are used
_DRAWN = 20_000


def read_text(data_dir: Path | None) -> tuple[Int64[Tensor, " n"], DatasetInfo]:
    """Read the first characters of text8, the cleaned Wikipedia text of 27 letters.

    Args:
        data_dir: folder that holds the file, "text8" or "wiki8"; None: HESSINIT_DATA.

    Returns:
        Letters as numbers, 0 for a space, and what they are.

    Raises:
        DataError: there is no such file, or it holds other characters.

    Source: Mahoney, "About the test data" (2011), mattmahoney.net/dc/textdata.
    """
    folder = data_dir or Path(os.environ.get("HESSINIT_DATA", "."))
    for name in ("text8", "wiki8"):
        path = folder / name
        if path.is_file():
            break
    else:
        raise DataError(f"no text8 or wiki8 in {folder}: expected text of small letters and spaces")
    with path.open("rb") as file:
        raw = file.read(_LENGTH)
    codes = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    text = torch.where(codes == ord(" "), 0, codes - ord("a") + 1)
    if not len(text) or text.min() < 0 or text.max() >= LETTERS:
        raise DataError(f"{path}: expected nothing but small letters and spaces")
    return text, _info(name, text, "full")


def draw_text(generator: torch.Generator) -> tuple[Int64[Tensor, " n"], DatasetInfo]:
    """Draw letters, each by a law that its predecessor chooses: text for a quick look.

    Args:
        generator: source of randomness.

    Example:
        >>> text, info = draw_text(torch.Generator().manual_seed(0))
        >>> len(text), info.name, info.kind
        (20000, 'drawn letters', 'sample')
    """
    laws = (2 * torch.randn(LETTERS, LETTERS, generator=generator)).softmax(1)
    cumulated = laws.cumsum(1)
    letter, text = 0, []
    for number in torch.rand(_DRAWN, generator=generator):
        letter = min(int(torch.searchsorted(cumulated[letter], number)), LETTERS - 1)
        text.append(letter)
    drawn = torch.tensor(text)
    return drawn, _info("drawn letters", drawn, "sample")


def _info(name: str, text: Tensor, kind: str) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        kind="full" if kind == "full" else "sample",
        train_size=len(text),
        test_size=0,
        sha256=hashlib.sha256(text.numpy().astype("<i8").data).hexdigest(),
    )
