"""Figures of the experiment `safe_step`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.chapters.safe_step.run import ACTIVATIONS, KINDS
from hessinit_book.drawing.style import COLORS, LINES, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up
from hessinit_book.statistics.best_rate import median

NETWORKS = {
    "relu_3": "ReLU, 3 layers",
    "relu_10": "ReLU, 10 layers",
    "relu_20": "ReLU, 20 layers",
    "tanh_10": "tanh, 10 layers",
    "gelu_10": "GELU, 10 layers",
    "residual_10": "residual, 10 layers",
    "scaled_10": "residual, scaled branches",
    "normalized_10": "layer norms, 10 layers",
    "cnn": "convolutional",
    "lstm": "LSTM",
    "transformer": "transformer",
}
KIND_NAMES = {
    "plain": "plain",
    "residual": "residual",
    "scaled": "residual, scaled branches",
    "normalized": "layer norms",
}
RULES = {
    "sum": r"$2 / \sum_k \lambda_k$, from the layers",
    "linear": r"$2 / \lambda(H)$, of the whole",
    "largest": r"$2 / \max_k \lambda_k$, from the layers",
    "frobenius": r"$2 / \sum_k \|G_k\|$, from the layers",
}
COLUMNS = {
    "sum": "2 / Σ λₖ",
    "linear": "2 / λ(H)",
    "largest": "2 / max λₖ",
    "frobenius": "2 / Σ ‖Gₖ‖",
}
"""The same in tables, which set no formulas."""
STAGES = {"start": "At the start", "trained": "At a loss of 1"}


def ratios(records: Sequence[Record]) -> Figure:
    r"""Draw $\lambda(G)$ over the sum of the layers' largest eigenvalues, at the start.

    On the left against the width of plain networks, on the right against depth, for networks
    whose layers are joined in several ways.
    """
    widths, depths = (records[0].parameters[name] for name in ("widths", "depths"))

    def found(names: Sequence[str]) -> np.ndarray:
        return np.array([look_up(records, f"values.start.{name}.ratio") for name in names]).T

    with style():
        figure, (left, right) = subplots(1, 2, figsize=(8.4, 3.9), sharey=True)
        for index, activation in enumerate(ACTIVATIONS[:2]):
            names = [f"width/{activation}/{width}" for width in widths]
            band(left, widths, found(names), index, activation)
        for index, kind in enumerate(KINDS):
            names = [f"kind/{kind}/{depth}" for depth in depths]
            band(right, depths, found(names), index, KIND_NAMES[kind])
        left.set(
            ylim=(0, 1.02), xlabel="units of a hidden layer", title="Width",
            ylabel=r"$\lambda(G) \, / \, \sum_k \lambda_k$",
        )  # fmt: skip
        right.set(xlabel="layers", title="Depth, and how layers are joined")
        for ax, ticks in ((left, widths), (right, depths)):
            ax.set_xscale("log")
            ax.set_xticks(ticks, [str(tick) for tick in ticks])
            ax.set_xticks([], minor=True)
            ax.legend(loc="lower left")
        note_data(figure, records)
    return figure


def courses(records: Sequence[Record]) -> Figure:
    """Draw how the largest eigenvalues move in training, over what the rate allows."""
    names = list(records[0].values["trained"])
    lines = {
        "hessian": r"$\lambda(H)$",
        "sum": r"$\sum_k \lambda_k$",
        "ggn": r"$\lambda(G)$",
        "largest": r"$\max_k \lambda_k$",
    }
    rows = -(-len(names) // 2)
    with style():
        figure, axes = subplots(rows, 2, figsize=(8.4, 0.6 + 2.6 * rows), squeeze=False)
        for ax, name in zip(axes.flat, names, strict=False):
            record = records[0].values["trained"][name]  # of the first seed: edges differ in time
            for index, (key, label) in enumerate(lines.items()):
                over = np.array(record[key]) / record["limit"]
                ax.plot(np.array(record["steps"]) + 1, over, color=COLORS[index],
                        linestyle=LINES[index], label=label)  # fmt: skip
            ax.axhline(1, color="#000000", linewidth=0.8)
            network, _, rate = name.partition("/")
            ax.set(xscale="log", yscale="log", ylabel="over the limit",
                   title=f"{NETWORKS[network]}, {_rate(rate)}")  # fmt: skip
        for ax in axes.flat[len(names) :]:
            ax.set_visible(False)
        for ax in axes[-1]:
            ax.set_xlabel("step + 1")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
        note_data(figure, records[:1])
    return figure


def stable(records: Sequence[Record]) -> Figure:
    """Draw the largest stable rate of each network over what each rule says."""
    names = list(records[0].values["rates"])
    with style():
        figure, axes = subplots(1, 2, figsize=(8.4, 1.2 + 0.42 * len(names)), sharey=True)
        for ax, (stage, title) in zip(axes, STAGES.items(), strict=True):
            for row, name in enumerate(names):
                for index, rule in enumerate(RULES):
                    over = _over(records, name, stage, rule)
                    y = row + (index - 1.5) * 0.17
                    ax.plot(over, np.full(len(over), y), MARKERS[index], color=COLORS[index],
                            markersize=3, alpha=0.4)  # fmt: skip
                    ax.plot(np.median(over), y, MARKERS[index], color=COLORS[index], markersize=6,
                            label=RULES[rule] if row == 0 else None)  # fmt: skip
            ax.axvline(1, color="#000000", linewidth=0.8)
            ax.set(xscale="log", title=title, xlabel="stable rate over the rule's")
        axes[0].set_yticks(range(len(names)), [NETWORKS[name] for name in names])
        axes[0].invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
        note_data(figure, records)
    return figure


def interactions(records: Sequence[Record]) -> Figure:
    """Draw the norms of all blocks of two networks, medians over seeds, as maps."""
    blocks = records[0].values["blocks"]
    scaled = {}
    for activation in blocks:
        norms = np.median(look_up(records, f"values.blocks.{activation}.hessian"), axis=0)
        own = np.sqrt(np.diagonal(norms))
        scaled[activation] = norms / own / own[:, None]
    most = max(norms.max() for norms in scaled.values())
    with style():
        figure, axes = subplots(1, len(blocks), figsize=(8.4, 3.9), squeeze=False)
        for ax, (activation, norms) in zip(axes.flat, scaled.items(), strict=True):
            ax.imshow(norms, cmap="viridis", vmin=0, vmax=most)
            ax.set(title=activation, xlabel="layer", ylabel="layer")
            ax.grid(False)
        label = r"$\|H_{jk}\| \; / \; (\|H_{jj}\| \|H_{kk}\|)^{1/2}$"
        figure.colorbar(axes[0, 0].images[0], ax=axes, label=label, shrink=0.8)
        note_data(figure, records)
    return figure


def table(records: Sequence[Record], stage: str) -> pd.DataFrame:
    """Tabulate the largest stable rates, and them over each rule's: median and range."""
    rows = {}
    for name in records[0].values["rates"]:
        found = np.array(look_up(records, f"values.rates.{name}.{stage}.stable"))
        rows[NETWORKS[name]] = {
            "largest stable rate": f"{median(found):.3g}",
            **{title: _span(_over(records, name, stage, key)) for key, title in COLUMNS.items()},
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")


def summary(records: Sequence[Record], stage: str) -> str:
    """Say on how many networks and seeds the rate from the layers was stable, and how cautious."""
    names = list(records[0].values["rates"])
    over = {rule: {name: _over(records, name, stage, rule) for name in names} for rule in RULES}
    runs = sum(len(values) for values in over["sum"].values())

    def stable_at(rule: str, part: float = 1.0) -> int:
        return sum(int((values >= part).sum()) for values in over[rule].values())

    medians = [float(np.median(values)) for values in over["sum"].values()]
    return (
        f"{STAGES[stage]} gradient descent was stable at the rate from the layers in "
        f"{stable_at('sum')} of {runs} runs, at half of it in {stable_at('sum', 0.5)}; at the rate "
        f"from the whole Hessian in {stable_at('linear')}, at half of it in "
        f"{stable_at('linear', 0.5)}; at the rate from the largest layer in "
        f"{stable_at('largest')}, at half of it in {stable_at('largest', 0.5)}; at the rate from "
        f"Frobenius norms in {stable_at('frobenius')}. The largest stable "
        f"rate is {min(medians):.2g} to {max(medians):.2g} times the rate from the layers, medians "
        f"of the networks."
    )


def nearness(records: Sequence[Record]) -> str:
    """Say how near the whole is to the sum of the layers, at the start and in training."""
    values = records[0].values
    start = np.array([look_up(records, f"values.start.{name}.ratio") for name in values["start"]])
    start = start[np.isfinite(start)]
    course = [look_up(records, f"values.trained.{name}.ratio.least") for name in values["trained"]]
    return (
        f"At the start $\\lambda(G)$ is {start.min():.2f} to {start.max():.2f} of the sum, "
        f"{np.median(start):.2f} in the median of all networks and seeds; in training it is never "
        f"less than {np.min(course):.2f} of it."
    )


def _over(records: Sequence[Record], name: str, stage: str, rule: str) -> np.ndarray:
    return np.array(look_up(records, f"values.rates.{name}.{stage}.over.{rule}"))


def _span(values: np.ndarray) -> str:
    return f"{np.median(values):.2g} [{values.min():.2g}, {values.max():.2g}]"


def _rate(name: str) -> str:
    optimizer, _, rate = name.partition("_")
    return f"{'Adam, ' if optimizer == 'adam' else ''}rate {float(rate):g}"
