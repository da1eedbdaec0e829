"""The figure and tables of the experiment `modern_linearization`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.chapters.modern_linearization.run import CLOSE, MOMENTS
from hessinit_book.drawing.style import COLORS, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

LABELS = {
    "gpt": "GPT",
    "gpt_tied": "GPT, tied head",
    "lstm": "LSTM",
    "vit": "vision transformer",
    "efficientnet": "EfficientNet",
}
TITLES = {"start": "at the start", "trained": "after training"}
# What a layer is for, by the last part of its name that says it.
_KINDS = {
    "tokens": "embedding",
    "positions": "positions",
    "patches": "patches",
    "qkv": "attention: queries, keys, values",
    "self_attn.in_proj": "attention: queries, keys, values",
    "attention.out": "attention: output",
    "self_attn.out_proj": "attention: output",
    "up": "first layer of a branch, before GELU",
    "linear1": "first layer of a branch, before GELU",
    "down": "second layer of a branch",
    "linear2": "second layer of a branch",
    "ih_l": "from inputs to gates",
    "hh_l": "from states to gates",
    "stem": "stem",
    "expand": "expansion",
    "depthwise": "depthwise convolution",
    "gate.squeeze": "gate: squeeze",
    "gate.excite": "gate: excite",
    "project": "projection",
    "top": "last convolution",
    "head": "head",
}


def layers_map(records: Sequence[Record]) -> Figure:
    """Draw how much of each layer's norm the linearization has, at the start and after training.

    Of the largest batch. A dot is a layer, its median over seeds; a bar the median of layers, its
    median over seeds.
    """
    networks = records[0].parameters["networks"]
    size = _sizes(records)[-1]
    with style():
        shape = {"figsize": (9.5, 1.5 + 0.55 * len(networks)), "sharex": True, "sharey": True}
        figure, axes = subplots(1, 2, **shape)
        for ax, moment in zip(axes, MOMENTS, strict=True):
            ax.axvspan(1 / CLOSE, CLOSE, color=COLORS[3], alpha=0.25, linewidth=0)
            for row, network in enumerate(networks):
                ratios = _curved(records, network, moment, size)
                lift = np.linspace(-0.25, 0.25, len(ratios))
                ax.plot(ratios, row + lift, "o", color=COLORS[0], alpha=0.7, markersize=5)
                key = f"values.networks.{network}.{moment}.b{size}.median"
                middle = float(np.median(look_up(records, key)))
                ax.vlines(middle, row - 0.38, row + 0.38, color=COLORS[2], linewidth=3)
                ax.annotate(f"{middle:.2g}", (middle, row + 0.4), ha="center", va="top", fontsize=8)
            ax.set(
                title=TITLES[moment],
                xscale="log",
                xlabel=r"$\|G_k\|_F \;/\; \|H_k\|_F$",
                ylim=(len(networks) - 0.3, -0.6),
            )
            ax.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(networks)), [LABELS[name] for name in networks])
        axes[0].annotate(
            "within 25%", (1, 1), xycoords=("data", "axes fraction"), ha="center", fontsize=8
        )
        note_data(figure, records, "training images and words")
    return figure


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate by network: median of the ratio, the smallest, the share that is close."""
    columns: dict[tuple[str, str], list[str]] = {}
    networks = records[0].parameters["networks"]
    for moment in MOMENTS:
        for size in _sizes(records):
            cells = []
            for name in networks:
                key = f"values.networks.{name}.{moment}.b{size}"
                middle, least, close = (
                    float(np.median(look_up(records, f"{key}.{what}")))
                    for what in ("median", "smallest", "close")
                )
                cells.append(f"{middle:.2f} ({least:.2g}; {close:.0%})")
            columns[TITLES[moment], f"B = {size}"] = cells
    for what in ("first", "last"):
        found = [look_up(records, f"values.networks.{name}.loss.{what}") for name in networks]
        columns["training loss [nat]", what] = [f"{np.median(losses):.2f}" for losses in found]
    index = pd.Index([LABELS[name] for name in networks], name="network")
    return pd.DataFrame(columns, index=index)


def by_kind(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate what is kept and what is left out by network and kind of layer.

    Medians over layers of a kind and seeds, of the largest batch.
    """
    size, rows = _sizes(records)[-1], {}
    for network in records[0].parameters["networks"]:
        names = records[0].values["networks"][network]["names"]
        kinds = [kind_of(name) for name in names]
        for kind in dict.fromkeys(kinds):
            chosen = [i for i, found in enumerate(kinds) if found == kind]
            row = {}
            for moment in MOMENTS:
                for what, title in (("linearization", "G / H"), ("residual", "R / H")):
                    key = f"values.networks.{network}.{moment}.b{size}.{what}"
                    cells = np.array(look_up(records, key))[:, chosen]
                    row[TITLES[moment], title] = f"{np.median(cells):.2f}"
            rows[LABELS[network], kind] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def kind_of(name: str) -> str:
    """Say what the layer of a weight is for.

    Example:
        >>> kind_of("blocks.2.attention.out.weight"), kind_of("lstm.weight_hh_l1")
        ('attention: output', 'from states to gates')
    """
    return next(kind for part, kind in _KINDS.items() if re.search(rf"(\b|_){part}", name))


def _sizes(records: Sequence[Record]) -> list[int]:
    return sorted(records[0].parameters["batch_sizes"])


def _curved(records: Sequence[Record], network: str, moment: str, size: int) -> np.ndarray:
    """Give the medians over seeds of all layers but the head, where the ratio is 1."""
    names = records[0].values["networks"][network]["names"]
    key = f"values.networks.{network}.{moment}.b{size}.linearization"
    found = np.median(look_up(records, key), 0)
    return found[[name != "head.weight" for name in names]]
