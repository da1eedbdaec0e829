"""One fully connected network trained at every learning rate of a grid, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.networks.dense import linear_layers
from hessinit_book.statistics.rounding import rounded

WINDOW = 10  # steps over which a loss is averaged before it is compared with a level
GUESSING = 1.5  # a final loss above this multiple of guessing counts as diverged


def train_dense(
    model: nn.Sequential,
    rates: Sequence[float],
    multipliers: Sequence[float],
    inputs: Float[Tensor, "n 784"],
    labels: Int64[Tensor, " n"],
    batches: Int64[Tensor, "steps b"],
) -> Float[Tensor, "steps r"]:
    """Train a fully connected network by SGD at all learning rates at once, as stacked matrices.

    Args:
        model: Linear layers with one activation between; it is left as it is.
        rates: learning rates.
        multipliers: of the rates, one for each layer.
        inputs: images, on the model's device.
        labels: their classes.
        batches: indices of each step's samples.

    Returns:
        The batch loss before each step, at each rate; on the CPU.
    """
    linear = linear_layers(model)
    activation = model[1]
    count = len(rates)
    weights = [layer.weight.detach().expand(count, -1, -1).clone() for layer in linear]
    biases = [layer.bias.detach().expand(count, 1, -1).clone() for layer in linear]
    parameters = [p.requires_grad_() for pair in zip(weights, biases, strict=True) for p in pair]
    rate = torch.tensor(rates, device=inputs.device)[:, None, None]
    curve = torch.empty(len(batches), count, device=inputs.device)
    for step, batch in enumerate(batches.to(inputs.device)):
        z = inputs[batch].expand(count, -1, -1)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            z = activation(torch.baddbmm(bias, z, weight.mT))
        z = torch.baddbmm(biases[-1], z, weights[-1].mT)
        targets = labels[batch].repeat(count)
        losses = F.cross_entropy(z.flatten(0, 1), targets, reduction="none").view(count, -1).mean(1)
        curve[step] = losses.detach()
        gradients = torch.autograd.grad(losses.sum(), parameters)
        with torch.no_grad():
            for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                parameter -= gradient * (rate * multipliers[index // 2])
    return curve.cpu()


def summarize(
    curve: Float[Tensor, "steps r"], level: float, classes: int, final_steps: int
) -> dict[str, list[Any]]:
    """Sum up the losses at each rate.

    Args:
        curve: batch losses.
        level: the loss to which steps are counted.
        classes: number of classes; guessing costs its logarithm.
        final_steps: the last steps, over which the final loss is averaged; all if there are fewer.

    Returns:
        By rate: "final" loss; "steps" until the mean of `WINDOW` losses is below the level,
        infinite if it never is; "diverged", whether the final loss is not finite or well
        above that of guessing.

    Example:
        >>> falling = torch.linspace(2.0, 0.0, 41)[:, None]
        >>> summarize(falling, level=1.0, classes=2, final_steps=1)
        {'final': [0.0], 'steps': [26.0], 'diverged': [False]}
    """
    losses = curve.double().numpy()
    final = losses[-final_steps:].mean(0)
    means = np.lib.stride_tricks.sliding_window_view(losses, WINDOW, axis=0).mean(-1)
    below = means < level
    steps = np.where(below.any(0), below.argmax(0) + WINDOW, np.inf)
    diverged = ~np.isfinite(losses).all(0) | ~(final < GUESSING * math.log(classes))
    return {
        "final": [rounded(value, 5) for value in final],
        "steps": [float(value) for value in steps],
        "diverged": [bool(value) for value in diverged],
    }
