"""The parts of the book's role {num}: reading its text, combining seeds, writing numbers."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from hessinit_book.errors import RecordError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book" / "_ext"))

import book_records
import num


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b k", num.Request("a/b", "k")),
        ("a/b k .3f", num.Request("a/b", "k", "median", ".3f")),
        ("a/b k mean", num.Request("a/b", "k", "mean")),
        ("a/b  k.0\n max .1%", num.Request("a/b", "k.0", "max", ".1%")),
        ("a/b k same ,", num.Request("a/b", "k", "same", ",")),
        ("a/b k d", num.Request("a/b", "k", "median", "d")),
    ],
)
def test_parse(text: str, expected: num.Request) -> None:
    assert num.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected {num}"),
        ("a/b", "expected {num}"),
        ("a/b k average", "unknown aggregate 'average'; there is: median, mean"),
        ("a/b k .3f mean", "'.3f mean' is too much"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=re.escape(message)):
        num.parse(text)


@pytest.mark.parametrize(
    ("found", "aggregate", "expected"),
    [
        ([3.0, 1.0, 2.0], "median", [2.0]),
        ([3, 1, 2, 100], "mean", [26.5]),
        ([3.0, 1.0], "min", [1.0]),
        ([3.0, math.inf], "max", [math.inf]),
        ([3.0, 1.0, 2.0], "range", [1.0, 3.0]),
        ([1.0, 2.0, 3.0], "std", [1.0]),
        ([[1], [2]], "count", [2]),
        ([1.0, math.nan, -math.inf, True, "x"], "nonfinite", [2]),
        (["a", "b"], "first", ["a"]),
        ([7, 7], "same", [7]),
        ([math.nan, 1.0, math.inf][1:], "median", [math.inf]),
    ],
)
def test_combine(found: list[Any], aggregate: str, expected: list[Any]) -> None:
    assert num.combine(found, aggregate) == expected


@pytest.mark.parametrize(
    ("found", "aggregate", "message"),
    [
        (["a"], "median", "median needs numbers, got 'a'"),
        ([True], "mean", "mean needs numbers, got True"),
        ([math.nan, 1.0], "median", "median of values with NaN"),
        ([math.inf, -math.inf], "mean", "a value is infinite"),
        ([1.0], "std", "std needs records of two seeds or more"),
        ([1, 2], "same", "the seeds differ: 1, 2"),
        ([[1, 2]], "median", "a list of 2 (name a position)"),
        ([{"he": 1}], "first", "a mapping (name one of he)"),
    ],
)
def test_combine_refuses(found: list[Any], aggregate: str, message: str) -> None:
    with pytest.raises(RecordError, match=re.escape(message)):
        num.combine(found, aggregate)


@pytest.mark.parametrize(
    ("value", "spec", "expected"),
    [
        (0.12345, "", "0.123"),
        (23520, "", "23520"),
        (23520, ",", "23,520"),
        (5.0, "d", "5"),
        (0.934, ".1%", "93.4%"),
        (-1.5, ".1f", "−1.5"),
        (1.25e-5, ".2e", "1.25 × 10^−5"),
        (-2e8, "", "−2 × 10^8"),
        (math.inf, ".3f", "∞"),
        (-math.inf, "", "−∞"),
        (math.nan, ".3f", "NaN"),
        ("cpu", "", "cpu"),
        (True, "", "True"),
    ],
)
def test_to_nodes(value: Any, spec: str, expected: str) -> None:
    marks = {"superscript": "^"}
    parts = [marks.get(n.tagname, "") + n.astext() for n in num.to_nodes(value, spec)]
    assert "".join(parts).replace("\N{NO-BREAK SPACE}", " ") == expected


def test_to_nodes_refuses() -> None:
    with pytest.raises(RecordError, match=r"the format '\.3q' does not fit 0\.5"):
        num.to_nodes(0.5, ".3q")


def test_a_source_may_name_the_gpu(tmp_path: Path) -> None:
    for place in ("", "cuda/"):
        (tmp_path / "paper" / "trial" / place).mkdir(parents=True)
        (tmp_path / "paper" / "trial" / f"{place}seed-0.json").touch()
    (tmp_path / "paper" / "trial" / "confirmed.json").touch()
    for source, kind, place in (
        ("paper/trial", None, ""),
        ("paper/trial/cuda", "cuda", "cuda/"),
    ):
        match = book_records._SOURCE.fullmatch(source)
        assert match is not None
        assert match["kind"] == kind
        found = [
            p.relative_to(tmp_path / "paper" / "trial")
            for p in book_records._files(tmp_path, source)
        ]
        assert [p.as_posix() for p in found] == [f"{place}seed-0.json", "confirmed.json"]
    assert book_records._SOURCE.fullmatch("paper/trial/gpu") is None
