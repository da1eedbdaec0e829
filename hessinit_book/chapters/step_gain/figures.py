"""Figures of the experiment `step_gain`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.chapters.step_gain.run import ACTIVATIONS, MULTIPLES, rate_name
from hessinit_book.drawing.style import COLORS, LINES, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

TITLES = {"relu": "ReLU", "tanh": "tanh"}


def realized_over_predicted(records: Sequence[Record]) -> Figure:
    """Draw realized over predicted gain of stochastic steps, with the whole Hessian and blocks.

    Lines are medians over seeds, bands the range over seeds; values beyond the axes' limits
    are cut off.
    """
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.2), sharex=True, sharey=True)
        kinds = {"ratio": "whole Hessian", "ratio_blocks": "layer blocks alone"}
        for row, (key, kind) in enumerate(kinds.items()):
            for column, name in enumerate(ACTIVATIONS):
                ax = axes[row, column]
                for index, rate in enumerate(records[0].parameters["rates"]):
                    source = f"values.{name}.stochastic.{rate_name(rate)}"
                    steps = look_up(records[:1], f"{source}.step")[0]
                    label = rf"$\gamma = {rate:g}$" if row == column == 0 else None
                    band(ax, steps, np.array(look_up(records, f"{source}.{key}")), index, label)
                ax.axhline(1, color="black", linewidth=0.8)
                ax.set(title=f"{TITLES[name]}, {kind}", ylim=(-1, 3))
        for ax in axes[:, 0]:
            ax.set_ylabel("realized / predicted gain")
        for ax in axes[1]:
            ax.set_xlabel("training step")
        figure.legend(loc="outside upper center", ncols=len(records[0].parameters["rates"]))
        note_data(figure, records)
    return figure


def line_searches(records: Sequence[Record]) -> Figure:
    """Draw the gain against the step's length, both relative to the predicted best ones.

    Columns: the first, middle and last recorded step at the middle rate. A line a seed.
    """
    rates = records[0].parameters["rates"]
    rate = rates[len(rates) // 2]
    with style():
        figure, axes = subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
        m = np.array(MULTIPLES)
        for ax, name in zip(axes, ACTIVATIONS, strict=True):
            source = f"values.{name}.stochastic.{rate_name(rate)}.searches"
            count = len(look_up(records[:1], source)[0])
            for index in range(count):
                step = look_up(records[:1], f"{source}.{index}.step")[0]
                rows = np.array(look_up(records, f"{source}.{index}.gains"))
                band(ax, MULTIPLES, rows, index, f"step {step}" if ax is axes[0] else None)
            label = "predicted" if ax is axes[0] else None
            ax.plot(
                m, 2 * m - m**2, color="black", linewidth=1.4, linestyle=(0, (1, 1)), label=label
            )
            ax.set(title=TITLES[name], xlabel=r"rate / best rate $\gamma^*$", ylim=(-3.2, 1.8))
        axes[0].set_ylabel("gain / predicted best gain")
        figure.legend(loc="outside upper center", ncols=4)
        note_data(figure, records)
    return figure


def edge_of_stability(records: Sequence[Record]) -> Figure:
    """Draw rate times half the largest eigenvalue, and the loss, in training on a whole set."""
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.0), sharex=True, sharey="row")
        for column, name in enumerate(ACTIVATIONS):
            for index, rate in enumerate(records[0].parameters["full_rates"]):
                source = f"values.{name}.full.{rate_name(rate)}"
                steps = look_up(records[:1], f"{source}.step")[0]
                label = rf"$\gamma = {rate:g}$" if column == 0 else None
                for row, key in enumerate(("stability", "loss")):
                    rows = np.array(look_up(records, f"{source}.{key}"))
                    band(axes[row, column], steps, rows, index, label if row == 0 else None)
            axes[0, column].axhline(1, color="black", linewidth=0.8)
            axes[0, column].set(title=TITLES[name], yscale="log")
            axes[1, column].set(yscale="log", xlabel="training step")
        axes[0, 0].set_ylabel(r"$\gamma\,\lambda_{\max} / 2$")
        axes[1, 0].set_ylabel("half squared distance")
        figure.legend(loc="outside upper center", ncols=len(records[0].parameters["full_rates"]))
        note_data(figure, records)
    return figure


def best_rates(records: Sequence[Record]) -> Figure:
    """Draw the predicted best rate of recorded stochastic steps, and the rate that was used.

    Thick lines are medians over seeds, bands the range over seeds.
    """
    with style():
        figure, axes = subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
        for ax, name in zip(axes, ACTIVATIONS, strict=True):
            for index, rate in enumerate(records[0].parameters["rates"]):
                source = f"values.{name}.stochastic.{rate_name(rate)}"
                steps = look_up(records[:1], f"{source}.step")[0]
                rows = np.array(look_up(records, f"{source}.best_rate"))
                ax.axhline(rate, color=COLORS[index], linewidth=0.8, linestyle=LINES[index])
                label = rf"$\gamma = {rate:g}$" if ax is axes[0] else None
                band(ax, steps, rows, index, label)
            ax.set(title=TITLES[name], xlabel="training step", yscale="log")
        axes[0].set_ylabel(r"best rate $\gamma^*$ (lines: rate used)")
        figure.legend(loc="outside upper center", ncols=len(records[0].parameters["rates"]))
        note_data(figure, records)
    return figure


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate medians over recorded steps, then over seeds, a row a training."""
    rows = {}
    for name in ACTIVATIONS:
        for kind, rates in (("stochastic", "rates"), ("full", "full_rates")):
            for rate in records[0].parameters[rates]:
                key = f"values.{name}.{kind}.{rate_name(rate)}.median"
                rows[TITLES[name], kind, rate] = {
                    title: f"{np.median(look_up(records, f'{key}.{part}')):.3g}"
                    for part, title in {
                        "ratio": "realized / predicted",
                        "ratio_blocks": "with layer blocks alone",
                        "block_share": "blocks' part of the curvature",
                        "best_rate": "best rate",
                    }.items()
                }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["activation", "batches", "rate"])
