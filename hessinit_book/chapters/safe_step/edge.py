"""Training at full batch to the edge of stability, with the layers' largest eigenvalues."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.safe_step.spectra import Curvature
from hessinit_book.statistics.rounding import all_rounded, rounded

BETA, BETA2, EPS = 0.9, 0.99, 1e-7  # of Adam


def follow(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    optimizer: str,
    rate: float,
    looks_at: list[int],
    bar: tqdm,
) -> dict[str, Any]:
    r"""Train by gradient descent or Adam, and look at the curvature now and then.

    Args:
        model: is trained.
        inputs: shape (B, ...), all of them in every step.
        labels: shape (B,).
        optimizer: "sgd" or "adam"; Adam's curvature is preconditioned by its second moments.
        rate: $\eta$.
        looks_at: steps before which to look; the last one ends the training.
        bar: is told of each step.

    Returns:
        limit: the largest stable eigenvalue, $2 / \eta$, or of Adam $38 / \eta$.
        steps, loss, hessian, ggn: at each look; lambda_max of the whole H and G.
        sum, largest: of the layers' lambda_max of G.
        peaks: the largest of three of these over the limit.
        ratio: of ggn and sum, the least and the last.
        shares: of the layers in the top eigenvector of G, at the last look.
    """
    adam = optimizer == "adam"
    parameters = dict(model.named_parameters())
    made: torch.optim.Optimizer = (
        torch.optim.Adam(parameters.values(), rate, (BETA, BETA2), EPS)
        if adam
        else torch.optim.SGD(parameters.values(), rate)
    )
    found: dict[str, Any] = {
        key: [] for key in ("steps", "loss", "hessian", "ggn", "sum", "largest")
    }
    limit = (2 + 2 * BETA) / (1 - BETA) if adam else 2.0
    shares: dict[str, float] = {}
    for step in range(looks_at[-1] + 1):
        made.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        if not math.isfinite(loss.item()):
            break
        loss.backward()
        if step in looks_at and (step > 0 or not adam):
            scale = _scales(made, parameters, step) if adam else None
            curvature = Curvature(model, F.cross_entropy, inputs, labels, scale)
            layers = [curvature.largest("ggn", name)[0] for name in curvature.names]
            whole, vector = curvature.largest("ggn")
            shares = curvature.shares(vector)
            found["steps"].append(step)
            found["loss"].append(rounded(loss.item()))
            found["hessian"].append(rounded(curvature.largest("hessian")[0]))
            found["ggn"].append(rounded(whole))
            found["sum"].append(rounded(sum(layers)))
            found["largest"].append(rounded(max(layers)))
        made.step()
        bar.update()
    peaks = {key: rounded(max(found[key]) * rate / limit, 4) for key in ("hessian", "ggn", "sum")}
    ratios = [ggn / total for ggn, total in zip(found["ggn"], found["sum"], strict=True)]
    return {
        "limit": rounded(limit / rate),
        **found,
        "peaks": peaks,
        "ratio": {"least": rounded(min(ratios), 4), "last": rounded(ratios[-1], 4)},
        "shares": all_rounded(shares.values(), 4),
    }


def _scales(
    made: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], step: int
) -> dict[str, Tensor]:
    r"""Give $P^{-1/2}$ of Adam's step, $P = (1 - \beta_1^{t+1}) (\sqrt{\hat v} + \epsilon)$."""
    correction = 1 - BETA2**step
    warmup = 1 - BETA ** (step + 1)
    return {
        name: ((made.state[p]["exp_avg_sq"] / correction).sqrt() + EPS).mul(warmup).rsqrt()
        for name, p in parameters.items()
    }
