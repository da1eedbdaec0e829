"""Figures of the experiment `word_pair_saddle`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.drawing.style import COLORS, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

STARTS = {
    "word2vec": "word2vec's start",
    "both": "both sides random",
    "matched": "blocks matched",
}
WAYS = {"predicted": "linearized", "descent": "gradient descent", "sgd": "SGD"}


def eigenvalues_at_start(records: Sequence[Record]) -> Figure:
    """Draw one seed's eigenvalues at word2vec's initialization in order, with the prediction."""
    found = records[0].values["saddle"]
    panels = (
        ("One word and its contexts", found["word"]["found"], found["word"]["predicted"]),
        ("All words", found["all"]["found"], found["all"]["at_zero"]),
    )
    labels = ("predicted at this start", "predicted at zero")
    with style():
        figure, axes = subplots(1, 2, figsize=(9.5, 3.6))
        for ax, (title, values, predicted), label in zip(axes, panels, labels, strict=True):
            rank = np.arange(1, len(values) + 1)
            ax.axhline(0, color="#888888", linewidth=0.8)
            ax.plot(rank, predicted, color=COLORS[1], linewidth=4, alpha=0.6, label=label)
            ax.plot(rank, values, color=COLORS[0], linestyle="none", marker=".", markersize=3)
            ax.plot([], [], color=COLORS[0], linestyle="none", marker=".", label="of the matrix")
            ax.set(title=title, xlabel="rank of the eigenvalue", ylabel="eigenvalue [nat]")
            # Most eigenvalues are small, and not zero.
            ax.set_yscale("symlog", linthresh=1e-4)
            ax.legend(loc="upper left")
        note_data(figure, records[:1], "pairs")
    return figure


def escapes(records: Sequence[Record]) -> Figure:
    """Draw the distance from zero against the step, a panel an escape.

    Lines are medians over seeds, bands the range over seeds; the dashed line is the distance
    at which the saddle counts as left.
    """
    variants = records[0].values["escapes"]
    rows = list(dict.fromkeys(escape["scale"] for escape in variants.values()))
    columns = list(dict.fromkeys(escape["rate"] for escape in variants.values()))
    with style():
        size = (1.5 + 2.8 * len(columns), 0.9 + 2.6 * len(rows))
        figure, axes = subplots(len(rows), len(columns), figsize=size, sharey="row", squeeze=False)
        for name, escape in variants.items():
            row, column = rows.index(escape["scale"]), columns.index(escape["rate"])
            ax = axes[row, column]
            for index, (way, label) in enumerate(WAYS.items()):
                curves = np.array(look_up(records, f"values.escapes.{name}.{way}.distance"))
                last = (row, column) == (0, 0)  # one panel names the lines
                band(ax, escape["step"], curves, index, label if last else None)
            ax.axhline(records[0].parameters["radius"], color="#888888", linestyle="--")
            ax.set_yscale("log")
            ax.set(title=rf"start x {escape['scale']:g}, $\gamma$ = {escape['rate']:g}")
        for ax in axes[-1]:
            ax.set_xlabel("training step")
        for ax in axes[:, 0]:
            ax.set_ylabel("distance from zero\n[of word2vec's start]")
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records, "pairs")
    return figure


def outputs_first(records: Sequence[Record]) -> Figure:
    """Draw the norms of both sides in one escape, and all steps to leave against predictions.

    Left: word2vec's own (the largest scale) at the middle rate; medians and range over seeds.
    Right: one point a seed and an escape.
    """
    variants = records[0].values["escapes"]
    scale = max(escape["scale"] for escape in variants.values())
    shown = [name for name, escape in variants.items() if escape["scale"] == scale]
    name = shown[len(shown) // 2]
    with style():
        figure, (left, right) = subplots(1, 2, figsize=(9.5, 3.9))
        for index, side in enumerate(("inputs", "outputs")):
            for way, line in (("sgd", index), ("predicted", None)):
                key = f"values.escapes.{name}.{way}.{side}"
                curves = np.array(look_up(records, key))
                steps = variants[name]["step"]
                if line is None:
                    left.plot(steps, np.median(curves, 0), color="#444444", linewidth=0.9)
                else:
                    band(left, steps, curves, line, f"{side}, SGD")
        left.plot([], [], color="#444444", linewidth=0.9, label="linearized")
        left.set(
            title=rf"Norm of each side, $\gamma$ = {variants[name]['rate']:g}",
            xlabel="training step",
            ylabel="norm [of word2vec's inputs]",
            ylim=(0, 2.5 * records[0].parameters["radius"]),
        )
        left.legend()
        seen: list[float] = []
        for index, (way, label) in enumerate([*WAYS.items()][1:]):
            key = "values.escapes.{}.{}.steps_to_leave"
            steps = np.array(
                [[look_up(records, key.format(v, w)) for w in ("predicted", way)] for v in variants]
            )
            x, y = steps.transpose(1, 0, 2).reshape(2, -1)
            kept = np.isfinite(x) & np.isfinite(y)
            seen += [*x[kept], *y[kept]]
            right.plot(
                x[kept],
                y[kept],
                color=COLORS[index + 1],
                marker=MARKERS[index],
                markersize=5 - 2 * index,
                linestyle="none",
                label=label,
            )
        if seen:
            right.axline((1, 1), slope=1, color="#888888", linewidth=0.8)
            right.set(xscale="log", yscale="log")
        right.set(title="Steps to leave", xlabel="linearized [steps]", ylabel="realized [steps]")
        right.legend()
        note_data(figure, records, "pairs")
    return figure


def training(records: Sequence[Record]) -> Figure:
    """Draw loss, extreme eigenvalues and norms of blocks against the step, by initialization.

    Lines are medians over seeds, bands the range over seeds.
    """
    panels = {
        "loss": ("Loss per pair and its negatives", "loss [nat]"),
        "smallest": ("Smallest eigenvalue", "eigenvalue [nat]"),
        "largest": ("Largest eigenvalue", "eigenvalue [nat]"),
        "inputs": ("Diagonal blocks of the inputs", "Frobenius norm [nat]"),
        "cross_linearization": ("Cross blocks, linearization", "Frobenius norm [nat]"),
        "cross_curvature": ("Cross blocks, curvature", "Frobenius norm [nat]"),
    }
    with style():
        figure, axes = subplots(2, 3, figsize=(10.5, 5.8), sharex=True)
        for index, (start, label) in enumerate(STARTS.items()):
            steps = look_up(records[:1], f"values.training.{start}.steps")[0]
            for ax, quantity in zip(axes.flat, panels, strict=True):
                key = f"values.training.{start}.{quantity}"
                first = label if quantity == "loss" else None
                band(ax, steps, np.array(look_up(records, key)), index, first)
        for ax, (title, unit) in zip(axes.flat, panels.values(), strict=True):
            ax.set(title=title, ylabel=unit)
            ax.set_xscale("symlog", linthresh=1)
        for ax in axes[1]:
            ax.set_xlabel("training step")
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records, "pairs")
    return figure


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the steps to leave: medians over seeds, one row an escape."""
    rows = {}
    for name, escape in records[0].values["escapes"].items():
        steps = {
            label: np.median(look_up(records, f"values.escapes.{name}.{way}.steps_to_leave"))
            for way, label in WAYS.items()
        }
        rows[escape["scale"], escape["rate"]] = {f"{k} [steps]": v for k, v in steps.items()}
    return pd.DataFrame(rows).T.rename_axis(["scale of the start", "rate"])
