"""Figures of the experiment `diagnose`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hessinit_book.drawing.style import COLORS, LINES, MARKERS, band, note_data, style, subplots
from hessinit_book.records.records import Record, look_up

TITLES = {
    "resnet18": "ResNet-18",
    "squeezenet": "SqueezeNet",
    "gpt": "small GPT",
    "vgg11_broken": "VGG-11, PyTorch's weights",
    "vgg11_mended": "VGG-11, He's weights",
    "vgg11_looks_linear": "VGG-11, looks_linear_",
}
QUANTITIES = {
    "gain": "gain of the weights",
    "input_rms": "size of inputs (rms)",
    "gradient_norm": r"gradient $\|g_k\|$",
    "hessian_norm": r"Hessian $\|H_k\|_F$",
}
FINAL_STEPS = 20
PLAIN = {"relu": "ReLU, He's weights", "tanh": "tanh, LeCun's weights"}


def sizes(records: Sequence[Record]) -> Figure:
    """Draw gains, signals, gradients and Hessian norms through the depth of each network.

    Lines are medians over seeds, bands the range over seeds.
    """
    with style():
        figure, axes = subplots(2, 2, figsize=(9.5, 6.2), sharex=True)
        for ax, (quantity, title) in zip(axes.flat, QUANTITIES.items(), strict=True):
            for index, label in enumerate(TITLES.values()):
                name = list(TITLES)[index]
                if name not in records[0].values["networks"]:
                    continue
                rows = np.array(look_up(records, f"values.networks.{name}.{quantity}"))
                rows[rows <= 0] = np.nan
                depth = np.linspace(0, 1, rows.shape[1])
                band(ax, depth.tolist(), rows, index, label if ax is axes[0, 0] else None)
            ax.set(title=title, yscale="log")
        for ax in axes[1]:
            ax.set_xlabel("depth (0: first layer, 1: last)")
        for ax in axes[:, 0]:
            ax.set_ylabel("size")
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records)
    return figure


def losses(records: Sequence[Record]) -> Figure:
    """Draw the training loss of the networks that were trained, a panel for each rate."""
    rates = records[0].parameters["learning_rates"]
    with style():
        figure, axes = subplots(1, len(rates), figsize=(9.5, 3.5), sharey=True, squeeze=False)
        for place, (ax, rate) in enumerate(zip(axes.flat, rates, strict=True)):
            for name in records[0].values["losses"]:
                rows = np.array(look_up(records, f"values.losses.{name}.{place}"))
                steps = list(range(1, rows.shape[1] + 1))
                index = list(TITLES).index(name)
                band(ax, steps, rows, index, TITLES[name] if place == 0 else None)
            ax.axhline(np.log(10), color="#555555", linewidth=0.8)
            # What overshoots leaves the panel: it would hide all that comes later.
            ax.set(title=f"learning rate {rate:g}", xlabel="training step", ylim=(1.5, 4))
        axes[0, 0].set_ylabel("cross-entropy of the batch [nat]")
        figure.legend(loc="outside upper center", ncols=3)
        note_data(figure, records)
    return figure


def named(records: Sequence[Record]) -> Figure:
    """Draw how often a layer is named that was scaled by a factor, over layers and seeds."""
    factors = records[0].parameters["factors"]
    with style():
        figure, ax = subplots(figsize=(7.5, 3.5))
        for index, (name, label) in enumerate(PLAIN.items()):
            share = np.mean(look_up(records, f"values.named.{name}.right"), axis=0)
            ax.plot(
                factors,
                share,
                color=COLORS[index],
                linestyle=LINES[index],
                marker=MARKERS[index],
                label=label,
            )
        ax.set(
            xscale="log",
            ylim=(-0.03, 1.03),
            xlabel="factor on the weights of one layer",
            ylabel="share of layers named",
        )
        figure.legend(loc="outside upper center", ncols=2)
        note_data(figure, records)
    return figure


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the diagnoses, one row a network: verdicts of all seeds, medians of numbers."""
    rows = {}
    for name, title in TITLES.items():
        if name not in records[0].values["networks"]:
            continue
        key = f"values.networks.{name}"
        verdicts = look_up(records, f"{key}.verdict")
        rows[title] = {
            "layers": len(records[0].values["networks"][name]["layers"]),
            "verdict": ", ".join(sorted(set(verdicts))),
            "seeds with a fault": sum(bool(faults) for faults in look_up(records, f"{key}.faults")),
            "loss [nat]": f"{np.median(look_up(records, f'{key}.loss')):.2f}",
            "suggested rate": _rate(np.median(look_up(records, f"{key}.suggested_rate"))),
            "Hessian norms": "exact"
            if records[0].values["networks"][name]["exact"]
            else "estimated",
        }
    return pd.DataFrame(rows).T.rename_axis("network")


def final_losses(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate how the trainings went: medians over seeds, one row a network and rate."""
    rows = {}
    for name in records[0].values["losses"]:
        for place, rate in enumerate(records[0].parameters["learning_rates"]):
            curves = np.array(look_up(records, f"values.losses.{name}.{place}"))
            last = curves[:, -FINAL_STEPS:].mean(1)
            rows[TITLES[name], rate] = {
                "first loss [nat]": np.median(curves[:, 0]),
                "largest": np.median(curves.max(1)),
                f"mean of the last {min(FINAL_STEPS, curves.shape[1])} steps": np.median(last),
                "least over seeds": last.min(),
                "most over seeds": last.max(),
            }
    return pd.DataFrame(rows).T.rename_axis(["network", "learning rate"]).round(2)


def _rate(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2g}"
