"""Figures of the experiment `cifar_stability`; its regimes are drawn as those of `mnist_depth`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hessinit_book.drawing.regimes import regimes
from hessinit_book.drawing.style import COLORS, MARKERS, note_data, style, subplots
from hessinit_book.networks.starts import LABELS
from hessinit_book.records.records import Record, look_up

__all__ = ["regimes", "stable_rates"]


def stable_rates(records: Sequence[Record]) -> Figure:
    """Draw the largest stable rate against the bound that the Hessian gives, by scheme.

    A point is a seed. Where no rate that was tried is stable, the point lies at the bottom.
    """
    with style():
        figure, axes = subplots(1, 2, figsize=(9.5, 3.9))
        bounds = np.array([_of(records, scheme, "bound") for scheme in LABELS])
        ends = np.array([bounds.min() / 8, bounds.max() * 32])
        axes[0].plot(ends, ends, color="#555555", linewidth=0.8)
        axes[1].axhline(1, color="#555555", linewidth=0.8)
        for index, (scheme, label) in enumerate(LABELS.items()):
            looks = {"color": COLORS[index], "marker": MARKERS[index], "linestyle": "none"}
            bound, ratio = bounds[index], _of(records, scheme, "ratio")
            shown = np.maximum(ratio, 0.125)  # nothing stable: below the smallest rate tried
            axes[0].plot(bound, shown * bound, label=label, alpha=0.8, **looks)
            places = index + np.linspace(-0.2, 0.2, len(records))
            axes[1].plot(places, shown, alpha=0.8, **looks)
        axes[0].set(
            xscale="log",
            yscale="log",
            xlabel=r"$2 / \lambda_{\max}$ at the start",
            ylabel="largest stable rate",
        )
        axes[0].legend(fontsize=8)
        axes[1].set(yscale="log", ylabel=r"largest stable rate $\cdot\, \lambda_{\max} / 2$")
        axes[1].set_yticks([0.125, 0.25, 0.5, 1, 2, 4, 8, 16])
        axes[1].set_yticklabels(["none", "1/4", "1/2", "1", "2", "4", "8", "16"])
        axes[1].minorticks_off()
        axes[1].set_xticks(range(len(LABELS)), list(LABELS.values()), rotation=20)
        note_data(figure, records)
    return figure


def _of(records: Sequence[Record], scheme: str, name: str) -> np.ndarray:
    return np.array(look_up(records, f"values.rates.{scheme}.{name}"))
