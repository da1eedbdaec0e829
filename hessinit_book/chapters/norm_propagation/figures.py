"""Figures of the experiment `norm_propagation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hessinit_book.chapters.norm_propagation.checks import DEVIATIONS, SAMPLED
from hessinit_book.chapters.norm_propagation.tables import (
    TITLES,
    close_depths,
    close_ratios,
    median_interval,
)
from hessinit_book.drawing.style import COLORS, LINES, MARKERS, note_data, style, subplots
from hessinit_book.records.records import Record, look_up


def predicted_and_measured(records: Sequence[Record]) -> Figure:
    """Draw measured against predicted norms, a panel a scheme, a point a layer.

    Points are medians over seeds.
    """
    shapes = _shapes(records)
    with style():
        figure, axes = subplots(2, 3, figsize=(9.5, 6.4))
        for ax, (name, title) in zip(axes.flat, TITLES.items(), strict=True):
            for shape in reversed(shapes):
                predicted, measured = _medians(records, name, *shape)
                ax.plot(predicted, measured, markersize=4, alpha=0.75, **_mark(records, *shape))
            ax.set(title=title, xscale="log", yscale="log")
            ends = ax.get_xlim()
            ax.plot(ends, ends, color="black", linewidth=0.8)
        for ax in axes[1]:
            ax.set_xlabel(r"predicted $\|\hat H_k\|_F$")
        for ax in axes[:, 0]:
            ax.set_ylabel(r"measured $\|\hat H_k\|_F$")
        _legends(figure, records)
        note_data(figure, records)
    return figure


def finite_width(records: Sequence[Record]) -> Figure:
    """Draw measured over predicted norms against depth over width, a panel a scheme.

    Bars reach from the lowest to the highest layer, medians over seeds. Crosses: the first
    layer's norm over what the limit of wide networks predicts.
    """
    with style():
        figure, axes = subplots(2, 3, figsize=(9.5, 6.4), sharex=True, sharey=True)
        for ax, (name, title) in zip(axes.flat, TITLES.items(), strict=True):
            for width, depth in _shapes(records):
                predicted, measured = _medians(records, name, width, depth)
                ratios, x = measured / predicted, depth / width
                mark = _mark(records, width, depth)
                ax.plot([x, x], [ratios.min(), ratios.max()], color=mark["color"], linewidth=1.2)
                ax.plot(x, np.median(ratios), markersize=5, **mark)
                limit = look_up(records[:1], f"values.schemes.{name}.w{width}_d{depth}.limit.0")
                ax.plot(x, measured[0] / limit[0], "x", markersize=4, color="#888888")
            ax.axhspan(0.9, 1.1, color="#888888", alpha=0.25, linewidth=0)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set(title=title, xscale="log", yscale="log")
        for ax in axes[1]:
            ax.set_xlabel("layers / width")
        for ax in axes[:, 0]:
            ax.set_ylabel("measured / predicted")
        _legends(figure, records)
        note_data(figure, records)
    return figure


def close_up(records: Sequence[Record]) -> Figure:
    """Draw measured over predicted norm by layer, at the largest width and close depth.

    Medians with 95 % intervals: of one network a seed, and of all networks drawn.
    """
    depth = close_depths(records)[-1]
    layers = np.arange(1, depth + 1)
    with style():
        figure, axes = subplots(2, 3, figsize=(9.5, 6.0), sharex=True, sharey=True)
        for ax, (name, title) in zip(axes.flat, TITLES.items(), strict=True):
            for index, samples in enumerate(close_ratios(records, name, depth).values()):
                found = median_interval(samples)
                ax.errorbar(
                    layers + (index - 0.5) * 0.3,
                    found.value,
                    [found.value - found.low, found.high - found.value],
                    color=COLORS[1 - index],
                    marker=MARKERS[index],
                    markersize=3.5,
                    linestyle="none",
                    linewidth=1,
                    label=f"{len(samples)} networks" if ax is axes[0, 0] else None,
                )
            ax.axhspan(0.9, 1.1, color="#888888", alpha=0.25, linewidth=0)
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set_title(title)
        for ax in axes[1]:
            ax.set_xlabel("layer $k$")
        for ax in axes[:, 0]:
            ax.set_ylabel("measured / predicted")
        figure.legend(loc="outside upper center", ncols=2)
        note_data(figure, records)
    return figure


def gain_curves(records: Sequence[Record]) -> Figure:
    """Draw the gains c and c' of the activations against the pre-activations' deviation.

    Lines by quadrature; points by Monte Carlo, with the first seed's samples.
    """
    found = records[0].values["gains"]["activations"]
    names = list(found)
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.4), sharex=True)
        titles = {"c": r"forward: $c = E f(u)^2 / E u^2$", "c_prime": r"backward: $c' = E f'(u)^2$"}
        for column, group in enumerate((names[:5], names[5:])):
            for row, (key, title) in enumerate(titles.items()):
                ax = axes[row, column]
                for index, name in enumerate(group):
                    color = COLORS[index % len(COLORS)]
                    label = name.replace("_", " ") if row == 0 else None
                    ax.plot(
                        DEVIATIONS,
                        found[name][key],
                        color=color,
                        linestyle=LINES[index],
                        label=label,
                    )
                    points = found[name]["points"][key]
                    ax.plot(SAMPLED, points, MARKERS[index], color=color, markersize=5)
                ax.set(title=title, xscale="log", ylim=(-0.05, 3.0 if row == 0 else 2.2))
                if row == 0:
                    ax.legend(fontsize=8, ncols=2)
        for ax in axes[1]:
            ax.set_xlabel(r"deviation $\sigma$ of pre-activations $u$")
        for ax in axes[:, 0]:
            ax.set_ylabel("gain")
        note_data(figure, records)
    return figure


def _shapes(records: Sequence[Record]) -> list[tuple[int, int]]:
    parameters = records[0].parameters
    return [(width, depth) for width in parameters["widths"] for depth in parameters["depths"]]


def _mark(records: Sequence[Record], width: int, depth: int) -> dict[str, Any]:
    """Say how a network's points look: color by depth, marker by width."""
    widths, depths = (sorted(records[0].parameters[key]) for key in ("widths", "depths"))
    scale = LogNorm(min(depths), 1.6 * max(depths))  # no pale yellow
    return {
        "color": plt.get_cmap("viridis")(scale(depth)),
        "marker": MARKERS[widths.index(width) % len(MARKERS)],
        "linestyle": "none",
    }


def _legends(figure: Figure, records: Sequence[Record]) -> None:
    widths, depths = (sorted(records[0].parameters[key]) for key in ("widths", "depths"))
    shades = [
        Line2D([], [], **{**_mark(records, widths[0], depth), "marker": "o"}, label=f"{depth}")
        for depth in depths
    ]
    marks = [
        Line2D([], [], **{**_mark(records, width, depths[0]), "color": "#555555"}, label=f"{width}")
        for width in widths
    ]
    first = figure.legend(
        handles=shades, title="layers", loc="outside upper left", ncols=len(depths)
    )
    figure.legend(handles=marks, title="width", loc="outside upper right", ncols=len(widths))
    figure.add_artist(first)


def _medians(
    records: Sequence[Record], scheme: str, width: int, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give predicted norms and the medians over seeds of the measured ones, by layer."""
    key = f"values.schemes.{scheme}.w{width}_d{depth}"
    predicted = np.array(look_up(records[:1], f"{key}.predicted")[0])
    return predicted, np.median(look_up(records, f"{key}.measured"), 0)
