"""How figures look: accessible colors, quiet axes, a label that says what data they show."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessinit_book.records.records import Record

# Okabe and Ito's colors, which readers with any color vision can distinguish; with a line style
# and a marker each, so that color is never the only difference.
COLORS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 2, 1, 2, 1, 2)), "--", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def style() -> AbstractContextManager[Any]:
    """Give the context in which the project's figures are drawn."""
    return mpl.rc_context(
        {
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "svg.fonttype": "path",  # looks the same on every machine
            "svg.hashsalt": "hessinit",  # the same figure is the same file
        }
    )


def subplots(*shape: int, **options: Any) -> tuple[Figure, Any]:
    """Make a figure and its axes as pyplot does, which then forgets it.

    A figure that pyplot knows of is shown by a notebook once more, at the end of the cell.

    Args:
        shape: rows and columns, one of each if left out.
        options: those of `matplotlib.pyplot.subplots`.
    """
    figure, axes = plt.subplots(*shape, **options)
    plt.close(figure)
    return figure, axes


def band(
    axes: Axes, x: Sequence[int | float], rows: np.ndarray, index: int, label: str | None = None
) -> None:
    """Draw the median over seeds as a line and the range over seeds as a band.

    Args:
        axes: where.
        x: positions, shape (steps,).
        rows: one row a seed, shape (seeds, steps); NaN where a run has diverged.
        index: which color and line style.
        label: for the legend.
    """
    rows = np.where(np.isfinite(rows), rows, np.nan)
    seen = ~np.isnan(rows).all(0)
    at, rows = np.asarray(x)[seen], rows[:, seen]
    color = COLORS[index % len(COLORS)]
    line = LINES[index % len(LINES)]
    if not seen.any():
        if label is not None:  # nothing to draw, and yet not to be passed over
            axes.plot([], [], color=color, linestyle=line, label=f"{label} (diverged)")
        return
    axes.plot(at, np.nanmedian(rows, 0), color=color, linestyle=line, label=label)
    axes.fill_between(
        at, np.nanmin(rows, 0), np.nanmax(rows, 0), color=color, alpha=0.18, linewidth=0
    )


def data_label(records: Sequence[Record], examples: str = "training images") -> str:
    """Say in a line what data, how many seeds and which device a figure shows."""
    first = records[0]
    data = first.dataset
    kind = "full" if data.kind == "full" else "SAMPLE"
    size = f"{data.train_size:,} {examples}"
    seeds = f"{len(records)} seed{'s' if len(records) > 1 else ''}"
    return f"{data.name} ({kind}, {size}) · {seeds} · {first.device.split(',')[0]}"


def note_data(figure: Figure, records: Sequence[Record], examples: str = "training images") -> None:
    """Write `data_label` into the figure, so that it goes where the figure goes."""
    figure.supxlabel(data_label(records, examples), fontsize=8, color="#555555", x=0.99, ha="right")
