"""Corpora: a small one inside gensim's wheel, text8, or any cleaned text file."""

from __future__ import annotations

import bz2
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from hessinit_book.data.download import text8
from hessinit_book.errors import DataError, ParameterError
from hessinit_book.records.records import DatasetInfo

_EXTRACT = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text, read once and kept as numbers; its end is held out.

    Attributes:
        words: the different words, in the order in which they first occur.
        train: indices into `words` of the training text, shape (n,).
        held_out: those of the held-out text, shape (m,).
        info: name, numbers of tokens, and checksum of the whole text.
    """

    words: list[str]
    train: Int32[ndarray, " n"]
    held_out: Int32[ndarray, " m"]
    info: DatasetInfo


def load_corpus(
    spec: str, *, held_out: float, data_dir: Path | None = None, tokens: int | None = None
) -> Corpus:
    """Load a corpus by name.

    Args:
        spec: "sample": the extract of the English Wikipedia among gensim's own test data, some
            450,000 tokens. "text8": the start of the English Wikipedia of 2006, which is downloaded
            once. "file:PATH": a cleaned text, words separated by white space; a relative path is
            looked up in `data_dir`, or else in $HESSINIT_DATA, or else in the current folder.
        held_out: share of the tokens, at the end, that training does not see.
        data_dir: see above.
        tokens: use only so many from the start of the text; None: all.

    Returns:
        The corpus. Its checksum is of all words joined by single spaces, so that one text has
        one checksum whichever way it came; fewer tokens are another text.

    Raises:
        ParameterError: a name that is none of the three.
        DataError: the text cannot be had, or is too short to hold anything out.

    Example:
        >>> load_corpus("sample", held_out=0.01).info.train_size
        448415
    """
    name, words = _read(spec, data_dir)
    index: dict[str, int] = {}
    some = islice(words, tokens)
    ids = np.fromiter((index.setdefault(word, len(index)) for word in some), np.int32)
    held = int(len(ids) * held_out)
    if held < 1:
        raise DataError(f"corpus {spec!r}: got {len(ids)} tokens, too few to hold out {held_out:g}")
    known = list(index)
    info = DatasetInfo(
        name=name,
        kind="full" if spec != "sample" and tokens is None else "sample",
        train_size=len(ids) - held,
        test_size=held,
        sha256=_checksum(known, ids),
    )
    return Corpus(known, ids[:-held], ids[-held:], info)


def _read(spec: str, data_dir: Path | None) -> tuple[str, Iterable[str]]:
    """Give a corpus' name for readers, and its words."""
    if spec == "sample":
        return "English Wikipedia extract in gensim's test data", _extract()
    if spec == "text8":
        return "text8", text8(data_dir).read_text(encoding="ascii").split()
    kind, _, path = spec.partition(":")
    if kind != "file" or not path:
        raise ParameterError(f"corpus: got {spec!r}, expected 'sample', 'text8' or 'file:PATH'")
    folder = data_dir or Path(os.environ.get("HESSINIT_DATA", ""))
    file = folder / path
    try:
        file = folder / Path(path).expanduser()
        return file.name, file.read_text(encoding="utf-8").split()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: no UTF-8, or a zero byte
        raise DataError(
            f"corpus {spec!r}: {file} is no readable text ({' '.join(str(error).split())})"
        ) from None


def _extract() -> Iterable[str]:
    """Read the extract as gensim's `WikiCorpus` does, without its pool of processes."""
    from gensim.corpora.wikicorpus import ARTICLE_MIN_WORDS, extract_pages, filter_wiki, tokenize
    from gensim.test.utils import datapath

    with bz2.open(datapath(_EXTRACT)) as file:
        articles: Any = ("0",)  # the namespaces wanted; gensim's annotation says a bool
        for _, text, _ in extract_pages(file, filter_namespaces=articles):
            words = tokenize(filter_wiki(text))
            if len(words) >= ARTICLE_MIN_WORDS:  # else a stub or a redirect
                yield from words


def _checksum(words: list[str], ids: Int32[ndarray, " n"]) -> str:
    digest = hashlib.sha256()
    block, separator = 1_000_000, ""
    for start in range(0, len(ids), block):
        text = " ".join(words[i] for i in ids[start : start + block].tolist())
        digest.update((separator + text).encode())
        separator = " "
    return digest.hexdigest()
