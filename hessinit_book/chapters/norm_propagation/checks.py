"""Checks of statements 6 and 7 that need no training data to speak of: expectations and gains."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_book.chapters.norm_propagation.networks import CLASSES
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_lib.theory import gains
from hessinit_lib.theory.activations import activation_function, differentiate

ACTIVATIONS = (
    "linear",
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "tanh",
    "softsign",
    "softplus",
)
DEVIATIONS = tuple(10 ** (k / 8) for k in range(-16, 9))  # of pre-activations: 0.01 to 10
SAMPLED = (0.1, 0.316, 1.0, 3.16)


def expectation_check(image: Float[Tensor, " i"], draws: torch.Generator, count: int) -> float:
    """Compare exact expectations with the mean over many small networks, in float64.

    ReLU, 49-12-12-12-10, one sample (7 x 7 means of an image), the output curvature of
    uniform predictions.

    Args:
        image: 784 pixels.
        draws: for the weights.
        count: networks.

    Returns:
        The largest deviation of a mean, over layers and both norms, in its standard errors.
    """
    pooled = nn.functional.avg_pool2d(image.cpu().double().reshape(1, 28, 28), 4).flatten()
    widths, gain = (49, 12, 12, 12, CLASSES), 2.0
    z = pooled.expand(count, -1)
    weights, read, slopes = [], [], []
    for fan_in, fan_out in pairwise(widths):
        weight = torch.randn(count, fan_out, fan_in, generator=draws, dtype=torch.float64)
        weights.append(weight * (gain / fan_in) ** 0.5)
        read.append(z.square().sum(1))
        a = (weights[-1] @ z[..., None])[..., 0]
        slopes.append((a > 0).double())
        z = a.relu()
    curvature = torch.eye(CLASSES, dtype=torch.float64) / CLASSES - 1 / CLASSES**2
    jacobian = torch.eye(CLASSES, dtype=torch.float64).expand(count, -1, -1)
    worst = 0.0
    for k in reversed(range(len(weights))):
        block = jacobian.mT @ curvature @ jacobian
        trace = read[k] * block.diagonal(dim1=1, dim2=2).sum(1)
        square = read[k] ** 2 * block.square().sum((1, 2))
        expected = exact_expectations(widths, gain, float(pooled.square().sum()), curvature, k)
        for sample, mean in zip((trace, square), expected, strict=True):
            stderr = sample.std() / math.sqrt(count)
            worst = max(worst, float((sample.mean() - mean).abs() / stderr))
        if k:
            jacobian = (jacobian @ weights[k]) * slopes[k - 1][:, None]
    return worst


def exact_expectations(
    widths: tuple[int, ...],
    gain: float,
    power: float,
    curvature: Float[Tensor, "c c"],
    layer: int,
) -> tuple[float, float]:
    r"""Compute $E \operatorname{tr} H_k$ and $E \|H_k\|_F^2$ of a ReLU network, one sample.

    Args:
        widths: $n_0$ to $n_n$.
        gain: $s_j^2 n_{j-1}$, the same in all layers.
        power: $\|x\|^2$.
        curvature: A, held fixed, shape (C, C).
        layer: number of the layer, from 0.

    Returns:
        The two expectations.

    Source: derivation in the book, statement 6, parts 3 and 4, with $c = 1/2$, $\mu = 2$.
    """
    hidden = widths[1:-1]
    trace = float(curvature.trace())
    square, trace_square = float(curvature.square().sum()), trace**2
    scale = power
    # Below layer k: ||z||^2 is multiplied by s^2 n_j c; above it, J J^T by s^2 n_{j-1} c.
    for j in range(layer):
        scale *= gain / widths[j] * widths[j + 1] / 2
    scale *= (gain / 2) ** (len(hidden) - layer)
    for n in reversed(hidden[layer:]):
        square, trace_square = (
            (1 + 3 / n) * square + 2 / n * trace_square,
            4 / n * square + (1 + 1 / n) * trace_square,
        )
    below = math.prod(1 + 5 / n for n in hidden[:layer])
    return scale * trace, scale**2 * below * square


def gain_curves(draws: torch.Generator, count: int) -> dict[str, Any]:
    """Compute the gains c and c' against the deviation of the pre-activations.

    Args:
        draws: for the Monte Carlo points.
        count: samples of a point.

    Returns:
        For each activation the curves by quadrature, and points by Monte Carlo; under
        "worst" the largest deviation of a point from its curve, in standard errors.
    """
    found: dict[str, Any] = {}
    worst = 0.0
    for name in ACTIVATIONS:
        curve = [gains(name, std=std) for std in DEVIATIONS]
        points: dict[str, list[float]] = {"c": [], "c_prime": []}
        for std in SAMPLED:
            exact = gains(name, std=std)
            u = std * torch.randn(count, generator=draws, dtype=torch.float64)
            values = differentiate(activation_function(name), u)
            for key, sample in (
                ("c", values.value.square() / std**2),
                ("c_prime", values.first.square()),
            ):
                points[key].append(rounded(float(sample.mean())))
                # One rounding error more, for gains that do not fluctuate (linear, c' = 1).
                stderr = float(sample.std()) / math.sqrt(count) + 1e-15
                worst = max(worst, abs(float(sample.mean()) - getattr(exact, key)) / stderr)
        found[name] = {
            "c": all_rounded((point.c for point in curve), 5),
            "c_prime": all_rounded((point.c_prime for point in curve), 5),
            "points": points,
        }
    return {"activations": found, "worst": rounded(worst)}
