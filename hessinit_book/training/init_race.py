"""Races of starts: the same network, batches and learning rates, from different weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.statistics.rounding import rounded
from hessinit_lib.init.layers import weight_layers

WINDOW = 10  # steps over which a loss is averaged before it is compared with a level
GUESSING = 1.5  # a final loss above this multiple of guessing counts as diverged

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def plain_network(activation: str, depth: int, width: int) -> nn.Sequential:
    """Make the network 784-width-...-width-10 of so many layers; its weights are not set.

    Args:
        activation: "relu", "gelu" or "tanh".
        depth: number of layers, 2 or more.
        width: units of a hidden layer.

    Example:
        >>> len([m for m in plain_network("relu", 4, 8) if isinstance(m, nn.Linear)])
        4
    """
    widths = [784, *[width] * (depth - 1), 10]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers.append(nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu"))
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers[:-1])


def train_plain(
    model: nn.Sequential,
    rates: Sequence[float],
    multipliers: Sequence[float],
    inputs: Float[Tensor, "n 784"],
    labels: Int64[Tensor, " n"],
    batches: Int64[Tensor, "steps b"],
) -> Float[Tensor, "steps r"]:
    """Train a plain network by SGD at all learning rates at once, as stacked matrices.

    Args:
        model: Linear layers with one activation between; it is left as it is.
        rates: learning rates.
        multipliers: of the rates, one for each layer.
        inputs: images.
        labels: their classes.
        batches: indices of each step's samples.

    Returns:
        The batch loss before each step, at each rate.
    """
    linear = [module for module in model if isinstance(module, nn.Linear)]
    activation = model[1]
    count = len(rates)
    weights = [layer.weight.detach().expand(count, -1, -1).clone() for layer in linear]
    biases = [layer.bias.detach().expand(count, 1, -1).clone() for layer in linear]
    parameters = [p.requires_grad_() for pair in zip(weights, biases, strict=True) for p in pair]
    rate = torch.tensor(rates)[:, None, None]
    curve = torch.empty(len(batches), count)
    for step, batch in enumerate(batches):
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
    return curve


def train_any(
    model: nn.Module,
    rates: Sequence[float],
    batches: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    clip: float | None = None,
) -> Float[Tensor, "steps r"]:
    """Train copies of any classifier, one for each learning rate; stop those that are lost.

    Args:
        model: gives logits (B, C); it is left as it is.
        rates: learning rates.
        batches: gives inputs and class indices of a step.
        steps: number of steps.
        optimizer: takes parameters and `lr`.
        clip: largest norm of a gradient; None to leave it.

    Returns:
        The batch loss before each step, at each rate; NaN after a loss that is not finite.
    """
    curve = torch.full((steps, len(rates)), math.nan)
    for column, rate in enumerate(rates):
        network = copy.deepcopy(model)
        trained = [p for p in network.parameters() if p.requires_grad]
        descent = optimizer(trained, lr=rate)
        for step in range(steps):
            inputs, targets = batches(step)
            loss = F.cross_entropy(network(inputs), targets)
            curve[step, column] = loss.detach()
            if not torch.isfinite(loss):
                break
            descent.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(trained, clip)
            descent.step()
    return curve


def summarize(
    curve: Float[Tensor, "steps r"], level: float, classes: int, final_steps: int
) -> dict[str, list[Any]]:
    """Sum up the losses at each rate.

    Args:
        curve: batch losses.
        level: the loss to which steps are counted.
        classes: number of classes; guessing costs its logarithm.
        final_steps: the last steps, over which the final loss is averaged.

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
    lost = ~np.isfinite(losses).all(0) | ~(final < GUESSING * math.log(classes))
    return {
        "final": [rounded(value, 5) for value in final],
        "steps": [float(value) for value in steps],
        "diverged": [bool(value) for value in lost],
    }


def batches_of(
    size: int, batch_size: int, steps: int, shuffle: torch.Generator
) -> Int64[Tensor, "steps b"]:
    """Draw the samples of each step, with replacement over steps, none twice in a step.

    Example:
        >>> batches_of(10, 4, 3, torch.Generator()).shape
        torch.Size([3, 4])
    """
    return torch.stack([torch.randperm(size, generator=shuffle)[:batch_size] for _ in range(steps)])


def multiply(model: nn.Module, factors: Sequence[float]) -> None:
    """Multiply each layer's weight by a factor, in place."""
    with torch.no_grad():
        for layer, factor in zip(weight_layers(model), factors, strict=True):
            layer.weight.mul_(factor)
