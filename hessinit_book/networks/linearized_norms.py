"""Norms of the layers' linearized Hessians in fully connected networks with dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_book.theory import RandomNetwork
from hessinit_lib.hessians.loss import loss_curvature
from hessinit_lib.theory.activations import differentiate


class LinearizedLayer(NamedTuple):
    r"""One layer's linearized Hessians $\hat H_b$, sample by sample.

    With $D^2 \ell_b = S_b^\top S_b$ and $M_b = S_b J_{k,b}$, of C rows,

    $$\langle \hat H_b, \hat H_{b'} \rangle
      = (z_b \cdot z_{b'})^2 \, \|M_b M_{b'}^\top\|_F^2 .$$

    Attributes:
        inputs: $z_b$, shape (B, n_{k-1}).
        factor: $M_b$, shape (B, rows, n_k).
        inner: $\langle \hat H_b, \hat H_{b'} \rangle$, shape (B, B).
    """

    inputs: Float[Tensor, "b i"]
    factor: Float[Tensor, "b r o"]
    inner: Float[Tensor, "b b"]


def linearized_layers(
    network: RandomNetwork,
    weights: list[Float[Tensor, "_ _"]],
    inputs: Float[Tensor, "b i"],
    masks: torch.Generator,
) -> Iterator[LinearizedLayer]:
    """Compute all inner products of the samples' linearized Hessians, exactly.

    As in `hessinit_lib.hessians.chain.hessians`, but with a fixed dropout mask for each sample, and
    without the residual, which statement 6 is not about.

    Args:
        network: its activations and the law of its masks; the loss is the cross-entropy.
        weights: one matrix a layer.
        inputs: shape (B, n_0).
        masks: for the dropout masks, one a sample.

    Returns:
        One for each layer, the last layer first.

    Source: book, statements 2 and 4.
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
    for k in reversed(range(len(weights))):
        rows = factor.flatten(0, 1)
        products = (rows @ rows.mT).square_().reshape(batch, -1, batch, factor.shape[1])
        inner = (read[k] @ read[k].mT).square() * products.sum((1, 3))
        yield LinearizedLayer(read[k], factor, inner)
        if k:
            factor = (factor @ weights[k]) * slopes[k - 1][:, None]


def linearized_norms(
    network: RandomNetwork,
    weights: list[Float[Tensor, "_ _"]],
    inputs: Float[Tensor, "b i"],
    masks: torch.Generator,
) -> list[float]:
    """Compute the Frobenius norm of each layer's linearized Hessian, see `linearized_layers`."""
    layers = linearized_layers(network, weights, inputs, masks)
    return [math.sqrt(float(layer.inner.sum())) / len(inputs) for layer in layers][::-1]
