"""Figures of the experiment `norm_balance`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hessinit_book.chapters.norm_balance.drift import UNITS, layer_means, names_of_norms
from hessinit_book.chapters.norm_balance.run import RULES, units
from hessinit_book.drawing.style import COLORS, LINES, MARKERS, note_data, style, subplots
from hessinit_book.records.records import Record

SHOWN = ("he", "dropout", "lecun_small", "equal")


def profiles(records: Sequence[Record]) -> Figure:
    """Draw every layer's norm over the first layer's, in the deepest networks.

    Above, of the rules in their own units, in networks of the largest width; below, in
    tapered ones.
    """
    depth = max(records[0].parameters["depths"])
    shapes = {
        f"w{max(records[0].parameters['widths'])}_d{depth}": "equal widths",
        f"tapered_d{depth}": "tapered",
    }
    with style():
        figure, axes = subplots(2, len(SHOWN), figsize=(9.5, 5.6), sharex=True, sharey=True)
        for row, (shape, title) in zip(axes, shapes.items(), strict=True):
            for ax, name in zip(row, SHOWN, strict=True):
                rule = RULES[name]
                unit = np.array(units(rule.unit, records[0].values["shapes"][shape]))
                for index, (norm, label) in enumerate(names_of_norms(records).items()):
                    found = layer_means(records, name, shape, norm) / unit
                    ax.plot(
                        np.arange(1, len(found) + 1),
                        found / found[0],
                        color=COLORS[index],
                        linestyle=LINES[index],
                        marker=MARKERS[index],
                        markersize=3,
                        label=label,
                    )
                ax.axhspan(0.5, 2, color="#999999", alpha=0.15, linewidth=0)
                ax.set_title(f"{rule.title}\n{UNITS[rule.unit]}, {title}", fontsize=8)
                ax.set_yscale("log")
            row[0].set_ylabel("norm over the first layer's")
        for ax in axes[1]:
            ax.set_xlabel("layer $k$")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        note_data(figure, records)
    return figure
