"""The book's role {judged}: which figure its words ask for, and what it refuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from hessinit_book.chapters.mnist_depth.reading import OURS, Contest, clear
from hessinit_book.errors import RecordError
from hessinit_book.statistics.families import Score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book" / "_ext"))

from judged import judged


def score(value: float, *, told: bool = True) -> Score:
    """Give a score that has one value in all samples."""
    return Score(("first",) if told else (), np.full(5, value))


HELD = [
    Contest(0.1, "depth", {OURS: score(0.75), "gradient": score(0.875), "loss": score(0.75)}, []),
    Contest(0.02, "depth", {OURS: score(0.5, told=False), "loss": score(0.5, told=False)}, ["x"]),
]


@pytest.mark.parametrize(
    ("words", "figure"),
    [
        (f"0.1 depth {OURS}", "0.75 [0.75, 0.75]"),
        ("0.1 depth gradient ahead", "−0.12 [−0.12, −0.12]"),
        ("clear", "1 of 2"),
    ],
)
def test_figure(words: str, figure: str) -> None:
    assert judged(HELD, words.split()) == figure
    assert clear(HELD) == (1, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "expected {judged}"),
        ("0.1 depth", "expected {judged}"),
        ("0.1 depth gradient behind", "expected {judged}"),
        ("0.3 depth gradient", "there is no test '0.3 depth gradient'"),
        ("0.1 depth size", "there is no test '0.1 depth size'"),
        ("0.02 depth loss", "no fold of 0.02 depth loss tells anything"),
    ],
)
def test_refused(words: str, message: str) -> None:
    with pytest.raises(RecordError, match=re.escape(message)):
        judged(HELD, words.split())
