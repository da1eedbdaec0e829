"""Figures of the experiment `fashion_depth`: those of `mnist_depth`."""

from __future__ import annotations

from hessinit_book.chapters.mnist_depth.figures import (
    comparison,
    contests,
    lead_over_he,
    outcomes,
    regimes,
    scheme_losses,
    scheme_table,
    share_that_trains,
)

__all__ = [
    "comparison",
    "contests",
    "lead_over_he",
    "outcomes",
    "regimes",
    "scheme_losses",
    "scheme_table",
    "share_that_trains",
]
