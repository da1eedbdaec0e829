"""The tables behind the Explorer: gains of activations, output curvature, measured norms.

The page evaluates statement 6 in the reader's browser, which has no quadrature. What it needs
of this library is tabulated here, and written as a script, because a page opened from a disk
may load scripts but not data.

usage: python -m hessinit_book.drawing.explorer OUT.js RECORD.json ...
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessinit_book.data import load
from hessinit_book.drawing.explorer_records import measured_networks
from hessinit_book.records import records, sealed
from hessinit_book.records.records import Record
from hessinit_book.statistics.rounding import rounded
from hessinit_book.theory.kernels import kernel_maps
from hessinit_book.theory.output_hessians import output_pairs
from hessinit_lib.theory.critical import critical_variance
from hessinit_lib.theory.gains import gains

ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "leaky ReLU (slope 0.01)",
    "linear": "none (linear)",
    "tanh": "tanh",
    "gelu": "GELU",
    "silu": "SiLU",
    "elu": "ELU",
    "selu": "SELU",
}
HOMOGENEOUS = ("relu", "leaky_relu", "linear")  # gains do not depend on the deviation

# Deviations of the pre-activations and of the logits, log-spaced. Below the least, the page
# takes the gains for constant; beyond the largest, for powers of the deviation.
STDS = np.logspace(-3, 3, 73)
LOGIT_STDS = np.logspace(-2, 2, 25)
# Angles between two samples' pre-activations, dense near zero, where kernels have a kink.
ANGLES = math.pi / 2 * np.linspace(0, 1, 17) ** 2

CLASSES = 10
DRAWS = 4096  # batches of logits
IMAGES = 256  # of the sample of MNIST, for their mean square and their overlap


def tables() -> dict[str, Any]:
    """Compute everything in the Explorer that does not come from records."""
    return {
        "angles": [rounded(angle) for angle in ANGLES],
        "activations": {name: activation_table(name) for name in ACTIVATIONS},
        "output": output_table(),
        "inputs": input_statistics(),
    }


def activation_table(name: str) -> dict[str, Any]:
    r"""Tabulate an activation's gains against the deviation and the angle.

    Args:
        name: one of `ACTIVATIONS`.

    Returns:
        "critical": $s^2 n_{in}$ at the critical variance; "std": deviations $\sigma$, shape
        (s,); "forward" and "backward": $c$ and $c'$, shape (s,); "forwardRatio" and
        "backwardRatio": the same for two samples at an angle over that of one, shape (s, a).

    Example:
        >>> table = activation_table("relu")
        >>> table["critical"], table["forward"], table["backwardRatio"][0][-1]
        (2.0, [0.5], 0.5)
    """
    stds = [1.0] if name in HOMOGENEOUS else STDS.tolist()
    found = [gains(name, std=std) for std in stds]
    ratios = [_ratios(name, std) for std in stds]
    return {
        "label": ACTIVATIONS[name],
        "critical": rounded(critical_variance(name, 1, 1)),
        "std": [rounded(std) for std in stds],
        "forward": [_digits(gain.c) for gain in found],
        "backward": [_digits(gain.c_prime) for gain in found],
        "forwardRatio": [value for value, _ in ratios],
        "backwardRatio": [first for _, first in ratios],
    }


def output_table() -> dict[str, Any]:
    r"""Tabulate the softmax's curvature against the deviation of the logits and the angle.

    Returns:
        "std": deviations, shape (s,); "norm": root mean square of $\|D^2 \ell\|_F$, shape (s,);
        "ratio": $E \langle D_b, D_{b'} \rangle / E \|D_b\|^2$ at each angle, shape (s, a).
    """
    cosines = torch.from_numpy(_cosines())
    norms, ratios = [], []
    for std in LOGIT_STDS:
        # The same draws for each deviation: the table is smooth in it.
        draws = torch.Generator().manual_seed(0)
        pairs = output_pairs("cross_entropy", cosines * std**2, CLASSES, DRAWS, draws)
        inner = pairs.inner.mean(0)
        norms.append(_digits(float(inner.diagonal().mean().sqrt())))
        ratios.append([rounded(float(x), 4) for x in inner[0] / inner[0, 0]])
    return {"std": [rounded(std) for std in LOGIT_STDS], "norm": norms, "ratio": ratios}


def input_statistics() -> dict[str, Any]:
    """Measure what statement 6 needs to know of the inputs, on the sample of MNIST.

    Returns:
        "size" of an image, number of "classes", "squaredNorm" of an image (mean) and "overlap"
        of two, the root mean square of their scalar product over that.
    """
    images = load("mnist", sample=True).tensors("train", torch.device("cpu"))[0]
    x = images[:IMAGES].flatten(1).double()
    gram = x @ x.mT
    mean = gram.diagonal().mean()
    off_diagonal = gram[~torch.eye(len(x), dtype=torch.bool)]
    return {
        "size": x.shape[1],
        "classes": CLASSES,
        "squaredNorm": rounded(float(mean)),
        "overlap": rounded(float(off_diagonal.square().mean().sqrt() / mean)),
    }


def script(found: Iterable[Record]) -> str:
    """Write the tables and the measured networks as a script for the page.

    Args:
        found: records to draw measured norms from; those of other experiments are passed over.
    """
    data = {**tables(), "measured": measured_networks(found)}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return f"globalThis.hessinitExplorerData = {text};\n"


def _cosines() -> np.ndarray:
    """Give the matrix of cosines between unit vectors in the plane, at the angles."""
    return np.cos(ANGLES[:, None] - ANGLES[None, :])


def _ratios(name: str, std: float) -> tuple[list[float], list[float]]:
    kernels = kernel_maps(name, torch.from_numpy(_cosines() * std**2))
    value, first = ([rounded(float(x), 5) for x in k[0] / k[0, 0]] for k in kernels)
    return value, first


def _digits(value: float) -> float:
    """Keep eight digits: errors of the gains multiply over the layers."""
    return rounded(value, 8)


def main(arguments: Sequence[str]) -> None:
    """Write the script."""
    out, *paths = arguments
    text = script(records.read_in_place(path) for path in paths)
    sealed.write_atomically(Path(out), text)


if __name__ == "__main__":
    main(sys.argv[1:])
