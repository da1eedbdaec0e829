"""Dropout of the experiment `mnist_depth`: does the variance that allows for it pay?

PyTorch's dropout divides what it keeps by the probability p of keeping it, which makes second
moments larger by 1 / p a layer. By statement 7, ReLU layers of n inputs that read dropped-out
units then want the variance 2 p / n. Without that division they would want 2 / (p n).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_book.chapters.mnist_depth.training import Task, train_all
from hessinit_book.networks.dense import dense_network, linear_layers
from hessinit_book.networks.linearized_norms import linearized_norms
from hessinit_book.networks.starts import draw_weights
from hessinit_book.randomness import generator
from hessinit_book.statistics.rounding import all_rounded
from hessinit_book.theory import Masks, RandomNetwork
from hessinit_lib.theory import critical_variance

RULES = ("he", "rescaled", "plain")
"""Variances: He's, and those for dropout that divides by p (as here) or that does not."""


def try_dropout(
    drop: float,
    widths: tuple[int, ...],
    seed: int,
    task: Task,
    rates: tuple[float, ...],
    level: float,
    after_step: Callable[[], object],
) -> dict[str, Any]:
    """Measure and train a ReLU network with dropout behind each ReLU, from each of `RULES`.

    The seed fixes directions of the weights, batches, probe and masks for all of them.

    Args:
        drop: probability of being dropped.
        widths: of all layers.
        seed: of the run.
        task: what to train on.
        rates: learning rates.
        level: see `train_all`.
        after_step: called after each step, for a progress bar.

    Returns:
        `starts`: names of the rules; `frobenius`: for each the norm of every layer's
        linearized Hessian on the probe, with one mask a sample; `trained`: see `train_all`.
    """
    networks, norms = [], []
    probe = task.probe_batch[0]
    for rule in RULES:
        variances = variances_of(rule, widths, drop)
        network = dense_network(widths, "relu")
        draw_weights(network, "he", generator(seed, "weights"))
        linears = linear_layers(network)
        with torch.no_grad():
            for linear, variance in zip(linears, variances, strict=True):
                linear.weight *= math.sqrt(variance * linear.in_features / 2)
        weights = [linear.weight.detach().to(probe) for linear in linears]
        law = RandomNetwork.make([*widths], variances, "relu", Masks(1 - drop, rescale=True))
        norms.append(linearized_norms(law, weights, probe, generator(seed, "probe masks")))
        networks.append(network.to(task.inputs.device))

    stream = generator(seed, "masks")

    def masks(batch: int) -> list[Float[Tensor, "b _"]]:
        """Draw torch's dropout: zero, or one over the probability of being kept."""
        return [
            ((torch.rand(batch, width, generator=stream) >= drop) / (1 - drop)).to(task.inputs)
            for width in widths[1:-1]
        ]

    return {
        "starts": ", ".join(RULES),
        "frobenius": [all_rounded(row, 5) for row in norms],
        "trained": train_all(networks, "relu", task, rates, level, after_step, masks),
    }


def variances_of(rule: str, widths: tuple[int, ...], drop: float) -> list[float]:
    """Give every layer's variance by one of `RULES`; the first layer's inputs are not dropped.

    Example:
        >>> he, ours = (variances_of(r, (10, 20, 20), 0.5) for r in ("he", "rescaled"))
        >>> [round(v, 3) for v in he], [round(v, 3) for v in ours]
        ([0.2, 0.1], [0.2, 0.05])
    """
    allowed = 0.0 if rule == "he" else drop
    return [
        critical_variance(
            "relu", fan_in, fan_out, dropout=allowed if k else 0.0, rescale=rule == "rescaled"
        )
        for k, (fan_in, fan_out) in enumerate(pairwise(widths))
    ]
