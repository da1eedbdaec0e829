"""Figures of the experiment `fashion_depth`: those of `mnist_depth`."""

from __future__ import annotations

from hessinit_lib.figures.mnist_depth import comparison, contests, outcomes, share_that_trains
from hessinit_lib.figures.mnist_schemes import lead_over_he, scheme_losses, scheme_table
from hessinit_lib.figures.regimes import regimes

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
