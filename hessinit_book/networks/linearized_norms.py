"""Norms of the layers' linearized Hessians in fully connected networks with dropout."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_book.theory import RandomNetwork
from hessinit_lib.hessians.loss import loss_curvature
from hessinit_lib.theory.activations import differentiate


def linearized_norms(
    network: RandomNetwork,
    weights: list[Float[Tensor, "_ _"]],
    inputs: Float[Tensor, "b i"],
    masks: torch.Generator,
) -> list[float]:
    r"""Compute the Frobenius norm of each layer's linearized Hessian, exactly.

    As in `hessinit_lib.hessians.chain.chain`, but with a fixed dropout mask for each sample, and
    without the residual, which statement 6 is not about.

    Args:
        network: its activations and the law of its masks.
        weights: one matrix a layer.
        inputs: shape (B, n_0).
        masks: for the dropout masks.

    Returns:
        One norm a layer.
    """
    a = z = inputs
    batch = len(inputs)
    read, slopes = [], []
    for k, weight in enumerate(weights):
        read.append(z)
        a = z @ weight.mT
        if k < len(network.activations):
            law = network.masks[k]
            kept = (torch.rand(a.shape, generator=masks) < law.keep).to(a)
            mask = kept / law.keep if law.rescale else kept
            values = differentiate(network.activations[k], a)
            z = values.value * mask
            slopes.append(values.first * mask)
    targets = torch.zeros(batch, dtype=torch.long, device=a.device)  # of no effect on D^2 l
    factor = loss_curvature(nn.CrossEntropyLoss(), a, targets).factor
    norms = []
    for k in reversed(range(len(weights))):
        rows = factor.flatten(0, 1)
        products = (rows @ rows.mT).square().reshape(batch, -1, batch, factor.shape[1]).sum((1, 3))
        norms.append(math.sqrt(float(((read[k] @ read[k].mT).square() * products).sum())) / batch)
        if k:
            factor = (factor @ weights[k]) * slopes[k - 1][:, None]
    return norms[::-1]
