"""Vanishing, balanced, exploding: one network from three initializations, followed step by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.networks.starts import weight_layers
from hessinit_book.training.layer_norms import layer_norms
from hessinit_book.training.step_gain import step_gain

FACTORS = {"vanishing": 0.7, "balanced": 1.0, "exploding": 1.4}
"""What every layer's He weights are multiplied by."""


def scale_weights(model: nn.Module, factor: float) -> nn.Module:
    """Multiply all weights, in place; biases stay as they are."""
    with torch.no_grad():
        for weight in weight_layers(model).values():
            weight *= factor
    return model


def follow(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    probe: tuple[Tensor, Tensor],
    rate: float,
    looks_at: Collection[int],
    after_step: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train by plain SGD and look at the probe now and then.

    Args:
        model: trained in place.
        batches: inputs and labels of each step.
        probe: inputs and labels of the fixed batch on which norms and gains are measured.
        rate: the learning rate.
        looks_at: steps before which to look; the end is looked at in any case.
        after_step: called after each step, for a progress bar.

    Returns:
        Lists over the looks: `steps` done before, `loss` [nat] of the probe, `predicted` and
        `realized` gain [nat] of a step on it at the same rate; `frobenius` and `gradient`,
        lists over the layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> batch = torch.ones(2, 4), torch.tensor([0, 1])
        >>> follow(model, [batch] * 5, batch, rate=0.1, looks_at=[0, 2, 4])["steps"]
        [0, 2, 4, 5]
    """
    names = list(weight_layers(model))
    looks: list[dict[str, Any]] = []

    def look(step: int) -> None:
        norms = layer_norms(model, *probe, names)
        looks.append({"steps": step, **step_gain(model, *probe, rate), **norms})

    done = 0
    for inputs, labels in batches:
        if done in looks_at:
            look(done)
        loss = F.cross_entropy(model(inputs), labels)
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
        done += 1
        after_step()
    look(done)
    return {
        name: [look[name] for look in looks]
        for name in ("steps", "loss", "predicted", "realized", "frobenius", "gradient")
    }
