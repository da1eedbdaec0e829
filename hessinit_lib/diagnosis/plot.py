"""A diagnosis as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hessinit_lib.diagnosis.layer import LayerDiagnosis
from hessinit_lib.errors import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = {
    "gain": "gain of the weights",
    "input_rms": "size of inputs (rms)",
    "gradient_norm": r"gradient $\|g_k\|$",
    "hessian_norm": r"Hessian $\|H_k\|_F$",
}
# Okabe and Ito's colors, told apart by readers with any color vision, with a marker each.
VERDICTS = {
    "balanced": ("#0072B2", "o"),
    "vanishing": ("#CC79A7", "v"),
    "exploding": ("#D55E00", "^"),
}
STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw(found: Sequence[LayerDiagnosis], curvature: str = "hessian") -> Figure:
    """Draw gains, signals, gradients and Hessian norms against the layers, a panel each.

    The norms are those of Gauss-Newton blocks if `curvature` is "ggn".

    Layers stand in the order of the forward pass; color and marker tell the verdict. What is
    zero, not finite or not known has no point.

    Raises:
        ImportError: matplotlib is not installed (the package's extra `report`).
    """
    plt = needed("matplotlib.pyplot", "diagnosis.plot()")
    titles = QUANTITIES
    if curvature == "ggn":
        titles = {**QUANTITIES, "hessian_norm": r"Gauss-Newton $\|G_k\|_F$"}
    last = len(found)
    layers = sorted(found, key=lambda x: last if x.order is None else x.order)
    places = np.arange(len(layers))
    verdicts = np.array([layer.verdict for layer in layers])
    with plt.rc_context(STYLE):
        height = max(2.6, 0.17 * len(layers) + 1.2)
        figure, axes = plt.subplots(1, len(QUANTITIES), figsize=(9.5, height), sharey=True)
        for ax, (quantity, title) in zip(axes, titles.items(), strict=True):
            values = np.array([getattr(layer, quantity) for layer in layers])
            shown = np.isfinite(values) & (values > 0)
            ax.plot(values[shown], places[shown], color="#999999", linewidth=0.8, zorder=1)
            for verdict, (color, marker) in VERDICTS.items():
                chosen = shown & (verdicts == verdict)
                ax.scatter(
                    values[chosen],
                    places[chosen],
                    color=color,
                    marker=marker,
                    s=22,
                    label=verdict if (verdicts == verdict).any() else None,
                    zorder=2,
                )
            ax.set(title=title, xlabel="size (log scale)")
            if shown.any():
                ax.set_xscale("log")
                _widen(ax, values[shown])
        step = math.ceil(len(layers) / 40)  # more names than that run into each other
        axes[0].set_yticks(places[::step], [layer.name for layer in layers[::step]], fontsize=8)
        axes[0].set_ylabel("layer, first at the top")
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        plt.close(figure)  # else a notebook would show it a second time
    return figure


def _widen(ax: Axes, values: np.ndarray) -> None:
    """Show at least two decades, so that small differences look small."""
    middle = math.sqrt(values.min()) * math.sqrt(values.max())
    ax.set_xlim(min(values.min() / 2, middle / 10), max(values.max() * 2, middle * 10))
