"""The largest stable rate of gradient descent, set against what the layers' norms allow."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.chapters.safe_step.spectra import Curvature
from hessinit_book.statistics.rounding import rounded
from hessinit_lib.hessians import layer_hessians

STEP = 2**0.25  # from a rate that is tried to the next
MARGIN = 1.1  # of the loss over that at the start, that is not called growth
LOSS = 1.0  # of a network that has begun to learn
MOST = 64.0  # times the limit of the linear theory


def stable_rates(
    model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, warmup: int
) -> dict[str, dict[str, Any]]:
    r"""Find the largest rate at which gradient descent is stable, and what was to be expected.

    Twice: at the start, and where training by Adam has brought the loss to `LOSS`.

    Args:
        model: at its start; is left as it is.
        inputs: the whole training set, shape (B, ...).
        labels: shape (B,).
        steps: of each trial.
        warmup: the most steps of the training in between.

    Returns:
        For "start" and "trained":

        linear: $2 / \lambda_{max}(H)$.
        ggn: $2 / \lambda_{max}(G)$.
        sum, largest: $2 / \sum_k \lambda_{max}(G_k)$ and $2 / \max_k$, by `layer_hessians`.
        frobenius: $2 / \sum_k \norm{G_k}_F$.
        loss: there.
        stable: the largest rate that was tried, and all smaller ones, at which the loss never
            grew; 0 if there is none.
        over: that, over each of the five.
    """
    start = _at(model, inputs, labels, steps)
    trained = copy.deepcopy(model)
    optimizer = torch.optim.Adam(trained.parameters())
    for _ in range(warmup):
        optimizer.zero_grad()
        loss = F.cross_entropy(trained(inputs), labels)
        if loss.item() <= LOSS:
            break
        loss.backward()
        optimizer.step()
    return {"start": start, "trained": _at(trained, inputs, labels, steps)}


def _at(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int) -> dict[str, Any]:
    curvature = Curvature(model, F.cross_entropy, inputs, labels)
    linear = 2 / curvature.largest("hessian")[0]
    ggn = 2 / curvature.largest("ggn")[0]
    # Each norm by itself: together they are had from large matrices, which takes longer.
    spectral, frobenius = (
        [
            getattr(layer, norm)
            for layer in layer_hessians(
                model, F.cross_entropy, inputs, labels, curvature="ggn", layers="*", budget=None,
                tolerance=0.05, norms=(norm,), generator=torch.Generator().manual_seed(0),
            ).values()
        ]
        for norm in ("spectral", "frobenius")
    )  # fmt: skip
    with torch.no_grad():
        loss = F.cross_entropy(model(inputs), labels).item()
    stable = _stable_rate(model, inputs, labels, linear, steps)
    rules = {
        "linear": linear,
        "ggn": ggn,
        "sum": 2 / sum(spectral),
        "largest": 2 / max(spectral),
        "frobenius": 2 / sum(frobenius),
    }
    return {
        "loss": rounded(loss),
        "stable": rounded(stable),
        **{rule: rounded(rate) for rule, rate in rules.items()},
        "over": {rule: rounded(stable / rate, 4) for rule, rate in rules.items()},
    }


def _stable_rate(
    model: nn.Module, inputs: Tensor, labels: Tensor, linear: float, steps: int
) -> float:
    """Go up from a quarter of the limit by the linear theory, or down from there."""
    rate = linear / 4
    if not is_stable(model, inputs, labels, rate, steps):
        while rate > linear / MOST:
            rate /= STEP
            if is_stable(model, inputs, labels, rate, steps):
                return rate
        return 0.0
    while rate < linear * MOST and is_stable(model, inputs, labels, rate * STEP, steps):
        rate *= STEP
    return rate


def is_stable(model: nn.Module, inputs: Tensor, labels: Tensor, rate: float, steps: int) -> bool:
    """Tell whether the loss stays below its start, within a margin, from copies of the weights."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = math.inf
    for step in range(steps + 1):
        leaves = {name: w.requires_grad_() for name, w in weights.items()}
        with torch.enable_grad():
            loss = F.cross_entropy(torch.func.functional_call(model, leaves, (inputs,)), labels)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        first = loss.item() if step == 0 else first
        if not loss.item() <= MARGIN * first:  # NaN, too
            return False
        weights = {
            name: (w - rate * g).detach()
            for (name, w), g in zip(leaves.items(), gradients, strict=True)
        }
    return True
