"""Figures and tables of the experiment `word2vec_curvature`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.drawing.style import COLORS, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

START_NAMES = {
    "gensim": "gensim's own",
    "word2vec": "word2vec.c's",
    "one_sided": "matched inputs, outputs 0",
    "matched": "blocks matched",
    "std_1e-2": r"normal, $\sigma = 0.01$",
    "std_1e+0": r"normal, $\sigma = 1$",
}
BANDS = ("common", "middle", "rare")


def escapes(records: Sequence[Record]) -> Figure:
    """Draw how the fastest mode grows from three initializations, realized by gensim and predicted.

    Lines are medians over seeds, bands the range over seeds.
    """
    sides = (("inputs", r"inputs, $|V^\top p_1|$"), ("outputs", r"outputs, $|U^\top q_1|$"))
    ways = (("measured", "gensim"), ("predicted", "predicted"))
    with style():
        figure, axes = subplots(1, 3, figsize=(9.5, 3.8), sharey=True)
        for ax, name in zip(axes, records[0].values["escape"], strict=True):
            key = f"values.escape.{name}"
            pairs = [count / 1000 for count in look_up(records[:1], f"{key}.pairs")[0]]
            for side, (field, label) in enumerate(sides):
                for way, (part, source) in enumerate(ways):
                    rows = np.array(look_up(records, f"{key}.{part}.{field}"))
                    rows = np.where(rows > 0, rows, np.nan)  # zero outputs have no logarithm
                    shown = f"{label}, {source}" if name == "gensim" else None
                    band(ax, pairs, rows, 2 * side + way, shown)
            ax.set(title=START_NAMES[name], xlabel="observed pairs, in thousands", yscale="log")
        axes[0].set_ylabel("distance in the fastest mode,\nin units of the start's")
        figure.legend(loc="outside upper center", ncols=2)
        note_data(figure, records, "tokens")
    return figure


def curvature(records: Sequence[Record]) -> Figure:
    """Draw what the blocks around a word do while gensim trains, by start and frequency.

    Lines are medians over seeds (of medians over words), bands the range over seeds.
    """
    rows = (
        ("inputs", "norm of the\ninput block", "symlog"),
        ("cross_curvature", "norm of the curvature\nof the cross blocks", "linear"),
        ("smallest", "smallest eigenvalue\nof a word pair", "symlog"),
    )
    with style():
        figure, axes = subplots(3, 3, figsize=(9.5, 7.6), sharex=True, sharey="row")
        for index, name in enumerate(records[0].values["blocks"]):
            key = f"values.blocks.{name}"
            percent = look_up(records[:1], f"{key}.percent")[0]
            for column, group in enumerate(BANDS):
                for row, (field, _, _) in enumerate(rows):
                    values = np.array(look_up(records, f"{key}.{group}.{field}"))
                    label = START_NAMES[name] if row == column == 0 else None
                    band(axes[row, column], percent, values, index, label)
        for row, (_, label, scale) in enumerate(rows):
            axes[row, 0].set_ylabel(label)
            for ax in axes[row]:
                ax.set_xscale("symlog", linthresh=1)
                if scale == "symlog":
                    ax.set_yscale("symlog", linthresh=1e-3 if row == 0 else 0.01)
        axes[0, 0].set_ylim(bottom=0)
        for column, group in enumerate(BANDS):
            axes[0, column].set_title(f"{group} words")
            axes[2, column].set_xlabel("training [%]")
            axes[2, column].set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records, "tokens")
    return figure


def full_softmax(records: Sequence[Record]) -> Figure:
    """Draw measured against predicted norms of full-softmax Word2Vec, a point a seed."""
    with style():
        figure, axes = subplots(1, 2, figsize=(9.5, 3.8))
        for index, layer in enumerate(("inputs", "outputs")):
            rows = [row for r in records for row in r.values["softmax"] if row["layer"] == layer]
            measured = np.array([row["measured"] for row in rows])
            look = {"color": COLORS[index], "marker": MARKERS[index], "linestyle": "none"}
            at = np.array([row["deviation"] for row in rows])
            at = at * (1 + 0.06 * (index - 0.5))  # side by side
            for ax, key in zip(axes, ("predicted", "limit"), strict=True):
                found = measured / np.array([row[key] for row in rows])
                ax.plot(at, found, label=f"{layer} layer", alpha=0.7, **look)
        for ax, title in zip(axes, ("finite width", "infinite width"), strict=True):
            ax.axhline(1, color="#555555", linewidth=0.8)
            ax.set(
                title=f"Statement 6 at {title}",
                xlabel=r"deviation $\sigma$ of the vectors",
                ylabel=r"$\|H\|_F$ measured / predicted",
                xscale="log",
            )
        axes[0].set_ylim(0.8, 1.2)
        axes[0].legend()
        note_data(figure, records, "tokens")
    return figure


def leaving(records: Sequence[Record]) -> pd.DataFrame:
    """Table the observed pairs it takes to leave the saddle: medians over seeds, and ranges."""
    rows = {}
    for name in records[0].values["escape"]:
        key = f"values.escape.{name}"
        tokens = look_up(records, f"{key}.tokens_per_pair")
        for index, radius in enumerate(records[0].parameters["radii"]):
            measured, predicted = (
                look_up(records, f"{key}.{way}.pairs_to_leave.{index}")
                for way in ("measured", "predicted")
            )
            ratios = [
                took / expected
                for took, expected in zip(measured, predicted, strict=True)
                if math.isfinite(took)
            ]
            rows[START_NAMES[name].replace("$", "").replace(r"\sigma", "σ"), radius] = {
                "gensim [pairs]": f"{np.median(measured):,.0f}",
                "range": f"{min(measured):,.0f} to {max(measured):,.0f}",
                "predicted [pairs]": f"{np.median(predicted):,.0f}",
                "gensim [tokens]": f"{np.median(np.multiply(measured, tokens)):,.0f}",
                "gensim / predicted": f"{np.median(ratios):.2f}" if ratios else "",
            }
    table = pd.DataFrame(rows).T
    table.index.names = ["start", "radius"]
    return table


def checks(records: Sequence[Record]) -> pd.DataFrame:
    """Table the checks: the largest deviation over seeds, and what is allowed."""
    rows = {}
    for name, check in records[0].values["checks"].items():
        values = look_up(records, f"values.checks.{name}.value")
        rows[check["what"]] = {
            "found": f"{max(values):.1e}",
            "allowed": f"{check['allowed']:.0e}",
            "holds": max(values) <= check["allowed"],
        }
    return pd.DataFrame(rows).T


def dimensions(records: Sequence[Record]) -> pd.DataFrame:
    """Table the held-out losses after a short training, by dimension and start."""
    rows = {}
    for index, row in enumerate(records[0].values["dimensions"]):
        key = f"values.dimensions.{index}"
        rows[row["dimension"]] = {
            "matched deviation": row["matched_deviation"],
            **{
                f"{START_NAMES[name]} [nat]": _spread(look_up(records, f"{key}.{name}"))
                for name in ("gensim", "matched")
            },
        }
    table = pd.DataFrame(rows).T.sort_index()
    table.index.name = "dimension"
    return table


def final_losses(records: Sequence[Record]) -> pd.DataFrame:
    """Table the held-out loss before and after the training whose blocks are followed."""
    rows = {
        START_NAMES[name]: {
            "before [nat]": _spread(look_up(records, f"values.blocks.{name}.held_out.0")),
            "after [nat]": _spread(look_up(records, f"values.blocks.{name}.held_out.-1")),
        }
        for name in records[0].values["blocks"]
    }
    return pd.DataFrame(rows).T.rename(index=lambda x: x.replace("$", "").replace(r"\sigma", "σ"))


def _spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
