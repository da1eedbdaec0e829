"""Kinds of values that parameters have, and how they are read and shown.

The upper bounds leave room for any use and keep out what no machine holds, or what overflows
in single precision: it would end a run late, with an error that names no parameter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, Field

Count = Annotated[int, Field(ge=1, le=10**9)]
"""Of steps, samples, words: of what takes time."""

Several = Annotated[int, Field(ge=2, le=10**9)]
"""Of samples, where one is too few: for a batch's variance, say."""

Units = Annotated[int, Field(ge=1, le=10**5)]
"""Of a layer, or components of a vector: of what takes memory."""

Layers = Annotated[int, Field(ge=2, le=1000)]
"""Of weights in a plain network."""

Blocks = Annotated[int, Field(ge=1, le=100)]
"""Of layers, in a network of blocks."""


def _is_not_tiny(value: float) -> float:
    if value < 1e-12:
        raise ValueError("at least 1e-12")
    return value


Rate = Annotated[float, Field(gt=0, le=1e6), AfterValidator(_is_not_tiny)]
"""A learning rate."""

Deviation = Annotated[float, Field(gt=0, le=1000), AfterValidator(_is_not_tiny)]
"""A standard deviation of weights, or a factor of it."""

Overflowing = Annotated[float, Field(gt=0, le=1e38), AfterValidator(_is_not_tiny)]
"""A deviation where it is an outcome that everything overflows."""

Loss = Annotated[float, Field(gt=0, le=1000)]
"""A loss [nat]."""

Percent = Annotated[int, Field(gt=0, lt=100)]

Seed = Annotated[int, Field(ge=0, lt=2**63)]

GensimSeeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
"""What NumPy's generator, which gensim uses, can be seeded with."""


def _is_threshold(value: float) -> float:
    if value != 0 and not 1e-8 <= value < 1:
        raise ValueError("0, or at least 1e-08 and less than 1")
    return value


Threshold = Annotated[float, AfterValidator(_is_threshold)]
"""Of the subsampling of words: gensim takes 1 and more for a count."""

Rates = Annotated[tuple[Rate, ...], Field(min_length=1)]
Deviations = Annotated[tuple[Deviation, ...], Field(min_length=1)]


def _is_corpus(value: str) -> str:
    kind, _, path = value.partition(":")
    if value not in ("sample", "text8") and (kind != "file" or not path or "\0" in path):
        raise ValueError("'sample', 'text8' or 'file:PATH'")
    if kind == "file":
        at_home(path)
    return value


CorpusName = Annotated[str, AfterValidator(_is_corpus)]
"""A text, see `hessinit_book.word2vec.corpora.load_corpus`."""

# PyYAML reads YAML 1.1, where a number with an exponent needs a point and a sign, too.
_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
_LONGEST = 80  # characters of a wrong value that an error shows


def at_home(path: str) -> Path:
    """Give a path with "~" replaced.

    Raises:
        ValueError: nothing, or the home of a user that there is not.
    """
    if not path:
        raise ValueError("a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError("a path; there is no home of that name") from None


def read_value(kind: Any, value: Any) -> Any:
    """Read a value as a field of some type means it; what makes no sense stays as it is.

    Notebooks write lists, papermill's `-p seeds '[3]'` hands over the text, and YAML's 1e-3 is
    text, too.

    Args:
        kind: the field's type.
        value: as it was given.

    Example:
        >>> read_value(tuple[float, ...], "[1e-5, 1]"), read_value(float, "1e-3")
        ((1e-05, 1), 0.001)
        >>> read_value(tuple[int, ...], [1, "2e1"]), read_value(str, "1e-3")
        ((1, '2e1'), '1e-3')
    """
    if get_origin(kind) is Annotated:
        return read_value(get_args(kind)[0], value)
    if get_origin(kind) in (Union, UnionType):
        return read_value(get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        found = as_tuple(value)
        if isinstance(found, tuple):
            return tuple(read_value(get_args(kind)[0], item) for item in found)
        return found
    if kind is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


def as_tuple(value: Any) -> Any:
    """Turn a list into a tuple, also one that came as text; leave the rest to be judged.

    Example:
        >>> as_tuple([1, 2]), as_tuple("[1e-5, 1]"), as_tuple("one")
        ((1, 2), (1e-05, 1), 'one')
    """
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):  # of JSON, or of a number with too many digits
            return value
        return as_tuple(found) if isinstance(found, list) else value
    return tuple(value) if isinstance(value, list) else value


def repeated(values: Sequence[Any]) -> bool:
    """Tell whether values occur twice; numbers that names made of them would not tell apart.

    Example:
        >>> repeated([1, 2]), repeated([0.1, 0.1000000001]), repeated([1.0, 1])
        (False, True, True)
    """
    names = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in values]
    return len(set(names)) < len(names)


def shown(value: Any) -> str:
    """Show a wrong value on one line that is not too long.

    Example:
        >>> shown("x" * 100)[-6:], shown([1])
        ('xxx...', '[1]')
    """
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
