"""The initializations of `mnist_depth`, and all that is known of one before training."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.networks.dense import dense_network, linear_layers
from hessinit_book.networks.starts import SCHEMES, draw_weights
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.training.cosines import cosine_distance
from hessinit_book.training.step_gain import gradient_and_curvature
from hessinit_lib.hessians import layer_hessians
from hessinit_lib.init import looks_linear_

# The scheme whose variance keeps the activation's signals: He's for ReLU, LeCun's else.
FITTING = {"relu": "he", "tanh": "lecun", "sigmoid": "lecun"}
NAMED = (*SCHEMES, "looks_linear")
"""Starts that have a name: the usual schemes, and ours."""


def make_network(
    name: str,
    start: float | str,
    widths: tuple[int, ...],
    activation: str,
    stream: torch.Generator,
    batch: tuple[Float[Tensor, "b n"], Int64[Tensor, " b"]],
) -> nn.Sequential:
    """Make one network from one initialization, with zero biases (but for torch's own scheme).

    Args:
        name: of the start: "first_...", "all_..." or a scheme.
        start: the deviation, or the scheme: a key of `SCHEMES`, or "looks_linear".
        widths: of all layers.
        activation: its name, see `dense_network`.
        stream: the same state gives the same directions, whatever the deviation.
        batch: inputs and labels, which only `looks_linear_` looks at.
    """
    network = dense_network(widths, activation)
    if start == "looks_linear":
        draw_weights(network, FITTING[activation], stream)  # finite weights, to be replaced
        network.to(batch[0].device)
        looks_linear_(network, batch[0], generator=stream)
        return network
    if isinstance(start, str):
        draw_weights(network, start, stream)
        return network
    draw_weights(network, FITTING[activation], stream)
    linears = linear_layers(network)
    with torch.no_grad():
        for linear in linears[:1] if name.startswith("first") else linears:
            fan_in = linear.in_features
            linear.weight *= start * math.sqrt(fan_in / (2 if activation == "relu" else 1))
    return network


def measure(
    network: nn.Sequential,
    inputs: Float[Tensor, "b 784"],
    labels: Int64[Tensor, " b"],
    activation: str,
) -> dict[str, Any]:
    r"""Measure all that is known of a network before its first step.

    Returns:
        For each layer: `frobenius` and `spectral` norm of its Hessian, `gradient` norm,
        `activation`, the root mean square of its pre-activations, their `cosine_distance`
        between samples, and `deviation` of its weights over that of the fitting scheme; for
        the network: `loss` [nat], `square`
        $\|G\|^2$ and `curvature` $G^\top H G$ over all parameters.
    """
    report = layer_hessians(network, F.cross_entropy, inputs, labels, parts=False)
    loss, gradients, square, curvature = gradient_and_curvature(network, inputs, labels)
    names = [name for name, _ in network.named_parameters()]
    norms = {name: g.norm().item() for name, g in zip(names, gradients, strict=True)}
    scales, distances, deviations, z = [], [], [], inputs
    fitting = 2 if activation == "relu" else 1
    with torch.no_grad():
        for module in network:
            z = module(z)
            if isinstance(module, nn.Linear):
                scales.append(z.square().mean().sqrt().item())
                distances.append(cosine_distance(z))
                spread = module.weight.std().item()
                deviations.append(spread / math.sqrt(fitting / module.in_features))
    return {
        "frobenius": all_rounded((layer.frobenius for layer in report.values()), 5),
        "spectral": all_rounded((layer.spectral for layer in report.values()), 5),
        "gradient": all_rounded((norms[name] for name in report), 5),
        "activation": all_rounded(scales, 5),
        "cosine_distance": all_rounded(distances, 5),
        "deviation": all_rounded(deviations, 5),
        "loss": rounded(loss),
        "square": rounded(square),
        "curvature": rounded(curvature),
    }
