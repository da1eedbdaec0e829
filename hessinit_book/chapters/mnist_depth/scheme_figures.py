"""Figures and tables of `mnist_depth`: the named schemes, and networks with dropout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessinit_book.chapters.mnist_depth.schemes import lead, schemes, with_dropout
from hessinit_book.drawing.style import COLORS, LINES, MARKERS, note_data, style, subplots
from hessinit_book.networks.starts import LABELS
from hessinit_book.records.records import Record
from hessinit_book.statistics.intervals import Interval

NAMED = {**LABELS, "looks_linear": "looks_linear_"}
RULES = {
    "he": "He: 2 / n",
    "rescaled": "dropout, rescaled: 2p / n",
    "plain": "dropout, not rescaled: 2 / (pn)",
}
HIGHEST = 10.0  # [nat] what is drawn of a loss
NORMS = (1e-2, 1e6)  # what is drawn of norms; others are put at the edge


def scheme_losses(records: Sequence[Record]) -> Figure:
    """Draw the final loss of each named scheme against the depth, a panel an activation.

    Each initialization is at its better rate; points are medians over seeds, bars the range.
    """
    table = schemes(records, [*NAMED])
    functions = table.function.unique()
    with style():
        figure, axes = subplots(1, len(functions), figsize=(9.5, 3.8), sharey=True, squeeze=False)
        for ax, function in zip(axes.flat, functions, strict=True):
            part = table.loc[table.function == function]
            _by_depth(ax, part, NAMED, "final_loss", (0.0, HIGHEST))
            ax.set(title=function, xlabel="depth [layers]", yscale="log")
        axes.flat[0].set_ylabel("final loss [nat]")
        figure.legend(
            *axes.flat[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=6,
            fontsize=8,
        )
        note_data(figure, records)
    return figure


def scheme_table(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate final loss, test accuracy and steps to the level: medians over seeds.

    One row a shape; in each cell what a named scheme comes to at its better rate.
    """
    table = schemes(records, [*NAMED])
    rows = {}
    for key, part in table.groupby(["function", "depth"], sort=False):
        rows[key] = {
            label: _outcome(part.loc[part.start == start]) for start, label in NAMED.items()
        }
    return pd.DataFrame(rows).T.rename_axis(["activation", "depth"])


def lead_over_he(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate how far the other schemes' final losses are below He's, with intervals."""
    table = schemes(records, [*NAMED])
    columns = {
        label: lead(table, start, "he", ["function", "depth"]).gain.map(_written)
        for start, label in NAMED.items()
        if start != "he"
    }
    return pd.DataFrame(columns).rename_axis(["activation", "depth"])


def dropout(records: Sequence[Record]) -> Figure:
    """Draw first-layer norm and test accuracy of networks with dropout against the depth.

    A column a share dropped, a line a rule of the variance. Norms are those at the start, with
    one mask a sample; accuracies are without masks, at each initialization's best rate. Points are
    medians over seeds, bars the range.
    """
    table = with_dropout(records)
    drops = table["drop"].unique()
    with style():
        figure, axes = subplots(
            2, len(drops), figsize=(9.5, 6), sharex=True, sharey="row", squeeze=False
        )
        for column, drop in enumerate(drops):
            part = table.loc[table["drop"] == drop]
            norms, accuracies = axes[:, column]
            _by_depth(norms, part, RULES, "norm", NORMS)
            _by_depth(accuracies, part, RULES, "accuracy", (0.0, 1.0))
            norms.set(title=f"{drop:.0%} dropped", yscale="log")
            accuracies.set(xlabel="depth [layers]")
            accuracies.axhline(0.1, color="#555555", linewidth=0.8)
        axes[0, 0].set_ylabel(r"$\|H_1\|_F$ at the start")
        axes[1, 0].set_ylabel("test accuracy")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        note_data(figure, records)
    return figure


def dropout_table(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate networks with dropout: outcomes, and how far the rescaled rule is ahead of He's."""
    table = with_dropout(records)
    gains = lead(table, "rescaled", "he", ["drop", "depth"]).gain
    rates = len(records[0].parameters["drop_rates"])
    rows = {}
    for key, part in table.groupby(["drop", "depth"], sort=False):
        row = {}
        for rule, label in RULES.items():
            of = part.loc[part.start == rule]
            diverged = of["diverged"].sum() / (rates * len(of))
            row[label] = f"{_outcome(of)}, {diverged:.0%} diverged"
        row["2p / n ahead of He by"] = _written(gains.loc[key])
        rows[key] = row
    return pd.DataFrame(rows).T.rename_axis(["dropped", "depth"])


def _by_depth(
    ax: Axes, table: pd.DataFrame, names: dict[str, str], column: str, shown: tuple[float, float]
) -> None:
    """Draw medians and ranges over seeds against the depth, a line for each initialization."""
    depths = sorted(table.depth.unique())
    for index, (start, label) in enumerate(names.items()):
        of = table.loc[table.start == start].pivot_table(
            index="depth", columns="seed", values=column
        )
        rows = of.loc[depths].clip(*shown)
        middle = rows.median(axis=1)
        # Side by side, so that bars do not hide each other.
        at = np.arange(len(depths)) + 0.08 * (index - (len(names) - 1) / 2)
        ax.errorbar(
            at,
            middle,
            [middle - rows.min(axis=1), rows.max(axis=1) - middle],
            color=COLORS[index],
            linestyle=LINES[index],
            marker=MARKERS[index],
            markersize=4,
            linewidth=1.2,
            label=label,
        )
    ax.set_xticks(range(len(depths)), [str(depth) for depth in depths])


def _outcome(rows: pd.DataFrame) -> str:
    loss, steps = rows.final_loss.median(), rows.steps_to_level.median()
    reached = f"{steps:.0f} steps" if np.isfinite(steps) else "not reached"
    return f"{loss:.3g}, {rows.accuracy.median():.0%}, {reached}"


def _written(gain: Interval) -> str:
    if not np.isfinite(gain.mean):
        return "diverged"
    written = f"{gain.mean:+.2g}"
    return written if np.isnan(gain.low) else f"{written} [{gain.low:+.2g}, {gain.high:+.2g}]"
