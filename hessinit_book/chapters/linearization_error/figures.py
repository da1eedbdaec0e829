"""Figures of the experiment `linearization_error`."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessinit_book.chapters.linearization_error.run import CLOSE, PIECEWISE_LINEAR
from hessinit_book.chapters.linearization_error.trained import ERRORS, MOMENTS
from hessinit_book.drawing.style import COLORS, LINES, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

PLACES = {"first": "first layer", "middle": "middle layer", "upper": "layer $n - 1$"}
NORMS = {"frobenius": r"$\|R_k\|_F / \|H_k\|_F$", "spectral": r"$\|R_k\|_2 / \|H_k\|_2$"}
AXES = {"width": "units of each hidden layer", "depth": "layers of weights $n$"}


def deviation_map(records: Sequence[Record]) -> Figure:
    """Draw the ratio of residual and Hessian for each activation and deviation.

    Dots: larger and darker with the ratio, which stands in or beside them; medians over seeds.
    """
    deviations = records[0].parameters["deviations"]
    names = records[0].parameters["activations"]
    colors = plt.get_cmap("cividis_r")
    with style():
        size = (9.5, 1.6 + 0.62 * len(names))
        figure, axes = subplots(2, 3, figsize=size, sharex=True, sharey=True)
        for row, (norm, title) in zip(axes, NORMS.items(), strict=True):
            for ax, (place, where) in zip(row, PLACES.items(), strict=True):
                cells = _medians(records, "deviation", names, place, norm)
                for (y, x), value in np.ndenumerate(cells):
                    shade = min(value, 1.0)
                    ax.scatter(x, y, s=30 + 330 * shade, color=colors(0.1 + 0.9 * shade))
                    ink = "white" if shade > 0.45 else "black"
                    ax.text(x, y, f"{value:.2f}", color=ink, ha="center", va="center", fontsize=6.5)
                ax.set_title(f"{title}, {where}", fontsize=9)
                ax.set_xticks(range(len(deviations)), [f"{d:g}" for d in deviations])
                ax.set_yticks(range(len(names)), names)
                ax.margins(0.08)
        axes[0, 0].invert_yaxis()
        for ax in axes[1]:
            ax.set_xlabel("deviation / critical one")
        note_data(figure, records)
    return figure


def against(records: Sequence[Record], sweep: str) -> Figure:
    """Draw the ratio of residual and Hessian against the width or the depth.

    Lines are medians over seeds, bands the range over seeds.

    Args:
        records: of the experiment.
        sweep: "width" or "depth".
    """
    at = records[0].parameters[f"{sweep}s"]
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.2), sharex=True, sharey=True)
        for row, (norm, title) in zip(axes, NORMS.items(), strict=True):
            for ax, place in zip(row, ("first", "middle"), strict=True):
                for index, name in enumerate(_smooth(records)):
                    rows = np.array(look_up(records, f"values.{sweep}.{name}.{place}.{norm}"))
                    band(ax, at, rows, index, name)
                ax.set(title=PLACES[place], ylabel=title)
                _doubling(ax, at)
        for ax in axes[1]:
            ax.set_xlabel(AXES[sweep])
        _legend(figure, axes[0, 0])
        note_data(figure, records)
    return figure


def against_batch(records: Sequence[Record]) -> Figure:
    """Draw the first layer's residual against the batch size, for the two kinds of labels.

    Lines are medians over seeds, bands the range over seeds.
    """
    at = records[0].parameters["batch_sizes"]
    columns = {"batch": "labels of the data", "batch_drawn": "labels drawn from the predictions"}
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.2), sharex=True, sharey="row")
        for column, (sweep, title) in zip(axes.T, columns.items(), strict=True):
            for index, name in enumerate(_smooth(records)):
                for ax, quantity in zip(column, ("residual", "frobenius"), strict=True):
                    key = f"values.{sweep}.{name}.first.{quantity}"
                    band(ax, at, np.array(look_up(records, key)), index, name)
            column[0].set(title=title, yscale="log")
            column[1].set_xlabel("batch size $B$")
            middle = np.exp(np.mean(np.log([line.get_ydata()[0] for line in column[0].lines])))
            guide = 6 * middle * np.array(at, dtype=float) ** -0.5
            column[0].plot(at, guide, color="#555555", linewidth=3, alpha=0.5)
            column[0].annotate("slope $-1/2$", (at[0], guide[0]), va="bottom")
            for ax in column:
                _doubling(ax, at)
        axes[0, 0].set_ylabel(r"$\|R_1\|_F$")
        axes[1, 0].set_ylabel(NORMS["frobenius"].replace("k", "1"))
        _legend(figure, axes[0, 0])
        note_data(figure, records)
    return figure


def norms_and_residuals(records: Sequence[Record]) -> Figure:
    """Draw what the norms suggest against what is left out, a point an activation and deviation.

    Points are medians over seeds, of the sweep over deviations.
    """
    names = _smooth(records)
    with style():
        figure, axes = subplots(1, 3, figsize=(9.5, 3.9), sharex=True, sharey=True)
        for ax, (place, title) in zip(axes, PLACES.items(), strict=True):
            ax.axvspan(1 - CLOSE, 1 + CLOSE, color="#999999", alpha=0.2, linewidth=0)
            ratio = np.linspace(0, 1.3, 200)
            ax.plot(ratio, np.abs(1 - ratio), color="#555555", linewidth=1)
            norm_ratios = _medians(records, "deviation", names, place, "norm_ratio")
            residuals = _medians(records, "deviation", names, place, "frobenius")
            for index, name in enumerate(names):
                ax.plot(
                    norm_ratios[index],
                    residuals[index],
                    color=COLORS[index % len(COLORS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle="none",
                    label=name,
                )
            ax.set(
                title=title, xlabel=r"$\|\hat H_k\|_F / \|H_k\|_F$", xlim=(0, 1.3), ylim=(0, 1.3)
            )
        axes[0].set_ylabel(NORMS["frobenius"])
        _legend(figure, axes[0])
        note_data(figure, records)
    return figure


def bounds(records: Sequence[Record]) -> Figure:
    """Draw how far the bounds are above the norms they bound.

    Points are medians over seeds, bars the range over seeds.
    """
    names = _smooth(records)
    with style():
        figure, axes = subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
        titles = ("Frobenius norm", "spectral norm")
        for ax, norm, title in zip(axes, NORMS, titles, strict=True):
            for index, (place, label) in enumerate(PLACES.items()):
                keys = [f"values.bound.{name}.{place}.{norm}" for name in names]
                rows = np.array([look_up(records, key) for key in keys])
                middle = np.median(rows, 1)
                ax.errorbar(
                    np.arange(len(names)) + (index - 1) * 0.18,
                    middle,
                    yerr=[middle - rows.min(1), rows.max(1) - middle],
                    color=COLORS[index],
                    marker=MARKERS[index],
                    linestyle="none",
                    capsize=2,
                    label=label,
                )
            ax.axhline(1, color="#555555", linestyle=LINES[1], linewidth=1)
            ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
            ax.set(title=title, yscale="log")
        axes[0].set_ylabel("bound / norm of the residual")
        _legend(figure, axes[0])
        note_data(figure, records)
    return figure


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the ratios at the critical deviation: medians over seeds, one row an activation."""
    names, deviations = records[0].parameters["activations"], records[0].parameters["deviations"]
    nearest = int(np.argmin(np.abs(np.log(deviations))))
    columns = {
        f"{where.replace('$', '')}, {norm}": _medians(records, "deviation", names, place, norm)
        for place, where in PLACES.items()
        for norm in NORMS
    }
    table = {title: cells[:, nearest] for title, cells in columns.items()}
    return pd.DataFrame(table, index=pd.Index(names, name="activation")).round(3)


def accuracy(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the rule's errors at the start and after training, by activation.

    The median over layers and settings, with the smallest and the largest in parentheses; of
    medians over seeds.
    """
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for name in _smooth(records):
        row = {}
        for moment in MOMENTS:
            for quantity, title in ERRORS.items():
                cells = [_medians(records, moment, [name], place, quantity) for place in PLACES]
                errors = np.abs(np.array(cells) - (quantity == "norm_ratio"))
                row[moment, title] = (
                    f"{np.median(errors):.2f} ({errors.min():.2f} to {errors.max():.2f})"
                )
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("activation")


def _smooth(records: Sequence[Record]) -> list[str]:
    return [n for n in records[0].parameters["activations"] if n not in PIECEWISE_LINEAR]


def _medians(
    records: Sequence[Record], sweep: str, names: Sequence[str], place: str, quantity: str
) -> np.ndarray:
    """Give medians over seeds, shape (activations, positions of the sweep)."""
    keys = [f"values.{sweep}.{name}.{place}.{quantity}" for name in names]
    return np.array([np.median(look_up(records, key), 0) for key in keys])


def _doubling(ax: Axes, at: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(at, [f"{value:,}" for value in at])
    ax.minorticks_off()


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=7)
