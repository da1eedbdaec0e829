"""Figures of the experiment `layer_structure`."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hessinit_book.chapters.layer_structure.run import SHOWN
from hessinit_book.drawing.style import COLORS, LINES, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

PARTS = {
    "hessian": r"Hessian $H_k$",
    "linearization": r"linearization $\hat H_k$",
    "residual": r"residual $R_k$",
}


def spectra(records: Sequence[Record]) -> Figure:
    """Draw all eigenvalues of each layer's Hessian and of its two parts, of the first seed."""
    activation, _ = SHOWN
    layers = records[0].values[activation]["layers"]
    with style():
        figure, axes = subplots(1, len(layers), figsize=(9.5, 3.6), squeeze=False)
        for number, (ax, layer) in enumerate(zip(axes.flat, layers.values(), strict=True), start=1):
            for index, (part, label) in enumerate(PARTS.items()):
                values = np.array(layer["spectrum"][part])[::-1]
                if not values.any():
                    label = None
                ax.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    color=COLORS[index],
                    linestyle=LINES[index],
                    label=label,
                )
            out, into = layer["shape"]
            ax.set(title=f"Layer {number}: {out} × {into} weights", xlabel="eigenvalue, by size")
            ax.set_yscale("symlog", linthresh=1e-5)
            ax.axhline(0, color="#555555", linewidth=0.6)
        axes[0, 0].set_ylabel("eigenvalue (linear below $10^{-5}$)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        note_data(figure, records[:1])
    return figure


def blocks(records: Sequence[Record]) -> Figure:
    """Draw one layer's Hessian beside the two parts it is the sum of, of the first seed.

    Thin lines separate the units of the layer: block (i, p) is the batch mean of
    $(A_b)_{ip} z_b z_b^T$.
    """
    activation, layer = SHOWN
    shown = records[0].values[activation]["shown"]
    parts = {name: np.array(matrix) for name, matrix in shown.items()}
    parts = {"hessian": parts["linearization"] + parts["residual"], **parts}
    units, inputs = records[0].values[activation]["layers"][f"layer_{layer}"]["shape"]
    scale = np.quantile(np.abs(parts["hessian"]), 0.995)
    with style(), plt.rc_context({"axes.grid": False}):
        figure, axes = subplots(1, 3, figsize=(9.5, 3.7))
        colors = ScalarMappable(Normalize(-scale, scale), "PuOr")
        for ax, (name, matrix), sign in zip(axes, parts.items(), "=+ ", strict=True):
            ax.imshow(matrix, cmap=colors.cmap, norm=colors.norm)
            ends = np.arange(units + 1) * inputs - 0.5
            ax.vlines(ends, ends[0], ends[-1], color="#777777", linewidth=0.5)
            ax.hlines(ends, ends[0], ends[-1], color="#777777", linewidth=0.5)
            middles = np.arange(units) * inputs + (inputs - 1) / 2
            ax.set_xticks(middles, np.arange(1, units + 1))
            ax.set_yticks(middles, np.arange(1, units + 1))
            title = PARTS[name].replace("_k", f"_{layer}")
            ax.set(title=title, xlabel=f"unit ({inputs} weights each)")
            ax.text(1.09, 0.5, sign, transform=ax.transAxes, fontsize=16, ha="center")
        axes[0].set_ylabel("unit")
        figure.colorbar(colors, ax=axes, shrink=0.75, label="entry", extend="both")
        note_data(figure, records[:1])
    return figure


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate every activation's layers: medians over seeds."""
    columns = {
        "norm_ratio": "‖Ĥ‖/‖H‖",
        "residual_ratio": "‖R‖/‖H‖",
        "rank.hessian": "rank of H",
        "rank_bound.hessian": "its bound",
        "rank.linearization": "rank of Ĥ",
        "rank_bound.linearization": "its bound ",
        "product_of_means_error": "error of one product",
    }
    rows = {}
    for activation in records[0].parameters["activations"]:
        for name in records[0].values[activation]["layers"]:
            key = f"values.{activation}.layers.{name}"
            rows[activation, name.removeprefix("layer_")] = {
                title: np.median(look_up(records, f"{key}.{quantity}"))
                for quantity, title in columns.items()
            }
    return pd.DataFrame(rows).T.rename_axis(["activation", "layer"]).round(3)
