"""The approximated chain rule at the start and after training: what it leaves out, summed up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.batches import batch_indices

MOMENTS = ("start", "trained")
TRAINING_BATCH = 32
LAST = 50  # steps over which the loss after training is averaged
ACCURATE = 0.1  # an error, relative to the Hessian, up to which the rule counts as accurate

ERRORS = {"frobenius": "matrix", "spectral": "spectral", "norm_ratio": "norm"}
"""What is summed up, by the quantity that it is made of."""


def train(
    model: nn.Module,
    x: Float[Tensor, "n m"],
    y: Int64[Tensor, " n"],
    steps: int,
    rate: float,
    shuffle: torch.Generator,
) -> float:
    """Train a network in place by SGD on softmax cross-entropy.

    Returns:
        The loss at the end, a mean over the last steps.
    """
    descent = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for chosen in batch_indices(len(x), TRAINING_BATCH, steps, shuffle).to(x.device):
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    return rounded(statistics.fmean(losses[-LAST:]))


def summary(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    r"""Sum up the errors of the rule over activations, layers and settings.

    Args:
        found: by activation and layer, a list for each of `quantities`.

    Returns:
        matrix: of $\|R_k\|_F / \|H_k\|_F$; spectral: of $\|R_k\|_2 / \|H_k\|_2$; norm: of
        $|\|\hat H_k\|_F / \|H_k\|_F - 1|$. Of each: the typical one (median), the smallest,
        the worst, and the share that is accurate.

    Example:
        >>> layer = {"frobenius": [0.0, 0.1, 0.8], "spectral": [0.0] * 3, "norm_ratio": [1.0] * 3}
        >>> summary({"tanh": {"first": layer}})["matrix"]
        {'typical': 0.1, 'smallest': 0.0, 'worst': 0.8, 'accurate': 0.666667}
    """
    layers = [layer for by_place in found.values() for layer in by_place.values()]
    sums: dict[str, dict[str, float]] = {}
    for quantity, name in ERRORS.items():
        exact = float(quantity == "norm_ratio")
        errors = [abs(value - exact) for layer in layers for value in layer[quantity]]
        if errors:
            sums[name] = {
                "typical": rounded(statistics.median(errors)),
                "smallest": rounded(min(errors)),
                "worst": rounded(max(errors)),
                "accurate": rounded(sum(e <= ACCURATE for e in errors) / len(errors)),
            }
    return sums
