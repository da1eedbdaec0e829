"""Figures of the experiment `width_scaling`."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.chapters.width_scaling.run import ITERATIONS, LAYERS, LEVELS, LOSSES, VARIANTS
from hessinit_book.drawing.style import COLORS, LINES, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up
from hessinit_book.statistics.intervals import Interval

EXPECTED = {"standard": (0, 1, 1), "mu": (-1, 0, 1)}
NORMS = {"standard": r"standard: last layer $1/N$", "mu": r"last layer $1/N^2$"}
TITLES = {
    "standard": r"last layer $1/N$, one rate",
    "mu_one_rate": r"last layer $1/N^2$, one rate",
    "mu": r"last layer $1/N^2$, rates by layer",
}
LOSS_TITLES = {"cross_entropy": "cross-entropy", "half_square": "half squared distance"}


def norms_against_width(records: Sequence[Record]) -> Figure:
    """Draw spectral norms and traces of the layer Hessians at the start against the width.

    Lines are medians over seeds, bands the range over seeds, thin lines the powers that
    theory gives, through the last median.
    """
    widths = records[0].parameters["widths"]
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.6), sharex=True)
        for row, (name, title) in enumerate(NORMS.items()):
            for column, key in enumerate(("spectral", "trace")):
                ax = axes[row, column]
                for k, layer in enumerate(LAYERS):
                    source = f"values.norms.{name}.{key}"
                    rows = np.array(look_up(records, source))[:, :, k]
                    band(ax, widths, rows, k, layer if row == column == 0 else None)
                    last = np.median(rows[:, -1])
                    power = (np.array(widths) / widths[-1]) ** EXPECTED[name][k]
                    ax.plot(widths, last * power, color=COLORS[k], linewidth=0.7)
                ax.set(title=title, xscale="log", yscale="log")
                ax.set_xticks(widths, [str(width) for width in widths], minor=False)
                ax.set_xticks([], minor=True)
                ax.set_ylabel(r"$\|H_k\|_2$" if key == "spectral" else r"$\mathrm{tr}\, H_k$")
        for ax in axes[1]:
            ax.set_xlabel("hidden width $N$")
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records)
    return figure


def slopes(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the fitted powers of the width: mean over seeds and its 95 % interval."""
    rows = {}
    for name, expected in EXPECTED.items():
        for k, layer in enumerate(LAYERS):
            row: dict[str, str] = {"theory": f"{expected[k]}"}
            for key, title in (("spectral", "spectral norm"), ("trace", "trace")):
                found = look_up(records, f"values.norms.{name}.slopes.{key}.{k}")
                row[title] = _interval(found)
            rows["1/N" if name == "standard" else "1/N²", layer] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["last layer", "layer"])


