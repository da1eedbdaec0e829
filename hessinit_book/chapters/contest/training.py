"""Training of the contest's convolutional networks and transformer, one rate after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def train_any(
    model: nn.Module,
    rates: Sequence[float],
    batches: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    clip: float | None = None,
) -> Float[Tensor, "steps r"]:
    """Train copies of any classifier, one for each learning rate; stop those that diverge.

    Args:
        model: gives logits (B, C); it is left as it is.
        rates: learning rates.
        batches: gives inputs and class indices of a step.
        steps: number of steps.
        optimizer: takes parameters and `lr`.
        clip: largest norm of a gradient; None to leave it.

    Returns:
        The batch loss before each step, at each rate; NaN after a loss that is not finite. On the
        CPU.
    """
    curve = torch.full((steps, len(rates)), math.nan)
    for column, rate in enumerate(rates):
        network = copy.deepcopy(model)
        trained = [p for p in network.parameters() if p.requires_grad]
        descent = optimizer(trained, lr=rate)
        for step in range(steps):
            inputs, targets = batches(step)
            loss = F.cross_entropy(network(inputs), targets)
            curve[step, column] = value = loss.item()
            if not math.isfinite(value):
                break
            descent.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(trained, clip)
            descent.step()
    return curve
