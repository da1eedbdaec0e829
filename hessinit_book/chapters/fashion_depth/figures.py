"""Figures of the experiment `fashion_depth`: those of `mnist_depth`."""

from __future__ import annotations

from hessinit_book.chapters.mnist_depth.figures import (
    comparison,
    contest_table,
    contests,
    lead_over_he,
    outcomes,
    reading,
    regimes,
    scheme_losses,
    scheme_table,
    share_that_trains,
)

__all__ = [
    "comparison",
    "contest_table",
    "contests",
    "lead_over_he",
    "outcomes",
    "reading",
    "regimes",
    "scheme_losses",
    "scheme_table",
    "share_that_trains",
]
