"""Measured norms for the Explorer, from the full-scale records of the experiments that have them.

An experiment is known here by a function that turns its records into networks which the
Explorer's controls can describe; all others are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any

from hessinit_book.records.records import Record, look_up
from hessinit_lib.theory.critical import critical_variance

INPUTS = 784
WIDTHS = (784, 30, 30, 10)  # of the network of `mnist_tracking`
# Schemes of `norm_propagation` that the controls can describe: activation and mode.
_SCHEMES = {
    "lecun_linear": ("linear", "fan_in"),
    "glorot_tanh": ("tanh", "fan_avg"),
    "he_relu": ("relu", "fan_in"),
    "dropout_rescaled": ("relu", "fan_in"),
}


def measured_networks(found: Iterable[Record]) -> list[dict[str, Any]]:
    """Collect the measured networks of all records.

    Args:
        found: records of any experiments.

    Returns:
        For each network: its "label", "experiment", hidden "width", "depth" in layers of
        weights, "activation", "dropout", "batch", the deviation of the weights of each
        layer "stds", and the "norms" of each layer's Hessian, shape (layers, seeds).
    """
    ordered = sorted(found, key=lambda record: (record.experiment, record.seed))
    networks: list[dict[str, Any]] = []
    for experiment, group in groupby(ordered, key=lambda record: record.experiment):
        if experiment in _READERS:
            runs = list(group)
            networks += [{"experiment": experiment, **n} for n in _READERS[experiment](runs)]
    return networks


def _mnist_tracking(runs: Sequence[Record]) -> list[dict[str, Any]]:
    networks = []
    for name, values in runs[0].values.items():
        start = values["start"]
        if start == "glorot":  # its last layer differs from the hidden ones by no common rule
            continue
        first = math.sqrt(2 / WIDTHS[0]) if start == "he" else start
        key = f"values.{name}.tracked.layers.layer_{{}}.frobenius.0"
        networks.append(
            {
                "label": f"ReLU, {len(WIDTHS) - 1} × {WIDTHS[1]}, first layer {first:.2g}",
                "width": WIDTHS[1],
                "depth": len(WIDTHS) - 1,
                "activation": "relu",
                "dropout": 0.0,
                "batch": runs[0].parameters["probe_size"],
                "stds": [first, *(math.sqrt(2 / n) for n in WIDTHS[1:-1])],
                "norms": [look_up(runs, key.format(k)) for k in range(1, len(WIDTHS))],
            }
        )
    return networks


def _norm_propagation(runs: Sequence[Record]) -> list[dict[str, Any]]:
    networks = []
    for scheme, (activation, mode) in _SCHEMES.items():
        for name in runs[0].values["schemes"].get(scheme, {}):
            width, depth = (int(part[1:]) for part in name.split("_"))
            dropout = 1 - runs[0].parameters["keep"] if "dropout" in scheme else 0.0
            widths = [INPUTS, *[width] * (depth - 1), 10]
            variances = [critical_variance("linear", INPUTS, width, mode)]
            variances += [
                critical_variance(activation, fan_in, fan_out, mode, dropout=dropout)
                for fan_in, fan_out in pairwise(widths[1:])
            ]
            norms = look_up(runs, f"values.schemes.{scheme}.{name}.measured")
            networks.append(
                {
                    "label": f"{_in_words(scheme)}, {depth} × {width}",
                    "width": width,
                    "depth": depth,
                    "activation": activation,
                    "dropout": dropout,
                    "batch": runs[0].parameters["batch_size"],
                    "stds": [math.sqrt(variance) for variance in variances],
                    "norms": [list(layer) for layer in zip(*norms, strict=True)],
                }
            )
    return networks


def _in_words(scheme: str) -> str:
    names = {"glorot": "Glorot", "he": "He", "lecun": "LeCun", "relu": "ReLU"}
    return ", ".join(names.get(part, part) for part in scheme.split("_"))


_READERS: dict[str, Callable[[Sequence[Record]], list[dict[str, Any]]]] = {
    "mnist_tracking": _mnist_tracking,
    "norm_propagation": _norm_propagation,
}
