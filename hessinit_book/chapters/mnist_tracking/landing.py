"""The figure of the landing page: the start decides the Hessians, layer by layer.

usage: python -m hessinit_book.chapters.mnist_tracking.landing OUT.svg RECORD.json ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hessinit_book.chapters.mnist_tracking.figures import LAYERS, variant_names
from hessinit_book.drawing.style import COLORS, LINES, MARKERS, band, note_data, style, subplots
from hessinit_book.records import records
from hessinit_book.records.records import Record, look_up


def landing(found: Sequence[Record]) -> Figure:
    """Draw the Hessian norm of each layer at the start, and the training that follows.

    Args:
        found: records of `mnist_tracking`, one a seed.
    """
    names = {n: label for n, label in variant_names(found).items() if n != "glorot"}
    with style():
        figure, (left, right) = subplots(1, 2, figsize=(9.5, 3.8))
        for index, (name, label) in enumerate(names.items()):
            key = f"values.{name}.tracked.layers.{{}}.frobenius.0"
            rows = np.array([look_up(found, key.format(layer)) for layer in LAYERS])
            left.plot(
                (1, 2, 3),
                np.median(rows, 1),
                color=COLORS[index],
                linestyle=LINES[index],
                marker=MARKERS[index],
            )
            curve = f"values.{name}.loss_curve"
            steps = look_up(found[:1], f"{curve}.step")[0]
            band(right, steps, np.array(look_up(found, f"{curve}.mean")), index, label)
        left.set(
            title="At the start: Hessian of each layer",
            xlabel="layer $k$",
            ylabel=r"$\|H_k\|_F$",
            xticks=(1, 2, 3),
            yscale="log",
        )
        right.set(
            title="The training that follows",
            xlabel="training step",
            ylabel="cross-entropy [nat]",
            yscale="log",
        )
        figure.legend(loc="outside upper center", ncols=4)
        note_data(figure, found)
    return figure


def main(arguments: Sequence[str]) -> None:
    """Draw the figure from records into an SVG file."""
    mpl.use("agg")
    out, *paths = arguments
    if not paths:
        sys.exit(
            "landing: no records of mnist_tracking under results/paper; `make paper` makes them"
        )
    found = sorted((records.read_in_place(path) for path in paths), key=lambda record: record.seed)
    figure = landing(found)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with style():  # it makes the file the same each time
        figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
