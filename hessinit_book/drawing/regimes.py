"""The figure of the three regimes, one column each, for any data set."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hessinit_book.drawing.style import band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

TITLES = {
    "vanishing": r"vanishing: He $\times$ 0.7",
    "balanced": "balanced: He",
    "exploding": r"exploding: He $\times$ 1.4",
}
HIGHEST = 1e4  # what is drawn of losses and gradients that explode
LAYER_COLORS = mpl.colormaps["viridis"]


def regimes(records: Sequence[Record]) -> Figure:
    """Draw loss, Hessian norms, gradient norms and a step's gain, a column a regime.

    Lines are medians over seeds; the bands of loss and gain are the range over seeds. What
    lies beyond the axes, on the way to infinity, is cut off.
    """
    with style():
        figure, axes = subplots(4, 3, figsize=(9.5, 9.2), sharex=True, sharey="row")
        for column, (name, title) in enumerate(TITLES.items()):
            key = f"values.regimes.{name}"
            steps = look_up(records[:1], f"{key}.steps")[0]
            loss, hessians, gradients, gain = axes[:, column]
            band(loss, steps, np.array(look_up(records, f"{key}.loss")), 0)
            _layers(hessians, steps, np.array(look_up(records, f"{key}.frobenius")))
            _layers(gradients, steps, np.array(look_up(records, f"{key}.gradient")))
            for index, kind in enumerate(("predicted", "realized")):
                rows = np.array(look_up(records, f"{key}.{kind}"))
                band(gain, steps, rows, 2 * index, kind if column == 0 else None)
            loss.set_title(title)
            gain.set_xlabel("training step")
        labels = (
            "probe loss [nat]",
            r"Hessians $\|H_k\|_F$",
            r"gradients $\|\nabla_{W^k} L\|_F$",
            "gain of a step [nat]",
        )
        for row, label in zip(axes, labels, strict=True):
            row[0].set_ylabel(label)
        for ax in axes[:3].flat:
            ax.set_yscale("log")
        for row in (0, 2):
            low, high = axes[row, 0].get_ylim()
            axes[row, 0].set_ylim(low, min(high, HIGHEST))
        steps = look_up(records[:1], "values.regimes.balanced.steps")[0]
        for ax in axes[3]:
            ax.set_yscale("symlog", linthresh=1e-3)
            ax.set_yticks([-1e6, -1e4, -100, -1, -0.01, 0, 0.01, 1, 100])
            ax.set_ylim(-1e7, 1e3)
            ax.axhline(0, color="#555555", linewidth=0.8)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xlim(0, steps[-1])
        axes[3, 0].legend(fontsize=8)
        layers = len(look_up(records[:1], "values.regimes.balanced.frobenius.0")[0])
        figure.colorbar(
            ScalarMappable(Normalize(1, layers), LAYER_COLORS),
            ax=axes[1:3],
            label="layer, from the input",
            shrink=0.6,
        )
        note_data(figure, records)
    return figure


def _layers(ax: Axes, steps: Sequence[int], rows: np.ndarray) -> None:
    """Draw a line for each layer, from rows of shape (seeds, steps, layers)."""
    rows = np.where(np.isfinite(rows) & (rows > 0), rows, np.nan)
    layers = rows.shape[2]
    for layer in range(layers):
        seen = ~np.isnan(rows[:, :, layer]).all(0)
        middle = np.nanmedian(rows[:, seen, layer], 0)
        color = LAYER_COLORS(layer / max(1, layers - 1))
        ax.plot(np.asarray(steps)[seen], middle, ".-", color=color, linewidth=1.2, markersize=3)
