"""Figures and tables of the experiment `word2vec`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessinit_book.chapters.word2vec.verdict import (
    MEASURES,
    REFERENCE,
    final_difference,
    final_quality,
    token_ratios,
)
from hessinit_book.drawing.style import COLORS, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up
from hessinit_book.statistics.intervals import Interval

UNITS = {
    "wordsim353": r"rank correlation $\rho$",
    "simlex999": r"rank correlation $\rho$",
    "analogies": "share answered right",
    "held_out": "loss [nat a pair]",
}


def start_names(records: Sequence[Record]) -> dict[str, str]:
    """Map the initializations in the records to labels for readers."""
    names = {}
    for name, start in records[0].values["starts"].items():
        if name == REFERENCE:
            names[name] = "gensim's own"
        elif name == "matched":
            names[name] = rf"blocks matched, $\sigma = {start['inputs']:.2g}$"
        else:
            names[name] = rf"normal, $\sigma = {start['inputs']:g}$"
    return names


def learning_curves(records: Sequence[Record]) -> Figure:
    """Draw the four measures of quality against the tokens seen, a line for each initialization.

    Lines are medians over seeds, bands the range over seeds.
    """
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.6), sharex=True)
        for index, (name, label) in enumerate(start_names(records).items()):
            curve = f"values.starts.{name}.curve"
            tokens = look_up(records[:1], f"{curve}.tokens")[0]
            for ax, measure in zip(axes.flat, MEASURES, strict=True):
                rows = np.array(look_up(records, f"{curve}.{measure}"))
                shown = label if measure == "wordsim353" else None
                band(ax, tokens[1:], rows[:, 1:], index, shown)
        for ax, (measure, title) in zip(axes.flat, MEASURES.items(), strict=True):
            ax.set(title=title[0].upper() + title[1:], ylabel=UNITS[measure], xscale="log")
        axes[1, 1].set_yscale("log")
        for ax in axes[1]:
            ax.set_xlabel("tokens seen")
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records, "tokens")
    return figure


def tokens_needed(records: Sequence[Record], share: float = 1.0) -> Figure:
    """Draw the tokens each initialization takes to a level of quality, relative to gensim's own.

    Args:
        records: of the experiment.
        share: of the default's gain in the whole training, which is the level.
    """
    names = start_names(records)
    with style():
        figure, axes = subplots(1, 4, figsize=(9.5, 3.4), sharey=True)
        for ax, (measure, title) in zip(axes, MEASURES.items(), strict=True):
            for row, name in enumerate(names):
                ratios = np.array(token_ratios(records, name, measure, share))
                _ratio_points(ax, row, ratios)
            ax.axvline(1, color="#555555", linewidth=0.8)
            ax.set(title=title[0].upper() + title[1:], xlim=(0, 2.2))
            ax.set_xticks([0, 1, 2], ["0", "1", "never"])
            ax.set_xlabel("tokens relative to\ngensim's own start")
        axes[0].set_yticks(range(len(names)), list(names.values()))
        axes[0].invert_yaxis()
        note_data(figure, records, "tokens")
    return figure


def final_differences(records: Sequence[Record]) -> Figure:
    """Draw how the final quality differs from that of gensim's initialization, with intervals."""
    names = {key: value for key, value in start_names(records).items() if key != REFERENCE}
    with style():
        figure, axes = subplots(1, 4, figsize=(9.5, 3.2), sharey=True)
        for ax, (measure, title) in zip(axes, MEASURES.items(), strict=True):
            for row, name in enumerate(names):
                found = final_difference(records, name, measure)
                reach = [[found.mean - found.low], [found.high - found.mean]]
                ax.errorbar(
                    found.mean,
                    row,
                    xerr=None if math.isnan(found.low) else reach,
                    marker=MARKERS[(row + 1) % len(MARKERS)],
                    color=COLORS[(row + 1) % len(COLORS)],
                    capsize=3,
                )
            ax.axvline(0, color="#555555", linewidth=0.8)
            ax.set(title=title[0].upper() + title[1:], xlabel=f"difference in\n{UNITS[measure]}")
            if measure == "held_out":
                ax.set_xscale("symlog", linthresh=0.01)
                ax.tick_params(axis="x", labelrotation=45)
        axes[0].set_yticks(range(len(names)), list(names.values()))
        axes[0].invert_yaxis()
        note_data(figure, records, "tokens")
    return figure


def in_a_plane(records: Sequence[Record], starts: Sequence[str] = (REFERENCE, "matched")) -> Figure:
    """Draw chosen words in the plane of their two main components, of the first seed."""
    names = start_names(records)
    with style():
        figure, axes = subplots(1, len(starts), figsize=(9.5, 5.2))
        for ax, name in zip(axes, starts, strict=True):
            plane = records[0].values["starts"][name]["final"]["plane"]
            for index, (group, words) in enumerate(plane.items()):
                color = COLORS[index % len(COLORS)]
                x, y = np.array(list(words.values())).T
                label = group if name == starts[0] else None
                ax.scatter(x, y, s=14, color=color, marker=MARKERS[index], label=label)
                for word, point in words.items():
                    ax.annotate(
                        word, point, (2, 2), textcoords="offset points", fontsize=6.5, color=color
                    )
            ax.set(title=names[name], xlabel="first component", ylabel="second component")
        figure.legend(loc="outside upper center", ncols=6)
        note_data(figure, records, "tokens")
    return figure


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Table the final quality of each initialization: mean over seeds, and 95 % interval."""
    rows = {
        label.replace("$", "").replace(r"\sigma", "σ"): {
            title: _interval(final_quality(records, name, measure))
            for measure, title in MEASURES.items()
        }
        for name, label in start_names(records).items()
    }
    return pd.DataFrame(rows).T


def neighbors(records: Sequence[Record]) -> pd.DataFrame:
    """Table the nearest neighbors of chosen words in the first seed, by initialization."""
    return pd.DataFrame(
        {
            label.replace("$", "").replace(r"\sigma", "σ"): {
                word: ", ".join(found)
                for word, found in records[0].values["starts"][name]["final"]["neighbors"].items()
            }
            for name, label in start_names(records).items()
        }
    )


def _ratio_points(ax: Axes, row: int, ratios: np.ndarray) -> None:
    """Draw a point a seed; those that never reach the level, or late, stand at "never"."""
    at = np.where(np.isfinite(ratios), np.minimum(ratios, 2.0), 2.0)
    ax.scatter(
        at,
        row + 0.12 * (np.arange(len(at)) - (len(at) - 1) / 2),
        color=COLORS[row % len(COLORS)],
        marker=MARKERS[row % len(MARKERS)],
        s=22,
    )


def _interval(found: Interval) -> str:
    if math.isnan(found.low):
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"
