"""Figures of the experiment `init_targets`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.drawing.differences import signed
from hessinit_book.drawing.style import COLORS, MARKERS, note_data, style, subplots
from hessinit_book.records.records import Record, look_up
from hessinit_book.statistics.best_rate import at_best_rate, best_rate, median
from hessinit_book.statistics.intervals import Interval

TITLES = {"relu": "ReLU", "tanh": "tanh"}
LABELS = {
    "he": "He",
    "orthogonal": "orthogonal",
    "lsuv": "LSUV",
    "equal_frobenius": "equal Frobenius norms",
    "equal_spectral": "equal spectral norms",
    "equal_centered": "equal, batch mean out",
    "equal_later": "equal after 20 steps",
    "equal_rows": "equal, cross blocks in",
    "all_one": "all norms 1",
    "most_gain": "largest predicted gain",
    "layer_rates": "He, rates 1/norm",
    "narrow_last": "last layer 1/n",
    "zero_last": "last layer zero",
    "he_sized": "He, logits 0.7",
    "centered_biases": "orthogonal, centered biases",
    "orthogonal_sized": "orthogonal, logits 0.7",
    "mirrored": "looks linear",
    "mirrored_equal": "looks linear, equal norms",
    "mirrored_small": "looks linear, logits 0.2",
    "mirrored_sized": "looks linear, logits 0.7",
    "mirrored_large": "looks linear, logits 1.4",
}


def final_losses(records: Sequence[Record]) -> Figure:
    """Draw the final loss of every initialization on every network, at its best rate.

    Points are medians over seeds, bars the range over seeds.
    """
    networks = list(records[0].values)
    starts = list(records[0].values[networks[0]])
    activations = list(dict.fromkeys(network.split("_")[0] for network in networks))
    with style():
        figure, axes = subplots(
            1, len(activations), figsize=(9.5, 0.8 + 0.27 * len(starts)), sharey=True, squeeze=False
        )
        for ax, activation in zip(axes[0], activations, strict=True):
            chosen = [network for network in networks if network.startswith(activation)]
            for index, network in enumerate(chosen):
                rows = np.array([at_best_rate(records, network, s, "final") for s in starts])
                rows = np.where(np.isfinite(rows), rows, np.nan)
                middle = np.nanmedian(rows, 1)
                y = np.arange(len(starts)) + (index - (len(chosen) - 1) / 2) * 0.22
                ax.errorbar(
                    middle,
                    y,
                    xerr=[middle - np.nanmin(rows, 1), np.nanmax(rows, 1) - middle],
                    color=COLORS[index],
                    marker=MARKERS[index],
                    markersize=4.5,
                    linestyle="none",
                    label=f"{network.split('_')[1]} layers",
                )
            ax.set(
                title=f"{TITLES[activation]} networks", xlabel="final loss [nat], at the best rate"
            )
            ax.set_xscale("log")
            ticks = (0.3, 0.5, 1, 2)
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
            if "mirrored_sized" in starts:  # what `looks_linear_` does
                row = starts.index("mirrored_sized")
                ax.axhspan(row - 0.5, row + 0.5, color="#000000", alpha=0.06)
        axes[0, 0].set_yticks(range(len(starts)), [_label(start) for start in starts])
        axes[0, 0].invert_yaxis()
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        note_data(figure, records)
    return figure


def summary(records: Sequence[Record], network: str) -> pd.DataFrame:
    """Tabulate every initialization on one network: medians over seeds, one row for each.

    "Less He's" is the mean difference of final losses, paired by seeds, with a 95 % interval.
    Steps: "-" where the loss was not reached.
    """
    level = records[0].parameters["level"]
    rates = records[0].parameters["rates"]
    rows = {}
    with_he = "he" in records[0].values[network]  # a reader may choose them
    he = at_best_rate(records, network, "he", "final") if with_he else None
    for start in records[0].values[network]:
        final = at_best_rate(records, network, start, "final")
        key = f"values.{network}.{start}"
        norms = np.median(np.array(look_up(records, f"{key}.frobenius"), dtype=float), 0)
        steps = median(at_best_rate(records, network, start, "steps"))
        rows[_label(start)] = {
            "best rate": f"{rates[best_rate(records, network, start)]:g}",
            "final loss [nat]": f"{median(final):.3f}",
            "less He's": "-" if he is None else _difference(final, he),
            f"steps to loss {level}": f"{steps:.0f}" if np.isfinite(steps) else "-",
            "diverged": f"{at_best_rate(records, network, start, 'diverged').mean():.0%}",
            "norms first, middle, last": ", ".join(f"{norm:.2g}" for norm in norms),
            "first loss [nat]": f"{np.median(look_up(records, f'{key}.first_loss')):.3f}",
        }
    return pd.DataFrame(rows).T.rename_axis("start")


def _difference(final: np.ndarray, he: np.ndarray) -> str:
    if np.isnan(final).any():
        return "diverged"
    found = Interval.of((final - he).tolist())
    if not found.mean and not found.reach > 0:  # He's itself
        return "-"
    return signed(found, 2)


def _label(start: str) -> str:
    """Name an initialization for readers; one that a reader adds goes by its own name."""
    return LABELS.get(start, start)
