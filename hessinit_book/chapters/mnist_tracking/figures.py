"""Figures of the experiment `mnist_tracking`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.drawing.style import COLORS, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

LAYERS = ("layer_1", "layer_2", "layer_3")


def variant_names(records: Sequence[Record]) -> dict[str, str]:
    """Map the variants in the records to labels for readers."""
    schemes = {"he": "He", "glorot": "Glorot"}
    return {
        name: schemes.get(name) or rf"$\sigma_1 = {_scientific(values['start'])}$"
        for name, values in records[0].values.items()
    }


def loss_and_norms(records: Sequence[Record]) -> Figure:
    """Draw the loss and each layer's Hessian norm against the step, a line a variant.

    Lines are medians over seeds, bands the range over seeds.
    """
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.4), sharex=True)
        for index, (name, label) in enumerate(variant_names(records).items()):
            curve = f"values.{name}.loss_curve"
            steps = look_up(records[:1], f"{curve}.step")[0]
            band(axes[0, 0], steps, np.array(look_up(records, f"{curve}.mean")), index, label)
            tracked = f"values.{name}.tracked"
            steps = look_up(records[:1], f"{tracked}.steps")[0]
            for ax, layer in zip(axes.flat[1:], LAYERS, strict=True):
                key = f"{tracked}.layers.{layer}.frobenius"
                band(ax, steps, np.array(look_up(records, key)), index)
        axes[0, 0].set(title="Training loss (mean of 10 steps)", ylabel="cross-entropy [nat]")
        for number, ax in enumerate(axes.flat[1:], start=1):
            ax.set(title=f"Layer {number}: Hessian", ylabel=rf"$\|H_{number}\|_F$")
        for ax in axes.flat:
            ax.set_yscale("log")
        for ax in axes[1]:
            ax.set_xlabel("training step")
        figure.legend(loc="outside upper center", ncols=5)
        note_data(figure, records)
    return figure


def norms_at_start(records: Sequence[Record]) -> Figure:
    """Draw every layer's Hessian and gradient norm at initialization.

    Points are medians over seeds, bars the range over seeds.
    """
    with style():
        figure, axes = subplots(1, 2, figsize=(9.5, 3.6))
        names = variant_names(records)
        quantities = (
            ("frobenius", r"Hessian $\|H_k\|_F$"),
            ("gradient", r"gradient $\|\nabla_{W^k} L\|_F$"),
        )
        for ax, (quantity, title) in zip(axes, quantities, strict=True):
            for index, (name, label) in enumerate(names.items()):
                key = f"values.{name}.tracked.layers.{{}}.{quantity}.0"
                rows = np.array([look_up(records, key.format(layer)) for layer in LAYERS])
                rows = np.where(np.isfinite(rows), rows, np.nan)  # overflown: no point
                middle = np.median(rows, 1)
                x = np.arange(1, 4) + (index - (len(names) - 1) / 2) * 0.12
                ax.errorbar(
                    x,
                    middle,
                    yerr=[middle - rows.min(1), rows.max(1) - middle],
                    color=COLORS[index % len(COLORS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle="none",
                    capsize=2,
                    label=label,
                )
            ax.set(title=title, xlabel="layer $k$", xticks=(1, 2, 3), ylabel="norm at step 0")
            ax.set_yscale("log")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
        note_data(figure, records)
    return figure


def _scientific(value: float) -> str:
    """Write a power of ten as one: 10^{-5}, 0.02, 1."""
    exponent = np.log10(value)
    if abs(exponent) >= 2 and np.isclose(exponent, round(exponent)):
        return rf"10^{{{round(exponent)}}}"
    return f"{value:g}"


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate how each variant ended: medians over seeds, one row a variant."""
    columns = {
        "first_loss": "loss of step 1 [nat]",
        "steps_to_level": f"steps to loss {records[0].parameters['level']}",
        "final_loss": "final loss [nat]",
        "final_loss_spread": "its spread over steps [nat]",
        "test_accuracy": "test accuracy",
    }
    rows = {
        # Tables show no TeX.
        label.replace("$", "").replace(r"\sigma_1", "σ₁").replace("10^{", "1e").rstrip("}"): {
            title: np.median(look_up(records, f"values.{name}.{key}"))
            for key, title in columns.items()
        }
        for name, label in variant_names(records).items()
    }
    table = pd.DataFrame(rows).T.rename_axis("start").round(3)
    steps = columns["steps_to_level"]
    return table.assign(**{steps: table[steps].map("{:.0f}".format)})