def rate_slopes(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the powers of the width that the best and the largest stable rates follow."""
    rows = {}
    names = {
        "standard": "1/N, one rate",
        "mu_one_rate": "1/N², one rate",
        "mu": "1/N², rates by layer",
    }
    for loss, title in LOSS_TITLES.items():
        for name in VARIANTS:
            key = f"values.rates.{loss}.{name}"
            rows[title, names[name]] = {
                "best rate": _interval(look_up(records, f"{key}.slope")),
                "largest stable rate": _interval(look_up(records, f"{key}.largest_slope")),
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["loss", "parametrization"])


def losses_against_rate(records: Sequence[Record]) -> Figure:
    """Draw the loss after a short training against the common rate, a line a width."""
    parameters = records[0].parameters
    rates = 2.0 ** np.array(parameters["rates"])
    widths = parameters["train_widths"]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(widths)))
    with style():
        figure, axes = subplots(2, 3, figsize=(9.5, 6.0), sharex=True, sharey="row")
        for row, loss in enumerate(LOSSES):
            for column, name in enumerate(VARIANTS):
                ax = axes[row, column]
                found = np.array(look_up(records, f"values.rates.{loss}.{name}.loss"))
                middle = np.median(found, 0)
                middle = np.where(np.isfinite(middle), middle, np.nan)
                for k, width in enumerate(widths):
                    label = f"N = {width}" if row == column == 0 else None
                    marker = MARKERS[k % len(MARKERS)]
                    ax.plot(
                        rates,
                        middle[k],
                        color=colors[k],
                        marker=marker,
                        markersize=3.5,
                        label=label,
                    )
                ax.set(xscale="log", yscale="log")
                if row == 0:
                    ax.set_title(TITLES[name])
            axes[row, 0].set_ylabel(LOSS_TITLES[loss])
            # What the smallest rate leaves is about the start: above it, training fails.
            smallest = look_up(records, f"values.rates.{loss}.standard.loss.0.0")
            axes[row, 0].set_ylim(top=1.3 * np.median(smallest))
        for ax in axes[1]:
            ax.set_xlabel(r"common rate $\gamma$")
        figure.legend(loc="outside upper center", ncols=len(widths))
        note_data(figure, records)
    return figure


def rates_against_width(records: Sequence[Record]) -> Figure:
    """Draw the best and the largest stable rate against the width.

    Lines are medians over seeds, bands the range over seeds.
    """
    widths = records[0].parameters["train_widths"]
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.2), sharex=True, sharey=True)
        for row, (loss, title) in enumerate(LOSS_TITLES.items()):
            for column, key in enumerate(("best", "largest")):
                ax = axes[row, column]
                for index, (name, label) in enumerate(TITLES.items()):
                    found = np.array(look_up(records, f"values.rates.{loss}.{name}.{key}"))
                    band(ax, widths, found, index, label if row == column == 0 else None)
                what = "best rate" if key == "best" else "largest stable rate"
                ax.set(title=f"{title}: {what}", xscale="log", yscale="log")
                ax.set_xticks(widths, [str(width) for width in widths], minor=False)
                ax.set_xticks([], minor=True)
        for ax in axes[1]:
            ax.set_xlabel("hidden width $N$")
        for ax in axes[:, 0]:
            ax.set_ylabel(r"common rate $\gamma$")
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records)
    return figure


def balanced_norms(records: Sequence[Record]) -> Figure:
    """Draw the norms of all layers before and after balancing, of the first seed."""
    depths = records[0].parameters["depths"]
    with style():
        figure, grid = subplots(1, len(depths), figsize=(9.5, 4.6), sharey=True, squeeze=False)
        for ax, depth in zip(grid[0], depths, strict=True):
            found = records[0].values["balanced"][f"depth_{depth}"]
            layers = np.arange(1, depth + 1)
            first = ax is grid[0, 0]
            label = "start" if first else None
            ax.plot(layers, found["start"], color="black", marker="o", markersize=3, label=label)
            for index, level in enumerate(LEVELS):
                rows = found[_level(level)]["norms"]
                for step in (1, len(rows) - 1):
                    ax.plot(
                        layers,
                        rows[step],
                        color=COLORS[index],
                        linestyle=LINES[2 if step == 1 else 0],
                        label=f"target {level:g} of the mean, after {step}" if first else None,
                    )
            ax.set(title=f"{depth} layers", xlabel="layer $k$", yscale="log")
        grid[0, 0].set_ylabel(r"$\|H_k\|_F$")
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
        note_data(figure, records[:1])
    return figure


def deviations(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the largest deviation from the target by iteration, medians over seeds."""
    rows = {}
    for depth in records[0].parameters["depths"]:
        for level in LEVELS:
            key = f"values.balanced.depth_{depth}.{_level(level)}.deviation"
            found = look_up(records, key)
            # One that saturates ends early, and keeps the deviation it has.
            saturated = sum(len(row) <= ITERATIONS for row in found)
            full = [row + [row[-1]] * (ITERATIONS + 1 - len(row)) for row in found]
            rows[depth, f"{level:g}"] = {
                **{
                    "start" if i == 0 else f"{i}": f"{value:.1e}"
                    for i, value in enumerate(np.median(full, 0))
                },
                "saturated": f"{saturated} of {len(found)} seeds",
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["layers", "target over mean"])


def _level(level: float) -> str:
    return f"level_{level:g}".replace(".", "_")


def _interval(values: Sequence[float]) -> str:
    found = Interval.of(values)
    return f"{found.mean:.2f}" + (f" ± {found.reach:.2f}" if len(values) > 1 else "")
