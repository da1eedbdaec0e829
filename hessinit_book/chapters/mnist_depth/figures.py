"""Figures of the experiment `mnist_depth`; some are drawn by other modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.chapters.mnist_depth.predictors import FAMILIES, PREDICTORS
from hessinit_book.chapters.mnist_depth.reading import contest_table, contests, reading
from hessinit_book.chapters.mnist_depth.scheme_figures import (
    dropout,
    dropout_table,
    lead_over_he,
    scheme_losses,
    scheme_table,
)
from hessinit_book.chapters.mnist_depth.scores import SPLITS, networks, scores
from hessinit_book.drawing.regimes import regimes
from hessinit_book.drawing.style import COLORS, MARKERS, note_data, style, subplots
from hessinit_book.records.records import Record
from hessinit_book.statistics.prediction import best_interval

__all__ = [
    "comparison",
    "contest_table",
    "contests",
    "dropout",
    "dropout_table",
    "lead_over_he",
    "outcomes",
    "reading",
    "regimes",
    "scheme_losses",
    "scheme_table",
    "share_that_trains",
]

RANGE = (-12, 8)  # decades that are drawn; what lies outside is put at the edge
SHOWN = ("hessian_largest", "hessian_first", "gradient_norm", "best_gain")
SHOWN_LABELS = {
    "hessian_largest": r"$\log_{10}$ of the largest $\|H_k\|_F$",
    "hessian_first": r"$\log_{10} \|H_1\|_F$",
    "gradient_norm": r"$\log_{10} \|G\|$ of all parameters",
    "best_gain": r"$\log_{10} \|G\|^4 / G^\top H G$ [nat]",
}


def rate_of(records: Sequence[Record]) -> float:
    """Give the largest rate of the records, at which the figures show the networks."""
    return max(records[0].parameters["learning_rates"])


def outcomes(records: Sequence[Record]) -> Figure:
    """Draw each network's final loss against four numbers known at its initialization.

    A point is a network; shaded is the interval, learned on all of them, in which a network is
    said to train.
    """
    with style():
        table = networks(records, rate_of(records))
        figure, axes = subplots(2, 2, figsize=(9.5, 7), sharey=True)
        ceiling = 10 * table.final_loss[np.isfinite(table.final_loss)].max()
        loss = table.final_loss.clip(upper=ceiling)
        for ax, name in zip(axes.flat, SHOWN, strict=True):
            x = PREDICTORS[name].of(table).clip(*RANGE)
            low, high = best_interval(x, table.trains.to_numpy())
            ax.axvspan(max(low, x.min()), min(high, x.max()), color="#999999", alpha=0.18)
            for index, activation in enumerate(table.function.unique()):
                of = (table.function == activation).to_numpy()
                ax.scatter(
                    x[of],
                    loss[of],
                    s=12,
                    alpha=0.6,
                    color=COLORS[index],
                    marker=MARKERS[index],
                    linewidths=0,
                    label=activation if name == SHOWN[0] else None,
                )
            ax.axhline(records[0].parameters["level"], color="#555555", linewidth=0.8)
            ax.set(xlabel=SHOWN_LABELS[name], yscale="log")
        for ax in axes[:, 0]:
            ax.set_ylabel("final loss [nat]")
        figure.legend(loc="outside upper center", ncols=3, markerscale=2)
        note_data(figure, records)
    return figure


def comparison(records: Sequence[Record]) -> Figure:
    """Draw how well each number predicts training: rank correlation and balanced accuracy.

    Dots are estimates, bars 95 % bootstrap intervals over shapes.
    """
    with style():
        found = scores(networks(records, rate_of(records)))
        columns = {"spearman": "rank correlation\nwith the final loss"}
        columns |= {split: f"balanced accuracy,\n{label}" for split, label in SPLITS.items()}
        figure, axes = subplots(1, 3, figsize=(9.5, 6), sharey=True)
        places = np.arange(len(found))[::-1]
        for ax, (column, title) in zip(axes, columns.items(), strict=True):
            for place, (name, estimates) in zip(places, found.items(), strict=True):
                estimate, family = estimates[column], [*FAMILIES].index(PREDICTORS[name].family)
                ax.plot([estimate.low, estimate.high], [place] * 2, color=COLORS[family])
                ax.plot(estimate.value, place, MARKERS[family], color=COLORS[family])
            ax.axvline(0 if column == "spearman" else 0.5, color="#555555", linewidth=0.8)
            ax.set_title(title, fontsize=9)
            ax.set_xlim((-1, 1) if column == "spearman" else (0.1, 1))
        axes[0].set_yticks(places, [PREDICTORS[name].label for name in found])
        note_data(figure, records)
    return figure


def share_that_trains(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate in how many of the seeds each initialization trains, one row for each."""
    table = networks(records, rate_of(records), ours=True)
    shares = table.pivot_table(index="start", columns="shape", values="trains", aggfunc="mean")
    order = [start for start in table.start.unique() if start in shares.index]
    return shares.loc[order, table["shape"].unique()].map("{:.0%}".format)
